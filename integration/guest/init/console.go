package main

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// firstConsole returns where the first line can go. Until virtio_console is
// loaded a kernel told console=hvc0 alone has no console at all, and /dev/console
// cannot be opened: then it is COM1.
func firstConsole() *os.File {
	for _, name := range []string{"/dev/console", "/dev/ttyS0"} {
		f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
		if err == nil {
			adopt(f)
			return f
		}
	}
	return os.Stdout
}

// lastConsole moves to the console that the command line names last, once its
// driver is there.
func lastConsole(words []string) {
	name := "console"
	for _, word := range words {
		if value, ok := strings.CutPrefix(word, "console="); ok {
			name, _, _ = strings.Cut(value, ",")
		}
	}
	for range 100 {
		f, err := os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_NOCTTY, 0)
		if err == nil {
			adopt(f)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	say("warning=console %s did not appear", name)
}

// adopt makes f this process's standard input, output and error.
func adopt(f *os.File) {
	for fd := range 3 {
		unix.Dup3(int(f.Fd()), fd, 0)
	}
}

// runShell gives the console to a shell, with job control, and waits for its end.
func runShell() error {
	cmd, err := startBusybox("--install", "-s", "/bin")
	if err != nil {
		return err
	}
	if _, err := cmd.Wait(); err != nil {
		return err
	}
	say("shell=/bin/sh")
	shell, err := os.StartProcess("/bin/busybox", []string{"-sh"}, &os.ProcAttr{
		Dir:   "/root",
		Env:   append(os.Environ(), "PATH=/bin", "HOME=/root", `PS1=\w # `),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &unix.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	})
	if err != nil {
		return err
	}
	// Process 1 inherits what the shell leaves behind, and must wait for that too.
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if pid == shell.Pid {
			return nil
		}
	}
}
