package integration

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"disco/vmm"
)

// footprint is the resident memory of this process without its guests' own, whose
// mappings are named disco-NAME, in bytes by what is mapped: heap, thread and
// goroutine stacks are anonymous.
func footprint(t *testing.T) map[string]uint64 {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	use := map[string]uint64{}
	var what string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"):
			what = "anonymous"
			if len(fields) > 5 {
				what = strings.Join(fields[5:], " ")
			}
		case len(fields) == 3 && fields[0] == "Rss:" && !strings.HasPrefix(what, "/memfd:disco-"):
			var kib uint64
			if _, err := fmt.Sscan(fields[1], &kib); err != nil {
				t.Fatal(err)
			}
			use[what] += kib << 10
		}
	}
	return use
}

// underRace says whether the race detector is built in.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" })
}

// TestKVMFootprint: each further guest, with a network and a disk, takes at most a
// mebibyte of the monitor beyond its own memory, as it comes: no garbage is
// collected for the occasion.
func TestKVMFootprint(t *testing.T) {
	const most = 1 << 20
	m := newMonitor(t)
	disk := testDisk(t, "disk", 1<<20)
	take := func(n int) uint64 {
		var guests []*vmm.Guest
		var screens []*screen
		for i := range n {
			cfg, screen := config(t, "halt", "")
			cfg.Name, cfg.Memory = fmt.Sprintf("%d-of-%d", i, n), vmm.MinMemory
			cfg.Console = vmm.ConsoleVirtio
			cfg.Nets = []vmm.Net{{Kind: vmm.NetUser}}
			cfg.Disks = []vmm.Disk{{Path: disk, ReadOnly: true}}
			g, err := m.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			guests, screens = append(guests, g), append(screens, screen)
		}
		for i, g := range guests {
			start(t, g)
			eventually(t, func() bool { return screens[i].String() != "" })
		}
		use := footprint(t)
		var sum uint64
		for _, what := range slices.Sorted(maps.Keys(use)) {
			sum += use[what]
			if use[what] > most/2 {
				t.Logf("%6d KiB %s", use[what]>>10, what)
			}
		}
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		t.Logf("%d guests: %d KiB resident, of it heap %d, stacks %d; %d goroutines, %d processors",
			len(m.Guests()), sum>>10, s.HeapInuse>>10, s.StackInuse>>10, runtime.NumGoroutine(), runtime.GOMAXPROCS(0))
		return sum
	}
	one := take(1)
	nine := take(8)
	each := (int64(nine) - int64(one)) / 8
	t.Logf("each further guest: %d KiB", each>>10)
	if each > most && !underRace() { // which keeps several bytes for each
		t.Errorf("each further guest takes %d KiB of the monitor, at most %d are promised", each>>10, most>>10)
	}
}
