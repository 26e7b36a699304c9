// Command peer is process 1 of the guests that the benchmark of networks and the
// test of NFS boot: one serves what is on its disk, the others take it. It says on
// the console how it went, so that the host knows what is measured when.
//
// Words of the kernel command line say what to do:
//
//	disco.task=serve    mounts /dev/vda at /export, serves it by NFS and by the
//	                    protocol of server.go, until disco.clients have left;
//	                    disco.rw=1 has it mounted writable, disco.bytes is how much of
//	                    a file is kept in memory
//	disco.task=measure  takes data from disco.server in the ways of client.go, as it
//	                    is told to
//	disco.task=files    mounts what disco.way says (nfs from disco.server, or the
//	                    shared folder disco.tag by dax or fuse), reads the file
//	                    disco.name there when it is told to, and stays
//	disco.task=copy     mounts disco.server's export, compares every one of the first
//	                    disco.bytes of the file there, writes disco.copies of them with
//	                    names that begin with disco.name, and compares those of
//	                    disco.others
//
// Its address on its one network is disco.address, of 24 bits. What it prints begins
// with [guest.Prefix]; the rest is key=value words.
package main

import (
	"fmt"

	"disco/integration/guest/solo"
)

func main() {
	solo.Run(func(w solo.Words) error {
		if err := slacken(); err != nil {
			return err
		}
		switch task := w.Text("task", ""); task {
		case "serve":
			return serve(w)
		case "measure":
			return measure(w)
		case "files":
			return files(w)
		case "copy":
			return copies(w)
		default:
			return fmt.Errorf("no task %q is known", task)
		}
	})
}
