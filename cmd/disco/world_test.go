package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"disco/host"
	"disco/integration/lab"
	"disco/vmm"
)

// fakeGuest ends with outcome, or, if waits, only when it is asked to.
type fakeGuest struct {
	cfg     vmm.Config
	outcome vmm.Outcome
	waits   bool
	during  func(g *fakeGuest) // runs inside Run

	asked, closed bool
	killed        chan string
	sizes         chan [2]uint16
}

func (g *fakeGuest) Run(ctx context.Context) (vmm.Outcome, error) {
	if g.during != nil {
		g.during(g)
	}
	if !g.waits {
		return g.outcome, nil
	}
	select {
	case reason := <-g.killed:
		return vmm.Outcome{Kind: vmm.Killed, Reason: reason}, nil
	case <-ctx.Done():
		g.asked = true
	}
	if g.outcome.Kind == vmm.PoweredOff {
		return g.outcome, nil
	}
	return vmm.Outcome{Kind: vmm.Killed, Reason: <-g.killed}, nil
}

func (g *fakeGuest) Kill(reason string) { g.killed <- reason }

func (g *fakeGuest) ResizeConsole(cols, rows uint16) { g.sizes <- [2]uint16{cols, rows} }

func (g *fakeGuest) NUMAStats() (vmm.NUMAStats, bool) { return vmm.NUMAStats{}, false }

func (g *fakeGuest) Report() vmm.Report {
	return vmm.Report{CPUs: g.cfg.CPUs, Outcome: g.outcome, Exits: map[string]uint64{"io": 3, "hlt": 1}, UserspaceExit: 4}
}

func (g *fakeGuest) Close() error {
	g.closed = true
	return nil
}

// fakeWorld is a machine where guests run here and the default guest is there.
type fakeWorld struct {
	world
	out, err bytes.Buffer
	env      map[string]string
	guest    *fakeGuest   // what New returns
	built    *vmm.Config  // of the last guest
	lab      *lab.Options // of the last lab
	labCode  int
	labErr   error
	newErr   error
	live     []vmm.Live
	monitor  vmm.MonitorConfig // of the last one
	segments []vmm.SegmentStats
	captured chan func(t time.Time, bufs [][]byte) // of the last capture; closed when it stops
	make     func(vmm.Config) (guest, error)       // instead of all this, or nil
}

// New and Close make a fakeWorld its own monitor.
func (w *fakeWorld) New(c vmm.Config) (guest, error) {
	if w.make != nil {
		return w.make(c)
	}
	w.built, w.guest.cfg = &c, c
	if w.newErr != nil {
		return nil, w.newErr
	}
	return w.guest, nil
}

func (w *fakeWorld) Live() []vmm.Live { return w.live }

func (w *fakeWorld) Scheduling() vmm.Scheduling {
	return vmm.Scheduling{Quantum: 10 * time.Millisecond, CPUs: 2}
}

func (w *fakeWorld) Segments() []vmm.SegmentStats   { return w.segments }
func (w *fakeWorld) FolderStats() []vmm.GuestFolder { return nil }

func (w *fakeWorld) Capture(name string, see func(t time.Time, bufs [][]byte)) (stop func(), ok bool) {
	if len(w.segments) == 0 || name != w.segments[0].Name {
		return nil, false
	}
	w.captured <- see
	return sync.OnceFunc(func() { close(w.captured) }), true
}

func (w *fakeWorld) SetTickets(name string, n int64) (bool, error) {
	for i := range w.live {
		if w.live[i].Name == name {
			w.live[i].Tickets = n
			return true, nil
		}
	}
	return false, nil
}

func (w *fakeWorld) Close() error { return nil }

var (
	runsHere = []host.Finding{{Name: "KVM", Status: host.OK, Found: "/dev/kvm"}}
	noKVM    = []host.Finding{{Name: "KVM", Status: host.Missing, Found: "/dev/kvm: no such file or directory", Mend: "modprobe"}}
)

func newWorld(t *testing.T) *fakeWorld {
	t.Helper()
	dir := t.TempDir()
	w := &fakeWorld{env: map[string]string{
		"DISCO_KERNEL": touch(t, filepath.Join(dir, "vmlinuz")),
		"DISCO_INITRD": touch(t, filepath.Join(dir, "initrd.img")),
	}, guest: &fakeGuest{killed: make(chan string, 4), sizes: make(chan [2]uint16, 4)}}
	w.world = world{
		stdin: strings.NewReader(""), stdout: &w.out, stderr: &w.err,
		executable: func() (string, error) { return "/opt/disco/bin/disco", nil },
		getenv:     func(name string) string { return w.env[name] },
		guests:     func() []host.Finding { return runsHere },
		findings:   func() []host.Finding { return runsHere },
		labMissing: func() []error { return nil },
		controlDir: func() (string, error) { return filepath.Join(dir, "run"), nil },
		newMonitor: func(c vmm.MonitorConfig) (monitor, error) {
			w.monitor = c
			return w, nil
		},
		runLab: func(_ context.Context, o lab.Options) (int, error) {
			w.lab = &o
			return w.labCode, w.labErr
		},
	}
	return w
}

// touch makes a file of one page and returns its path.
func touch(t *testing.T, path string) string {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// disco runs a command line.
func (w *fakeWorld) disco(args ...string) int { return execute(&w.world, args) }
