package integration

import (
	"runtime"
	"testing"

	"disco/vmm"
)

func newMonitor(t testing.TB) *vmm.Monitor {
	t.Helper()
	m, err := vmm.NewMonitor(vmm.MonitorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// TestKVMMonitor: guests come to a monitor and go, and it ends after the last.
func TestKVMMonitor(t *testing.T) {
	m := newMonitor(t)
	before := runtime.GOMAXPROCS(0)
	cfg, _ := config(t, "hello", "")
	var guests []*vmm.Guest
	for range 3 {
		g, err := m.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		guests = append(guests, g)
	}
	if n := runtime.GOMAXPROCS(0); n < before+3 {
		t.Errorf("GOMAXPROCS %d with 3 guests, %d without", n, before)
	}
	for i, g := range guests {
		if got := m.Guests(); len(got) != 3-i || got[0] != g {
			t.Errorf("%d guests, want %d", len(got), 3-i)
		}
		if err := m.Close(); err == nil {
			t.Fatal("a monitor with guests was closed")
		}
		for range 2 {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("GOMAXPROCS %d after the guests, %d before", n, before)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if g, err := m.New(cfg); err == nil {
		t.Error("a closed monitor makes guests")
		g.Close()
	}
}
