// Command storage is process 1 of the guests that the benchmarks of disks and of
// sharing boot: it does one task with its disk and says on the console how it went.
// It links no more than it needs: it starts under emulation of emulation.
//
// Words of the kernel command line say what to do:
//
//	disco.task=share   reads what disco.read names of the filesystem on /dev/vda1,
//	                   runs disco.job (query, build or none) in it, and stays
//	disco.task=disk    does disco.ops operations of each kind on /dev/vda, from
//	                   disco.threads threads, and powers off
//
// What it prints begins with [guest.Prefix]; the rest is key=value words.
package main

import (
	"fmt"

	"disco/integration/guest/solo"
)

func main() {
	solo.Run(func(w solo.Words) error {
		switch task := w.Text("task", ""); task {
		case "share":
			return share(w)
		case "disk":
			return disk(w)
		default:
			return fmt.Errorf("no task %q is known", task)
		}
	})
}
