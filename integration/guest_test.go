package integration

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"disco/integration/tiny"
	"disco/vmm"
)

// screen is a guest's console output while it runs.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// kernelFile puts a tiny guest where a Config can name it.
func kernelFile(t testing.TB, name string) string {
	t.Helper()
	image, err := tiny.Image(name)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name+".elf")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// config is a small guest that runs a tiny kernel.
func config(t testing.TB, name, cmdline string) (vmm.Config, *screen) {
	t.Helper()
	s := &screen{}
	return vmm.Config{
		Kernel: kernelFile(t, name), Cmdline: cmdline,
		CPUs: 1, Memory: 64 << 20,
		Timeout: patience, Console: vmm.ConsoleSerial, Stdout: s,
	}, s
}

// runs builds the guest, runs it to its end and takes it down.
func runs(t testing.TB, cfg vmm.Config) (vmm.Outcome, vmm.Report) {
	t.Helper()
	g, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	o, err := g.Run(context.Background())
	if err != nil {
		t.Error(err)
	}
	r := g.Report()
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	return o, r
}

// running is a guest whose Run is under way.
type running struct {
	t       testing.TB
	guest   *vmm.Guest
	cancel  context.CancelFunc
	outcome vmm.Outcome
	done    chan struct{}
}

// launch starts a guest; the test's cleanup kills what is left of it.
func launch(t testing.TB, cfg vmm.Config) *running {
	t.Helper()
	g, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, g)
}

// launchIn is launch in a monitor.
func launchIn(t testing.TB, m *vmm.Monitor, cfg vmm.Config) *running {
	t.Helper()
	g, err := m.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, g)
}

func start(t testing.TB, g *vmm.Guest) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, guest: g, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		var err error
		if r.outcome, err = g.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		g.Kill("the test is over")
		<-r.done
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// wait returns how the guest ended.
func (r *running) wait() vmm.Outcome {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Fatalf("the guest still runs after %v", patience)
	}
	return r.outcome
}

// lines counts the lines of s that are line.
func lines(s, line string) int {
	n := 0
	for l := range strings.Lines(s) {
		if strings.TrimRight(l, "\r\n") == line {
			n++
		}
	}
	return n
}
