package integration

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"disco/vmm"
)

// TestKVMWorkersShare: a guest that has the monitor's workers read for it all the time,
// and one that computes, divide one CPU 1:1, the workers' time counted, and 1:3 when
// one has more tickets. Without that count the first would have its share and the
// workers' time besides.
func TestKVMWorkersShare(t *testing.T) {
	m, err := vmm.NewMonitor(vmm.MonitorConfig{Scheduler: vmm.SchedulerConfig{CPUs: []int{0}, Quantum: 4 * time.Millisecond, Strict: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the guests'
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	const pages = 512
	path := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(path, make([]byte, pages<<12), 0o600); err != nil {
		t.Fatal(err)
	}
	flood, _ := config(t, "flood", "pages=512")
	flood.Name, flood.Timeout, flood.Disks = "flood", 0, []vmm.Disk{{Path: path, ReadOnly: true, Share: vmm.ShareNever}}
	compute, _ := config(t, "compute", "")
	compute.Name, compute.Timeout = "compute", 0
	launchIn(t, m, flood)
	other := launchIn(t, m, compute)

	// What the two had over a while of CPU time, and the part of workers.
	had := func() (flood, workers, compute time.Duration) {
		t.Helper()
		before := m.Usage()
		eventually(t, func() bool {
			u := m.Usage()
			workers = u[0].Workers - before[0].Workers
			flood, compute = u[0].Used-before[0].Used+workers, u[1].Used-before[1].Used
			return flood+compute > 500*time.Millisecond
		})
		return flood, workers, compute
	}
	eventually(t, func() bool {
		u := m.Usage()
		return u[0].Workers > 50*time.Millisecond && u[1].Used > 50*time.Millisecond
	})
	for _, tickets := range []int64{100, 300} {
		if err := other.guest.SetTickets(tickets); err != nil {
			t.Fatal(err)
		}
		f, w, c := had()
		t.Logf("1:%d: %v, %v of it workers', to %v", tickets/100, f, w, c)
		// On a busy machine the first may not be able to use its share.
		want := float64(tickets) / 100
		if r := float64(c) / float64(f); r < want*0.8 || r > want*4 {
			t.Errorf("the guests had 1:%.2f, want 1:%v", r, want)
		}
		if part := float64(w) / float64(f); part < 0.2 {
			t.Errorf("of what the first had only %.3f was used by workers", part)
		}
	}
	if l := m.Live(); l[0].Workers < m.Usage()[0].Workers || l[1].Workers > time.Millisecond {
		t.Errorf("live, workers had %v and %v", l[0].Workers, l[1].Workers)
	}
}
