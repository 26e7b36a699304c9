package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	kernels "disco/vmm/boot"

	"disco/integration/guest"
)

// vmlinux writes the ELF that is in the default guest's bzImage to a file, with
// its entry point taken away if pvh is set: then there is only the one of PVH.
func vmlinux(t testing.TB, pvh bool) string {
	t.Helper()
	b, err := os.ReadFile(guestKernel(t))
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernels.ParseKernel("vmlinuz", bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vmlinux")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := k.Unpack(f); err != nil {
		t.Fatal(err)
	}
	if pvh {
		const entryAt = 24 // e_entry of an ELF64 header
		if _, err := f.WriteAt(make([]byte, 8), entryAt); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// TestLabVmlinux boots an ELF kernel by its own entry point, and has the guest
// ignore its power button: it is killed when the grace period is over.
func TestLabVmlinux(t *testing.T) {
	l := disco(t, "run", "--host", "here", "--kernel", vmlinux(t, false), "--initrd", guestInitrd(t),
		"--cmdline", "quiet disco.task=hello,hang", "--cpus", "1", "--memory", "256M", "--net", "none", "--grace", "2s").start()
	l.says(guest.Prefix + "hanging=1")
	pressed := time.Now()
	if err := l.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.ends(0)
	if d := time.Since(pressed); d < 2*time.Second {
		t.Errorf("killed after %v, want 2 s", d)
	}
	if said := l.messages.String(); !strings.Contains(said, "killed: still running 2s after the power button") {
		t.Errorf("disco said %q", said)
	}
	l.did("hello")
}

// TestLabPVH boots an ELF kernel by PVH, with the 8250 as its only console.
func TestLabPVH(t *testing.T) {
	l := bootGuest(t, "hello", "--kernel", vmlinux(t, true), "--initrd", guestInitrd(t),
		"--cpus", "2", "--memory", "256M", "--net", "none", "--console", "serial")
	l.ends(0)
	l.did("hello")
	// Its kernel is not told to be quiet.
	for _, want := range []string{"Hypervisor detected: KVM", "Booting paravirtualized kernel"} {
		if !contains(&l.console, want) {
			t.Errorf("the kernel did not say %q", want)
		}
	}
	if got := l.number("cpus"); got != 2 {
		t.Errorf("%d CPUs, want 2", got)
	}
}

func contains(s *screen, text string) bool { return strings.Contains(s.String(), text) }
