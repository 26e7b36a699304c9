package integration

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"disco/memory"
	"disco/vmm"
)

// TestKVMSteal: of many guests that want one CPU, most are held, which the kernel
// takes for sleep; the guest is told of it all the same, beside what KVM tells it.
func TestKVMSteal(t *testing.T) {
	const guests, at = 12, 0x300000
	m, err := vmm.NewMonitor(vmm.MonitorConfig{Scheduler: vmm.SchedulerConfig{CPUs: []int{0}, Strict: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	var all []*running
	for i := range guests {
		cfg, _ := config(t, "compute", fmt.Sprintf("steal=%d", at))
		cfg.Name, cfg.CPUs = fmt.Sprintf("guest-%d", i), 1
		all = append(all, launchIn(t, m, cfg))
	}
	told := func(i int) time.Duration {
		var p [8]byte
		if err := all[i].guest.Space().ReadAt(p[:], memory.GPA(at)); err != nil {
			t.Fatal(err)
		}
		return time.Duration(binary.LittleEndian.Uint64(p[:]))
	}
	// One that has been held for long, and has run since: then it knows.
	eventually(t, func() bool {
		for i, l := range m.Live() {
			// What the thread waited before the guest gave the address was never
			// told, and what it waits now is not yet.
			v := l.VCPUs[0]
			if n := told(i); v.Held > 500*time.Millisecond && n > v.Delayed+v.Held/2 {
				now := m.Live()[i].VCPUs[0]
				if most := now.Held + now.Delayed; n > most {
					t.Errorf("guest %d was told of %v, and waited for %v", i, n, most)
				}
				return true
			}
		}
		return false
	})
	for _, g := range all {
		g.guest.Kill("enough")
		g.wait()
		if err := g.guest.Close(); err != nil {
			t.Error(err)
		}
	}
}
