package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"disco/integration/guest"
)

// TestLabReboot restarts a guest, whose devices must work the second time as they
// did the first.
func TestLabReboot(t *testing.T) {
	const size = 1 << 20
	report := filepath.Join(t.TempDir(), "report.json")
	mark, data := testDisk(t, "mark", size), testDisk(t, "data", size)
	l := bootGuest(t, "cpus,net,disk-read=vdb,reboot-once=vda,disk=vdb",
		"--cpus", "1", "--memory", "256M", "--disk", mark, "--disk", data, "--report", report)
	l.ends(0)
	l.did("cpus", "net", "disk-read", "reboot-once", "disk")
	if got := l.number("cpus"); got != 1 {
		t.Errorf("%d CPUs, want 1", got)
	}
	if n := strings.Count(l.console.String(), guest.Marker); n != 2 {
		t.Errorf("it started %d times, want 2, %s", n, l.stood())
	}
	holds(t, data, size, guest.PatternGuest)
	if r := readReport(t, report); r.Reboots != 1 {
		t.Errorf("%d reboots reported, want 1", r.Reboots)
	}
}

// TestLabPanic: a panic is reported, with the kernel's last words, whether or not
// there were modules to report it.
func TestLabPanic(t *testing.T) {
	for _, tt := range []struct {
		name  string
		args  []string
		words string
	}{
		{"before modules", []string{"--kernel", guestKernel(t), "--cmdline", "quiet"}, "Unable to mount root fs"},
		{"after modules", []string{"--cmdline", "disco.task=panic"}, "sysrq triggered crash"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := disco(t, append([]string{"run", "--host", "here", "--cpus", "1", "--memory", "256M", "--net", "none"}, tt.args...)...).start()
			l.ends(1)
			said := strings.Split(strings.TrimSuffix(l.messages.String(), "\n"), "\n")
			if last := said[len(said)-1]; !strings.HasPrefix(last, "disco: ") || !strings.Contains(last, "panicked") {
				t.Errorf("disco said last %q", last)
			}
			for _, want := range []string{"Kernel panic - not syncing", tt.words} {
				if !strings.Contains(l.messages.String(), want) {
					t.Errorf("not among the last lines: %q, %s", want, l.stood())
				}
			}
		})
	}
}

// TestLabTimeout ends a guest that would go on: in its boot, or waiting for a button
// that nobody presses.
func TestLabTimeout(t *testing.T) {
	l := bootGuest(t, "hello", "--cpus", "2", "--memory", "256M", "--timeout", "3s")
	l.ends(124)
	l.oneLine("disco: ", "3s")
}
