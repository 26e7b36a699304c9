package integration

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

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
	cfg, _ := config(t, "halt", "")
	cfg.Stdout = nil
	var guests []*running
	for range 3 {
		guests = append(guests, launchIn(t, m, cfg))
	}
	// Go's processors grow with the guests that run.
	eventually(t, func() bool { return runtime.GOMAXPROCS(0) >= before+3 })
	for i, g := range guests {
		if got := m.Guests(); len(got) != 3-i || got[0] != g.guest {
			t.Errorf("%d guests, want %d", len(got), 3-i)
		}
		if err := m.Close(); err == nil {
			t.Fatal("a monitor with guests was closed")
		}
		g.guest.Kill("enough")
		g.wait()
		for range 2 {
			if err := g.guest.Close(); err != nil {
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

// runsIn is runs in a monitor.
func runsIn(t testing.TB, m *vmm.Monitor, cfg vmm.Config) vmm.Outcome {
	t.Helper()
	g := launchIn(t, m, cfg)
	o := g.wait()
	if err := g.guest.Close(); err != nil {
		t.Error(err)
	}
	return o
}

// TestKVMBadCompany: guests that panic, fault, hang and throw garbage at every
// device leave the others of their monitor running, and end each in its own way.
func TestKVMBadCompany(t *testing.T) {
	m := newMonitor(t)
	bad := map[string]vmm.OutcomeKind{
		"panic": vmm.Crashed, "triple": vmm.Crashed, "unemulable": vmm.Crashed, "exitcode": vmm.DebugExit,
		"spin": vmm.TimedOut, "halt": vmm.TimedOut,
	}
	hostile, _ := config(t, "hostile", fmt.Sprintf("seed=%d cpus=2", time.Now().UnixNano()&0xffffffff))
	t.Logf("the hostile guest gets %s", hostile.Cmdline)
	equip(t, &hostile)
	hostile.CPUs, hostile.Timeout = 2, 2*time.Second
	garbage := launchIn(t, m, hostile)
	good, heard := config(t, "virq", "pin=9 vector=0x40") // powers off at its button
	witness := launchIn(t, m, good)
	for name, kind := range bad {
		cfg, _ := config(t, name, "")
		cfg.Timeout = 500 * time.Millisecond
		g := launchIn(t, m, cfg)
		t.Cleanup(func() {
			if o := g.wait(); o.Kind != kind {
				t.Errorf("%s ended with %v (%s), want %v", name, o.Kind, o.Reason, kind)
			}
		})
	}
	for done := false; !done; {
		cfg, screen := config(t, "timer", "ticks=5")
		if o := runsIn(t, m, cfg); o.Kind != vmm.PoweredOff || screen.String() != "timer: 5 ticks\n" {
			t.Fatalf("a good guest ended with %v (%s), console %q", o.Kind, o.Reason, screen)
		}
		select {
		case <-garbage.done:
			done = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	eventually(t, func() bool { return strings.Contains(heard.String(), "waiting") })
	witness.cancel()
	if o := witness.wait(); o.Kind != vmm.PoweredOff {
		t.Errorf("the witness ended with %v (%s)", o.Kind, o.Reason)
	}
}

// TestKVMManyGuests boots 32 guests at once, each with a network and two CPUs,
// until all have gone, twice; the second time leaves nothing that the first did
// not.
func TestKVMManyGuests(t *testing.T) {
	const guests = 32
	var before inventory
	var maps int
	for round := range 2 {
		m := newMonitor(t)
		var built []*vmm.Guest
		var screens []*screen
		for i := range guests {
			cfg, screen := config(t, "smp", "cpus=2")
			cfg.Name, cfg.Memory, cfg.CPUs = fmt.Sprintf("guest-%d", i), vmm.MinMemory, 2
			cfg.Nets = []vmm.Net{{Kind: vmm.NetUser}}
			g, err := m.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			built, screens = append(built, g), append(screens, screen)
		}
		var all []*running
		for _, g := range built {
			all = append(all, start(t, g))
		}
		for i, g := range all {
			if o := g.wait(); o.Kind != vmm.PoweredOff || lines(screens[i].String(), "smp: 2 cpus") != 1 {
				t.Errorf("guest %d ended with %v (%s), console %q", i, o.Kind, o.Reason, screens[i])
			}
		}
		for _, g := range all {
			if err := g.guest.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if round == 0 {
			eventually(t, func() bool { return runtime.NumGoroutine() < 100 })
			before, maps = takeInventory(), mappings(t)
		}
	}
	eventually(t, func() bool { return len(takeInventory().beyond(before)) == 0 })
	if n := mappings(t); n > maps+20 {
		t.Errorf("%d mappings after two rounds, %d after one", n, maps)
	}
}
