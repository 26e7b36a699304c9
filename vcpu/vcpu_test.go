package vcpu

import (
	"testing"
	"time"

	"disco/vcpu/kvm"
)

// ports counts port writes and serves nothing else.
type ports struct{ writes chan byte }

func (p ports) PIO(_ uint16, write bool, b []byte) error {
	if write {
		p.writes <- b[0]
	}
	return nil
}

func (ports) MMIO(uint64, bool, []byte) error { return nil }

// start runs code at 0x1000 in 32-bit protected mode on one vCPU.
func start(t *testing.T, h Handler, code ...byte) *VCPU {
	t.Helper()
	v := ready(t, h, code...)
	v.Start()
	return v
}

// ready is a vCPU that has not been started with such code.
func ready(t *testing.T, h Handler, code ...byte) *VCPU {
	t.Helper()
	sys, vms := machines(t, 1, code)
	c, err := vms[0].CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	v := New(0, c, h)
	t.Cleanup(func() { v.Close() })
	cpuid, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Reset(CPUID(cpuid, 0, 1)); err != nil {
		t.Fatal(err)
	}
	if err := v.SetBoot(Boot{RIP: 0x1000, RSP: 0x8000, GDTLimit: 0x1f, Code: 0x10, Data: 0x18}); err != nil {
		t.Fatal(err)
	}
	return v
}

func wait(t *testing.T, v *VCPU) End {
	t.Helper()
	select {
	case <-v.Done():
		return v.End()
	case <-time.After(20 * time.Second):
		v.Stop()
		t.Fatal("the vCPU did not end")
		return End{}
	}
}

// TestKVMKicksAreNotLost stops a vCPU in a tight loop at moments that cover
// everything from before its thread exists to deep in the guest.
func TestKVMKicksAreNotLost(t *testing.T) {
	v := start(t, ports{}, 0xeb, 0xfe) // jmp .
	for i := range 5000 {
		before := v.Exits(kvm.ExitIntr)
		v.Kick()
		for deadline := time.Now().Add(10 * time.Second); v.Exits(kvm.ExitIntr) == before; {
			if time.Now().After(deadline) {
				t.Fatalf("kick %d was lost", i)
			}
		}
	}
	v.Stop()
	if e := wait(t, v); e.Cause != Stopped {
		t.Errorf("ended with %+v", e)
	}
}

func TestKVMStopBeforeTheThreadRuns(t *testing.T) {
	for range 50 {
		v := start(t, ports{}, 0xeb, 0xfe)
		v.Stop()
		if e := wait(t, v); e.Cause != Stopped {
			t.Fatalf("ended with %+v", e)
		}
	}
}

func TestKVMPortWrite(t *testing.T) {
	h := ports{make(chan byte, 10)}
	v := start(t, h, 0xb0, 0x2a, 0xe6, 0x10, 0xeb, 0xfe) // mov al, 42; out 0x10, al; jmp .
	if got := <-h.writes; got != 42 {
		t.Errorf("port write %d, want 42", got)
	}
	v.Stop()
	wait(t, v)
}

func TestKVMTripleFault(t *testing.T) {
	v := start(t, ports{}, 0x0f, 0x0b) // ud2 without an IDT
	if e := wait(t, v); e.Cause != Shutdown {
		t.Errorf("ended with %+v, want a shutdown", e)
	}
}
