package integration

import (
	"errors"
	"testing"
	"time"

	"disco/scheduler/host"
	"disco/vmm"
)

// TestKVMTickets: guests of a monitor divide one CPU by their tickets, also after
// those change, within groups, and under a limit.
func TestKVMTickets(t *testing.T) {
	m, err := vmm.NewMonitor(vmm.MonitorConfig{Scheduler: vmm.SchedulerConfig{
		CPUs: []int{0}, Quantum: 4 * time.Millisecond, Groups: map[string]int64{"gold": 300}, Strict: true,
	}})
	if err != nil {
		t.Fatal(err)
	}
	var guests []*running
	for _, c := range []vmm.Config{{Name: "a", Tickets: 300}, {Name: "b"}, {Name: "c", Group: "gold", Tickets: 7, CPULimit: 100}} {
		cfg, _ := config(t, "compute", "")
		cfg.Name, cfg.Tickets, cfg.Group, cfg.CPULimit, cfg.Memory = c.Name, c.Tickets, c.Group, c.CPULimit, 16<<20
		guests = append(guests, launchIn(t, m, cfg))
	}
	// What each had of the CPU time of all, over a while of it.
	var limited, elapsed time.Duration // what c had, in which time
	part := func() (part [3]float64) {
		t.Helper()
		began := time.Now()
		const enough = 600 * time.Millisecond
		before := m.Usage()
		var now []host.Usage
		all := time.Duration(0)
		eventually(t, func() bool {
			now, all = m.Usage(), 0
			for i := range now {
				all += now[i].Used - before[i].Used
			}
			return all > enough
		})
		limited, elapsed = now[2].Used-before[2].Used, time.Since(began)
		for i := range now {
			part[i] = float64(now[i].Used-before[i].Used) / float64(all)
		}
		return part
	}
	within := func(what string, got float64, least, most float64) {
		t.Helper()
		if got < least || got > most {
			t.Errorf("%s is %.3f, want %.2f to %.2f", what, got, least, most)
		}
	}
	eventually(t, func() bool {
		for _, u := range m.Usage() {
			if u.State == host.Idle {
				return false
			}
		}
		return true
	})
	p := part()
	within("a to b at 3:1", p[0]/p[1], 2.5, 3.5)
	if n := guests[0].guest.Tickets(); n != 300 {
		t.Errorf("a has %d tickets", n)
	}
	if err := guests[0].guest.SetTickets(0); err == nil {
		t.Error("a has 0 tickets")
	}
	if err := guests[0].guest.SetTickets(100); err != nil {
		t.Fatal(err)
	}
	p = part()
	within("a to b at 1:1", p[0]/p[1], 0.8, 1.25)
	// The machine may be busy, so c's tenth of a CPU can be all that its tickets ask of
	// what is left.
	within("c, limited to a tenth of a CPU", p[2], 0.02, 0.65)
	if most := elapsed/8 + 50*time.Millisecond; limited > most {
		t.Errorf("c, limited to a tenth of a CPU, had %v in %v", limited, elapsed)
	}
	for _, g := range guests {
		g.guest.Kill("enough")
		g.wait()
		if err := g.guest.Close(); err != nil {
			t.Error(err)
		}
	}
	if u := m.Usage(); len(u) != 0 {
		t.Errorf("%d vCPUs are left", len(u))
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// TestKVMHostSchedules: with the host's scheduler tickets count nothing, and that is said.
func TestKVMHostSchedules(t *testing.T) {
	m, err := vmm.NewMonitor(vmm.MonitorConfig{Scheduler: vmm.SchedulerConfig{Kind: vmm.SchedulerHost}})
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := config(t, "compute", "")
	cfg.Tickets = 5
	g := launchIn(t, m, cfg)
	if err := g.guest.SetTickets(7); err == nil || g.guest.Tickets() != 0 || m.Usage() != nil {
		t.Errorf("tickets count: %v, %d, %v", err, g.guest.Tickets(), m.Usage())
	}
	g.guest.Kill("enough")
	g.wait()
	if err := errors.Join(g.guest.Close(), m.Close()); err != nil {
		t.Error(err)
	}
}

// TestKVMSchedulerRefuses: what cannot be is refused before a guest runs.
func TestKVMSchedulerRefuses(t *testing.T) {
	for _, c := range []vmm.SchedulerConfig{
		{Quantum: time.Second}, {CPUs: []int{1 << 20}}, {CPUs: []int{}}, {CPUs: []int{0, 0}}, {Kind: 9},
		{Groups: map[string]int64{"g": 0}},
	} {
		m, err := vmm.NewMonitor(vmm.MonitorConfig{Scheduler: c})
		if err != nil {
			t.Fatal(err)
		}
		cfg, _ := config(t, "halt", "")
		if g, err := m.New(cfg); err == nil {
			t.Errorf("%+v makes guests", c)
			g.Close()
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
