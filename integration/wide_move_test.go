package integration

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"

	"disco/vcpu/kvm"
)

// TestKVMWideMove moves vCPUs between KVM VMs while they send each other
// interrupts in step, with their timers ticking, and sees nothing lost, nothing
// doubled, and every register kept.
func TestKVMWideMove(t *testing.T) { wideMove(t, 1000) }

func wideMove(t *testing.T, moves int) {
	for _, tt := range []struct {
		name, cmdline string
		vms           int
	}{
		{"periodic timers", "", 2},
		{"deadline timers", "deadline=1", 2},
		{"vector registers", "sse=1", 2},
		{"halted", "halt=1", 2},
		{"four VMs", "deadline=1", 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newWideRig(t, tt.vms, spread(2, tt.vms), "move", tt.cmdline)
			var over atomic.Bool
			yield := r.pio
			r.pio = func(port uint16, write bool, p []byte) {
				if port == sparePort && !write && over.Load() {
					p[0] = 1
				}
				yield(port, write, p)
			}
			r.set.Start()
			if !spinUntil(func() bool { return r.console() != "" }) {
				t.Error("the guest did not come up")
			}
			for i := range moves {
				id := i % 2
				// Let it run a little, but not always.
				if had := r.vcpus[0].Exits(kvm.ExitIO); i%8 != 0 && !spinUntil(func() bool { return r.vcpus[0].Exits(kvm.ExitIO) > had+uint64(i%4) }) {
					t.Errorf("it stands still after move %d", i)
					break
				}
				if err := r.set.Move(id, (r.set.Home(id)+1)%tt.vms); err != nil {
					t.Errorf("move %d: %v", i, err)
					break
				}
			}
			over.Store(true)
			r.wait()
			r.expect("move: up\nmove: 0 registers changed, 0 answers too many\n")
			t.Logf("%d relayed", r.set.Relayed())
		})
	}
}

// TestKVMWideMoveKeepsState compares all that KVM says of a vCPU before and after.
func TestKVMWideMoveKeepsState(t *testing.T) {
	r := newWideRig(t, 2, []int{0}, "hello", "")
	v := r.vcpus[0]
	x, err := v.KVM().XSave()
	if err != nil {
		t.Fatal(err)
	}
	// XMM and YMM registers: bits 1 and 2 of XSTATE_BV (Intel SDM vol. 1 §13.4).
	x[512] |= 7
	for i := range 256 {
		x[160+i], x[576+i] = byte(i), byte(255-i)
	}
	if err := v.KVM().SetXSave(x); err != nil {
		x[512] &^= 4 // no AVX here
		if err := v.KVM().SetXSave(x); err != nil {
			t.Fatal(err)
		}
		t.Log("this KVM has no AVX")
	}
	before := state(t, v.KVM())
	for i := range 4 {
		if err := r.set.Move(0, (i+1)%2); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.set.Move(0, 1); err != nil {
		t.Fatal(err)
	}
	after := state(t, v.KVM())
	for name, want := range before {
		if got := after[name]; !bytes.Equal(got, want) {
			t.Errorf("%s was\n%x\nand is\n%x", name, want, got)
		}
	}
	r.powerOff()
	r.expect("hello from a tiny guest\n")
}

func state(t *testing.T, c *kvm.VCPU) map[string][]byte {
	t.Helper()
	s := map[string][]byte{}
	add := func(name string, v any, err error) {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s[name] = fmt.Append(nil, v)
	}
	regs, err := c.Regs()
	add("registers", *regs, err)
	sregs, err := c.Sregs()
	add("special registers", *sregs, err)
	x, err := c.XSave()
	add("extended registers", x, err)
	xcrs, err := c.XCRS()
	add("extended control registers", *xcrs, err)
	debug, err := c.DebugRegs()
	add("debug registers", *debug, err)
	lapic, err := c.LAPIC()
	add("local APIC", *lapic, err)
	events, err := c.Events()
	add("events", *events, err)
	mp, err := c.MPState()
	add("MP state", mp, err)
	offset, err := c.TSCOffset()
	add("TSC offset", offset, err)
	return s
}

// TestKVMWideMoveRefuses: what cannot be moved stays, and says why.
func TestKVMWideMoveRefuses(t *testing.T) {
	r := newWideRig(t, 2, []int{0, 1}, "hello", "")
	for _, tt := range []struct{ id, to int }{{-1, 0}, {2, 0}, {0, 2}, {0, -1}} {
		if err := r.set.Move(tt.id, tt.to); err == nil {
			t.Errorf("vCPU %d was moved to VM %d", tt.id, tt.to)
		}
	}
	r.powerOff()
	if err := r.set.Move(0, 1); err == nil {
		t.Error("a vCPU that has ended was moved")
	}
}
