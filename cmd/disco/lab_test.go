package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"disco/integration/lab"
)

func TestFlagsOfLab(t *testing.T) {
	w := newWorld(t)
	code := w.disco("lab", "--nodes", "4", "--cpus", "8", "--memory", "4G", "--distance", "31", "--forward", "tcp:8080:80",
		"--forward", "tcp:2222:22", "--boot-timeout", "30s", "-v", "--", "make", "-j4", "--", "test")
	if code != 0 || w.lab == nil {
		t.Fatalf("exit code %d: %s", code, w.err.String())
	}
	o := *w.lab
	if o.Nodes != 4 || o.CPUs != 8 || o.Memory != 4<<30 || o.Distance != 31 || o.BootTimeout != 30*time.Second || !o.Verbose {
		t.Errorf("options %+v", o)
	}
	if want := []lab.Forward{{Host: 8080, Lab: 80}, {Host: 2222, Lab: 22}}; !slices.Equal(o.Forwards, want) {
		t.Errorf("forwards %v", o.Forwards)
	}
	if want := []string{"make", "-j4", "--", "test"}; !slices.Equal(o.Command, want) {
		t.Errorf("command %q", o.Command)
	}
	if o.TTY != nil || o.Signals == nil || o.Stdin == nil {
		t.Errorf("a terminal %v, signals %v, input %v", o.TTY, o.Signals, o.Stdin)
	}
}

func TestDefaultsOfLab(t *testing.T) {
	w := newWorld(t)
	if code := w.disco("lab", "ls", "-l"); code != 0 {
		t.Fatalf("exit code %d: %s", code, w.err.String())
	}
	o := *w.lab
	if o.Nodes != 0 || o.CPUs != 0 || o.Memory != 0 || o.Distance != 0 || o.BootTimeout != 0 || !slices.Equal(o.Command, []string{"ls", "-l"}) {
		t.Errorf("options %+v", o)
	}
}

func TestExitCodesOfLab(t *testing.T) {
	for _, c := range []struct {
		name string
		args string
		code int
		err  error
		want int
		says string // all of it
	}{
		{"the command's", "lab true", 0, nil, 0, ""},
		{"the command's own", "lab false", 42, nil, 42, ""},
		{"not the host's", "lab true", 0, &lab.HostError{Problems: []error{errors.New("lab: QEMU: absent"), errors.New("lab: kernel: absent")}}, 3,
			"disco: lab: QEMU: absent\ndisco: lab: kernel: absent\n"},
		{"not the lab's", "lab true", 0, errors.New("lab: it died"), 1, "disco: lab: it died\n"},
		{"too many nodes", "lab true", 0, &lab.UsageError{Problems: []error{errors.New("nodes 9: use 1 to 8")}}, 2, "disco: nodes 9: use 1 to 8\n"},
		{"all at once", "lab --nodes 9 --cpus x --distance 0 --forward 80 true", 0, nil, 2, "disco: --cpus x: not a number\n" +
			"disco: --forward 80: not three parts; write tcp:HOSTPORT:LABPORT\n" +
			"disco: --distance 0: not zero\ndisco: nodes 9: use 1 to 8\n"},
		{"negative", "lab --timeout -3s true", 0, nil, 2, "disco: --timeout -3s: use a positive one\n"},
	} {
		w := newWorld(t)
		w.labCode, w.labErr = c.code, c.err
		code := w.disco(strings.Fields(c.args)...)
		if code != c.want || w.err.String() != c.says {
			t.Errorf("%s: exit code %d, want %d; said\n%swant\n%s", c.name, code, c.want, w.err.String(), c.says)
		}
	}
}

func TestTimeoutOfLab(t *testing.T) {
	w := newWorld(t)
	w.runLab = func(ctx context.Context, _ lab.Options) (int, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if code := w.disco("lab", "--timeout", "10ms", "sleep"); code != 124 || !strings.Contains(w.err.String(), "not done after 10ms") {
		t.Errorf("exit code %d: %s", code, w.err.String())
	}
}

func TestLinesForATerminalThatTranslatesNothing(t *testing.T) {
	var b strings.Builder
	n, err := (&returning{&b}).Write([]byte("one\ntwo\n"))
	if n != 8 || err != nil || b.String() != "one\r\ntwo\r\n" {
		t.Errorf("%d, %v: %q", n, err, b.String())
	}
}
