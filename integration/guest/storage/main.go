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
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
	"disco/integration/initramfs/insmod"
)

func main() {
	if err := run(); err != nil {
		say("result=failed reason=%q", err.Error())
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		say("power-off=%q", err.Error())
	}
	select {}
}

func run() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := insmod.LoadAll("/lib/modules"); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	w := words(strings.Fields(string(b)))
	switch task := w.text("task", ""); task {
	case "share":
		return share(w)
	case "disk":
		return disk(w)
	default:
		return fmt.Errorf("no task %q is known", task)
	}
}

// words are those of the kernel command line.
type words []string

// text is the value of the word disco.NAME.
func (w words) text(name, otherwise string) string {
	for _, s := range w {
		if v, ok := strings.CutPrefix(s, "disco."+name+"="); ok {
			return v
		}
	}
	return otherwise
}

func (w words) number(name string, otherwise int) (int, error) {
	n, err := strconv.Atoi(w.text(name, strconv.Itoa(otherwise)))
	if err != nil || n < 1 {
		return 0, fmt.Errorf("disco.%s: not a positive number", name)
	}
	return n, nil
}

// say prints one line of ours.
func say(format string, a ...any) {
	fmt.Fprintf(os.Stdout, guest.Prefix+format+"\n", a...)
}

// await waits for a device, which may be a moment behind its driver.
func await(path string) error {
	var err error
	for range 500 {
		if _, err = os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}
