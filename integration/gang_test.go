package integration

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"disco/vmm"
)

// TestKVMGang: a guest whose two vCPUs spin while they wait for each other goes on
// beside two that compute, as a gang and not; how fast is logged, in handovers for a
// second of its CPU time.
func TestKVMGang(t *testing.T) {
	for _, gang := range []bool{false, true} {
		m, err := vmm.NewMonitor(vmm.MonitorConfig{Scheduler: vmm.SchedulerConfig{Strict: true}})
		if err != nil {
			t.Fatal(err)
		}
		var all []*running
		for i, kernel := range []string{"handover", "compute", "compute"} {
			cfg, _ := config(t, kernel, "")
			cfg.Name, cfg.Memory, cfg.CPUs, cfg.Gang = fmt.Sprint("guest-", i), 16<<20, 1, gang && i == 0
			if i == 0 {
				cfg.CPUs = 2
			}
			all = append(all, launchIn(t, m, cfg))
		}
		handed := func() uint64 {
			var p [8]byte
			if err := all[0].guest.Space().ReadAt(p[:], 0x200000); err != nil {
				t.Fatal(err)
			}
			return binary.LittleEndian.Uint64(p[:])
		}
		used := func() (d time.Duration) {
			for _, v := range m.Live()[0].VCPUs {
				d += v.Used
			}
			return d
		}
		eventually(t, func() bool { return handed() > 100 })
		turns, had := handed(), used()
		eventually(t, func() bool { return used()-had > 1500*time.Millisecond && handed() > turns })
		t.Logf("gang %v: %.0f handovers for a second of CPU time", gang, float64(handed()-turns)/(used()-had).Seconds())
		for _, g := range all {
			g.guest.Kill("enough")
			g.wait()
			if err := g.guest.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
