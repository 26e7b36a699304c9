package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"disco/vcpu/kvm"
	"disco/vmm"
)

// TestKVMOutcomes shows each way for a guest to end, and the exit code, the one
// line and the last lines that go with it.
func TestKVMOutcomes(t *testing.T) {
	for _, tt := range []struct {
		name, guest, cmdline string
		cpus                 int
		timeout              time.Duration
		kind                 vmm.OutcomeKind
		code                 int
		reason               string // part of it
		screen               string
	}{
		{name: "power off", guest: "hello", kind: vmm.PoweredOff, screen: "hello from a tiny guest\n"},
		{name: "power off, 4 CPUs", guest: "smp", cmdline: "cpus=4", cpus: 4, kind: vmm.PoweredOff, screen: "cpu 1 up\ncpu 2 up\ncpu 3 up\nsmp: 4 cpus\n"},
		{name: "panic by pvpanic", guest: "panic", kind: vmm.Crashed, code: 1, reason: "panicked", screen: "panic: all is lost\n"},
		{name: "panic by warm restart", guest: "reboot", cmdline: "magic=0x1234", kind: vmm.Crashed, code: 1, reason: "panicked", screen: "reboot: booted\n"},
		{name: "triple fault", guest: "triple", kind: vmm.Crashed, code: 1, reason: "triple fault", screen: "triple: faulting\n"},
		{name: "KVM gives up", guest: "unemulable", kind: vmm.Crashed, code: 1, reason: "cannot emulate an instruction", screen: "unemulable: executing\n"},
		{name: "debug exit", guest: "exitcode", cmdline: "code=5", kind: vmm.DebugExit, code: 11},
		{name: "debug exit at QEMU's port", guest: "exitcode", cmdline: "code=0 port=0x501", kind: vmm.DebugExit, code: 1},
		{name: "debug exit, largest", guest: "exitcode", cmdline: "code=0x7f", kind: vmm.DebugExit, code: 255},
		{name: "timeout while it runs", guest: "spin", timeout: 500 * time.Millisecond, kind: vmm.TimedOut, code: 124, reason: "500ms", screen: "spin: spinning\n"},
		{name: "timeout while it halts", guest: "halt", timeout: 500 * time.Millisecond, kind: vmm.TimedOut, code: 124, reason: "500ms", screen: "halt: halted\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, screen := config(t, tt.guest, tt.cmdline)
			if tt.cpus != 0 {
				cfg.CPUs = tt.cpus
			}
			if tt.timeout != 0 {
				cfg.Timeout = tt.timeout
			}
			o, _ := runs(t, cfg)
			if o.Kind != tt.kind || o.Code != tt.code {
				t.Errorf("outcome %v, code %d (%s); want %v, code %d", o.Kind, o.Code, o.Reason, tt.kind, tt.code)
			}
			if !strings.Contains(o.Reason, tt.reason) || strings.Contains(o.Reason, "\n") {
				t.Errorf("reason %q: want one line with %q", o.Reason, tt.reason)
			}
			if got := screen.String(); got != tt.screen {
				t.Errorf("console %q, want %q", got, tt.screen)
			}
			last := strings.TrimSuffix(tt.screen, "\n")
			if tt.kind == vmm.Crashed && (len(o.LastLines) == 0 || o.LastLines[len(o.LastLines)-1] != last) {
				t.Errorf("last lines %q, want %q kept", o.LastLines, last)
			}
		})
	}
}

// TestKVMReboot restarts a guest over and over, each way that restarts.
func TestKVMReboot(t *testing.T) {
	for _, how := range []string{"0x602", "0xcf9", "0x64"} {
		t.Run(how, func(t *testing.T) {
			cfg, screen := config(t, "reboot", "how="+how)
			g := launch(t, cfg)
			eventually(t, func() bool { return lines(screen.String(), "reboot: booted") >= 5 })
			g.guest.Kill("enough")
			if o := g.wait(); o.Kind != vmm.Killed {
				t.Errorf("outcome %v: %s", o.Kind, o.Reason)
			}
			if r := g.guest.Report(); r.Reboots < 4 {
				t.Errorf("%d reboots reported, want at least 4", r.Reboots)
			}
		})
	}
}

// TestKVMPowerButton cancels a guest that listens to the button and one that
// does not.
func TestKVMPowerButton(t *testing.T) {
	t.Run("heard", func(t *testing.T) {
		cfg, screen := config(t, "virq", "pin=9 vector=0x40")
		g := launch(t, cfg)
		eventually(t, func() bool { return strings.Contains(screen.String(), "waiting") })
		g.cancel()
		if o := g.wait(); o.Kind != vmm.PoweredOff || o.Code != 0 {
			t.Errorf("outcome %v, code %d: %s", o.Kind, o.Code, o.Reason)
		}
	})
	t.Run("ignored", func(t *testing.T) {
		cfg, screen := config(t, "halt", "")
		cfg.Grace = 50 * time.Millisecond
		g := launch(t, cfg)
		eventually(t, func() bool { return screen.String() != "" })
		start := time.Now()
		g.cancel()
		if o := g.wait(); o.Kind != vmm.Killed {
			t.Errorf("outcome %v: %s", o.Kind, o.Reason)
		}
		if d := time.Since(start); d < cfg.Grace || d > 5*time.Second {
			t.Errorf("killed after %v, want after the grace of %v", d, cfg.Grace)
		}
	})
}

// TestKVMClose takes guests down that never ran, and twice.
func TestKVMClose(t *testing.T) {
	cfg, screen := config(t, "hello", "")
	g, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
	if screen.String() != "" {
		t.Errorf("a guest that was never run said %q", screen.String())
	}
}

// TestKVMShapes boots guests of unusual size.
func TestKVMShapes(t *testing.T) {
	for _, tt := range []struct {
		cpus   int
		memory uint64
	}{{1, vmm.MinMemory}, {1, 6 << 30}, {64, 64 << 20}} {
		t.Run(fmt.Sprintf("%d CPUs, %s", tt.cpus, vmm.FormatSize(tt.memory)), func(t *testing.T) {
			cfg, screen := config(t, "smp", fmt.Sprintf("cpus=%d", tt.cpus))
			cfg.CPUs, cfg.Memory = tt.cpus, tt.memory
			o, _ := runs(t, cfg)
			if o.Kind != vmm.PoweredOff {
				t.Errorf("outcome %v: %s", o.Kind, o.Reason)
			}
			if want := fmt.Sprintf("smp: %d cpus", tt.cpus); lines(screen.String(), want) != 1 {
				t.Errorf("console %q, want %q in it", screen, want)
			}
		})
	}
}

// TestKVMInput types more at a guest's serial port than fits in it.
func TestKVMInput(t *testing.T) {
	cfg, screen := config(t, "echo", "")
	keyboard, typist := io.Pipe()
	defer typist.Close()
	cfg.Stdin = keyboard
	g := launch(t, cfg)
	enter := func(s string) {
		if _, err := io.WriteString(typist, s); err != nil {
			t.Error(err)
		}
	}
	eventually(t, func() bool { return strings.Contains(screen.String(), "listening\n") })
	long := strings.Repeat("more than any FIFO holds, ", 20)
	enter("a ")
	enter(long)
	enter("and the end\n")
	if o := g.wait(); o.Kind != vmm.PoweredOff {
		t.Errorf("outcome %v: %s", o.Kind, o.Reason)
	}
	if want := "echo: listening\na " + long + "and the end\n"; screen.String() != want {
		t.Errorf("console %q, want %q", screen, want)
	}
}

// TestKVMReport: a run's account names what it cost.
func TestKVMReport(t *testing.T) {
	cfg, _ := config(t, "exits", "")
	cfg.Name = "accounted"
	_, r := runs(t, cfg)
	if r.Name != cfg.Name || r.CPUs != 1 || r.Memory != cfg.Memory || r.Outcome.Kind != vmm.PoweredOff {
		t.Errorf("report %+v", r)
	}
	if r.Exits["io"] == 0 || r.Exits["mmio"] != 10 || r.UserspaceExit < r.Exits["io"]+r.Exits["mmio"] {
		t.Errorf("exits %v, sum %d", r.Exits, r.UserspaceExit)
	}
	if r.Missed < 20 { // the spare port and address have no device
		t.Errorf("%d missed accesses", r.Missed)
	}
	if !(0 < r.Built && r.Built <= r.Started && r.Started < r.Ended && r.Ended < patience.Seconds()) {
		t.Errorf("built %v s, started %v s, ended %v s", r.Built, r.Started, r.Ended)
	}
}

// TestKVMDevices drives a virtio device through ECAM, BARs, MSI-X and its ring.
func TestKVMDevices(t *testing.T) {
	cfg, screen := config(t, "pci", "")
	o, _ := runs(t, cfg)
	if o.Kind != vmm.PoweredOff || !strings.Contains(screen.String(), " 1af4:1044 ") {
		t.Errorf("outcome %v (%s); console %q, want an entropy device in it", o.Kind, o.Reason, screen)
	}
	const count = 200
	cfg, screen = config(t, "rng", fmt.Sprintf("count=%d", count))
	o, r := runs(t, cfg)
	want := fmt.Sprintf("rng: %d requests, %d interrupts, the last 16 bytes ", count, count)
	if o.Kind != vmm.PoweredOff || !strings.HasPrefix(screen.String(), want) {
		t.Errorf("outcome %v (%s); console %q, want %q", o.Kind, o.Reason, screen, want)
	}
	// 256 reads of empty slots and the device's set-up come out; kicks do not.
	if n := r.Exits["mmio"]; n > 256+count {
		t.Errorf("%d MMIO exits for %d requests: kicks come out to the monitor", n, count)
	}
}

// TestKVMMissing: a host without KVM is told what to do.
func TestKVMMissing(t *testing.T) {
	for _, path := range []string{"/nonexistent/kvm", "/dev/null"} {
		s, err := kvm.Open(path)
		if err == nil {
			t.Errorf("%s was opened as KVM", path)
			s.Close()
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, path) || strings.Contains(msg, "\n") {
			t.Errorf("error %q: want one line that names %s", msg, path)
		}
	}
}

// TestKVMBadConfig: all problems at once, before anything is opened.
func TestKVMBadConfig(t *testing.T) {
	_, err := vmm.New(vmm.Config{Kernel: "/nonexistent/vmlinux", CPUs: 100000, Memory: 1})
	var bad *vmm.ConfigError
	if !errors.As(err, &bad) || len(bad.Problems) != 3 {
		t.Errorf("got %v, want three problems", err)
	}
}

// TestKVMNoRoom: what does not fit in memory beside the kernel is told in one
// line, and the half-built guest is taken down once.
func TestKVMNoRoom(t *testing.T) {
	cfg, _ := config(t, "hello", "")
	cfg.Memory = vmm.MinMemory
	cfg.Initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(cfg.Initrd, make([]byte, vmm.MinMemory-4096), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := vmm.New(cfg)
	var bad *vmm.ConfigError
	if !errors.As(err, &bad) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want one line of a *vmm.ConfigError", err)
	}
}

// TestKVMNotAKernel: New says what the file is instead, and leaves nothing.
func TestKVMNotAKernel(t *testing.T) {
	cfg, _ := config(t, "hello", "")
	cfg.Kernel = "/proc/self/exe"
	g, err := vmm.New(cfg)
	if err == nil { // an ELF for Linux: it may even load, and must then only crash
		o, err := g.Run(context.Background())
		if err != nil || o.Kind == vmm.PoweredOff {
			t.Errorf("outcome %v, %v", o.Kind, err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	var bad *vmm.ConfigError
	if !errors.As(err, &bad) {
		t.Errorf("got %v, want a *vmm.ConfigError", err)
	}
}
