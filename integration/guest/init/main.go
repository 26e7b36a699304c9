// Command init is the default guest's process 1. Package guest says what it
// prints and which tasks it knows. It links neither net nor net/http: it starts
// under emulation of emulation, where every page of a binary is dear.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
	"disco/integration/initramfs/insmod"
)

func main() {
	console := firstConsole()
	console.WriteString(guest.Marker + "\n")

	mounts := mountAll()
	modules := insmod.LoadAll("/lib/modules")
	words := strings.Fields(readText("/proc/cmdline"))
	lastConsole(words)
	for _, err := range []error{mounts, modules} {
		if err != nil {
			say("warning=%s", oneLine(err))
		}
	}

	buttons := watchButtons()
	tasks := "hello"
	shell := false
	for _, word := range words {
		if list, ok := strings.CutPrefix(word, "disco.task="); ok {
			tasks = list
		}
		if word == "disco.shell" {
			shell = true
		}
	}
	for _, t := range strings.Split(tasks, ",") {
		name, arg, _ := strings.Cut(t, "=")
		if err := run(name, arg, buttons); err != nil {
			say("task=%s result=failed reason=%s", name, oneLine(err))
		} else {
			say("task=%s result=ok", name)
		}
	}
	if shell {
		err := runShell()
		lastConsole(words) // the end of the shell's session has hung up the old one
		if err != nil {
			say("warning=%s", oneLine(err))
		}
	}
	powerOff()
}

// task is one thing that the guest does when the command line asks for it.
type task func(arg string, buttons *buttons) error

var tasks = map[string]task{
	"hello":         func(string, *buttons) error { return hello() },
	"cpus":          func(string, *buttons) error { return tryCPUs() },
	"memory":        func(arg string, _ *buttons) error { return tryMemory(arg) },
	"load":          func(arg string, _ *buttons) error { return tryLoad(arg) },
	"stress":        func(arg string, _ *buttons) error { return tryStress(arg) },
	"clock":         func(arg string, _ *buttons) error { return tryClock(arg) },
	"traffic":       func(arg string, _ *buttons) error { return tryTraffic(arg) },
	"disk":          func(arg string, _ *buttons) error { return tryDisk(arg) },
	"disk-read":     func(arg string, _ *buttons) error { return readDisk(arg) },
	"disk-readonly": func(arg string, _ *buttons) error { return tryReadOnly(arg) },
	"disk-zero":     func(arg string, _ *buttons) error { return zeroDisk(arg) },
	"net":           func(string, *buttons) error { return configureNet() },
	"address":       func(arg string, _ *buttons) error { return setAddress(arg) },
	"ping":          func(arg string, _ *buttons) error { return ping(arg) },
	"http-pattern":  func(arg string, _ *buttons) error { return httpPattern(arg) },
	"http-get":      func(arg string, _ *buttons) error { return httpGet(arg) },
	"http-serve":    func(arg string, _ *buttons) error { return httpServe(arg) },
	"vsock-echo":    func(arg string, _ *buttons) error { return vsockEcho(arg) },
	"vsock-connect": func(arg string, _ *buttons) error { return vsockConnect(arg) },
	"rebind":        func(string, *buttons) error { return rebind() },
	"rng":           func(string, *buttons) error { return tryRNG() },
	"folder":        func(arg string, _ *buttons) error { return mountFolder(arg) },
	"script":        func(arg string, _ *buttons) error { return runScript(arg) },
	"wait-button":   func(_ string, b *buttons) error { return b.wait() },
	"reboot":        func(string, *buttons) error { return reboot() },
	"reboot-once":   func(arg string, _ *buttons) error { return rebootOnce(arg) },
	"poweroff":      func(string, *buttons) error { powerOff(); return nil },
	"panic":         func(string, *buttons) error { return kernelPanic() },
	"spin":          func(_ string, b *buttons) error { b.ignore(); return spin() },
	"hang":          func(_ string, b *buttons) error { b.ignore(); return hang() },
}

func run(name, arg string, b *buttons) error {
	t := tasks[name]
	if t == nil {
		return errors.New("no such task")
	}
	return t(arg, b)
}

// say prints one line of the guest's own.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stdout, guest.Prefix+format+"\n", args...)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// readText returns a small file's text without the space around it, or nothing.
func readText(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func mountAll() error {
	var errs []error
	for _, m := range []struct {
		kind, at, data string
		flags          uintptr
	}{
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"devtmpfs", "/dev", "mode=0755", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "mode=0620,ptmxmode=0666", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.at, err))
		}
	}
	return errors.Join(errs...)
}
