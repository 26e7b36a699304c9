package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"disco/vmm"
)

// onPTY puts the world on a terminal and returns the person's end.
func onPTY(t *testing.T, w *fakeWorld) (person, terminal *os.File) {
	t.Helper()
	person, terminal, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		person.Close()
		terminal.Close()
	})
	if err := pty.Setsize(person, &pty.Winsize{Cols: 100, Rows: 40}); err != nil {
		t.Fatal(err)
	}
	w.stdin, w.stdout = terminal, terminal
	return person, terminal
}

func mode(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *m
}

func TestHostTerminal(t *testing.T) {
	w := newWorld(t)
	person, terminal := onPTY(t, w)
	before := mode(t, terminal)
	var during unix.Termios
	typed := make(chan string, 1)
	w.guest.waits = true
	w.guest.during = func(g *fakeGuest) {
		during = mode(t, terminal)
		go func() {
			b, _ := io.ReadAll(g.cfg.Stdin)
			typed <- string(b)
		}()
		if _, err := person.WriteString("ls\x03\x01x"); err != nil {
			t.Error(err)
		}
	}
	if code := w.disco("run"); code != 0 {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
	if during.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 || during.Oflag&unix.OPOST != 0 {
		t.Errorf("not raw while the guest runs: %+v", during)
	}
	if after := mode(t, terminal); after != before {
		t.Errorf("the terminal was %+v and is left as %+v", before, after)
	}
	if got := <-typed; got != "ls\x03" {
		t.Errorf("the guest got %q", got)
	}
	if size := <-w.guest.sizes; size != [2]uint16{100, 40} {
		t.Errorf("the guest's console is %v", size)
	}
	if w.built.Cmdline != "quiet loglevel=3 disco.shell" {
		t.Errorf("kernel command line %q", w.built.Cmdline)
	}
	if !strings.Contains(w.err.String(), "--cmdline 'quiet loglevel=3 disco.shell' ") || strings.Contains(w.err.String(), "ended") {
		t.Errorf("it says %s", &w.err)
	}
}

func TestHostTerminalResize(t *testing.T) {
	w := newWorld(t)
	person, _ := onPTY(t, w)
	w.guest.during = func(g *fakeGuest) {
		<-g.sizes
		if err := pty.Setsize(person, &pty.Winsize{Cols: 50, Rows: 20}); err != nil {
			t.Error(err)
		}
		// The terminal is not this process's own, so the kernel tells another.
		if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil {
			t.Error(err)
		}
		select {
		case size := <-g.sizes:
			if size != [2]uint16{50, 20} {
				t.Errorf("resized to %v", size)
			}
		case <-time.After(10 * time.Second):
			t.Error("not resized")
		}
	}
	if code := w.disco("run"); code != 0 {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
}

func TestHostTerminalAfterPanic(t *testing.T) {
	w := newWorld(t)
	_, terminal := onPTY(t, w)
	before := mode(t, terminal)
	w.guest.during = func(*fakeGuest) { panic("we are wrong") }
	func() {
		defer func() { _ = recover() }()
		w.disco("run")
	}()
	if after := mode(t, terminal); after != before {
		t.Errorf("the terminal was %+v and is left as %+v", before, after)
	}
	if !w.guest.closed {
		t.Error("the guest was not closed")
	}
}

func TestHostTerminalOwnKernelHasNoShell(t *testing.T) {
	w := newWorld(t)
	onPTY(t, w)
	if code := w.disco("run", "--kernel", w.env["DISCO_KERNEL"]); code != 0 || w.built.Cmdline != "" {
		t.Errorf("exit code %d, kernel command line %q", code, w.built.Cmdline)
	}
}

func TestLastLinesAreNotRepeated(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "both"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := newWorld(t)
	w.stdout, w.stderr = f, f
	w.guest.outcome = vmm.Outcome{Kind: vmm.Crashed, Code: 1, Reason: "panic", LastLines: []string{"last"}}
	if code := w.disco("run", "--cpus", "1"); code != 1 {
		t.Errorf("exit code %d", code)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil || string(b) != "disco: the guest crashed: panic\n" {
		t.Errorf("got %q, %v", b, err)
	}
}
