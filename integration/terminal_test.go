package integration

import (
	"io"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"disco/integration/guest"
)

// TestLabTerminal sits at the default guest's shell, which knows how large the
// terminal is, also when that changes. The kernel comes by its own decompressor.
func TestLabTerminal(t *testing.T) {
	keyboard, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer keyboard.Close()
	defer tty.Close()
	resize := func(cols, rows uint16) {
		t.Helper()
		if err := pty.Setsize(keyboard, &pty.Winsize{Cols: cols, Rows: rows}); err != nil {
			t.Fatal(err)
		}
	}
	enter := func(s string) {
		t.Helper()
		if _, err := io.WriteString(keyboard, s); err != nil {
			t.Fatal(err)
		}
	}
	mode := func() unix.Termios {
		t.Helper()
		m, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return *m
	}
	before := mode()
	resize(100, 40)
	l := disco(t, "run", "--host", "here", "--kaslr", "--cpus", "1", "--memory", "256M")
	l.cmd.Stdin, l.cmd.Stdout, l.cmd.Stderr = tty, tty, tty
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		_, _ = io.Copy(&l.console, keyboard)
	}()
	l.start()
	l.says("disco: Ctrl-a x leaves the guest")
	l.says(guest.Prefix + "shell=/bin/sh")
	l.says("~ # ")
	enter("stty size\r")
	l.says("\n40 100\r")
	resize(132, 50)
	// The size travels by interrupts; the shell may be quicker.
	for end := time.Now().Add(step); ; time.Sleep(100 * time.Millisecond) {
		enter("stty size; echo si''ze\r")
		l.says("\nsize\r")
		if contains(&l.console, "\n50 132\r") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the guest does not know of the new size, %s", l.stood())
		}
	}
	enter("echo $((6*7))$(grep -c . /proc/version)\r")
	l.says("\n421\r")
	enter("exit\r")
	l.ends(0)
	if !contains(&l.console, guest.Prefix+"end=poweroff") {
		t.Errorf("the guest did not power off, %s", l.stood())
	}
	if after := mode(); !reflect.DeepEqual(after, before) {
		t.Errorf("the terminal's mode is %+v, and was %+v", after, before)
	}
	// Reading from a master ends when the last terminal is closed.
	tty.Close()
	<-shown
}
