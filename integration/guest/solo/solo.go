// Package solo is what a guest needs whose init is its only program: the kernel's
// filesystems and modules, the words of the command line, lines for the host to
// read, and an end. It is for commands that run as process 1 in an initramfs of
// mkinitrd's, and links no more than these need: they start under emulation of
// emulation.
package solo

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

// Run prepares the machine, runs task and powers off. An error of any of these is
// said as result=failed. It does not return.
func Run(task func(Words) error) {
	err := prepare()
	if err == nil {
		var b []byte
		if b, err = os.ReadFile("/proc/cmdline"); err == nil {
			err = task(strings.Fields(string(b)))
		}
	}
	if err != nil {
		Say("result=failed reason=%q", err.Error())
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		Say("power-off=%q", err.Error())
	}
	select {}
}

func prepare() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return insmod.LoadAll("/lib/modules")
}

// Words are those of the kernel command line.
type Words []string

// Text is the value of the word disco.NAME, or otherwise.
func (w Words) Text(name, otherwise string) string {
	for _, s := range w {
		if v, ok := strings.CutPrefix(s, "disco."+name+"="); ok {
			return v
		}
	}
	return otherwise
}

// Number is that of the word disco.NAME, which must be above zero, or otherwise.
func (w Words) Number(name string, otherwise int) (int, error) {
	n, err := strconv.Atoi(w.Text(name, strconv.Itoa(otherwise)))
	if err != nil || n < 1 {
		return 0, fmt.Errorf("disco.%s: not a positive number", name)
	}
	return n, nil
}

// Say prints one line of ours.
func Say(format string, a ...any) {
	fmt.Fprintf(os.Stdout, guest.Prefix+format+"\n", a...)
}

// Await waits for a file, such as a device that is a moment behind its driver, for
// 5 s at most.
func Await(path string) error {
	var err error
	for range 500 {
		if _, err = os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// Stay waits to be killed. It is no select: to a runtime without timers that is a
// deadlock.
func Stay() error {
	for {
		if err := unix.Pause(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Memory is /proc/meminfo, in bytes.
func Memory() (map[string]uint64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	m := map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		if f := strings.Fields(rest); len(f) == 2 {
			n, err := strconv.ParseUint(f[0], 10, 64)
			if err != nil {
				return nil, err
			}
			m[name] = n << 10
		}
	}
	return m, nil
}
