package integration

import (
	"testing"

	"disco/vmm"
)

// TestKVMRelief: of two guests that wait for the CPU of one fake node, one is moved
// to another node when its CPU has nothing to do any more, and not before.
func TestKVMRelief(t *testing.T) {
	if len(vmm.HostCPUs()) < 2 {
		t.Fatal("it needs two CPUs: fake nodes share a single one")
	}
	m, err := vmm.NewMonitor(vmm.MonitorConfig{Scheduler: vmm.SchedulerConfig{Strict: true}})
	if err != nil {
		t.Fatal(err)
	}
	var guests []*running
	for _, name := range []string{"a", "b", "c"} {
		cfg, _ := config(t, "compute", "")
		cfg.Name, cfg.CPUs, cfg.Memory = name, 1, 16<<20
		cfg.NUMA = vmm.NUMA{FakeNodes: 2}
		guests = append(guests, launchIn(t, m, cfg))
	}
	where := func(i int) int {
		p, ok := guests[i].guest.Placed()
		if !ok {
			t.Fatal("the guest is nowhere")
		}
		return int(p.Nodes[0])
	}
	a, b, c := where(0), where(1), where(2)
	if a == b || a != c {
		t.Fatalf("the guests begin on nodes %d, %d and %d", a, b, c)
	}
	guests[1].guest.Kill("enough")
	guests[1].wait()
	if err := guests[1].guest.Close(); err != nil {
		t.Error(err)
	}
	if where(0) != a || where(2) != c {
		t.Error("a guest has moved while nothing was free")
	}
	eventually(t, func() bool { return where(0) != where(2) })
	for _, i := range []int{0, 2} {
		guests[i].guest.Kill("enough")
		guests[i].wait()
		if err := guests[i].guest.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
