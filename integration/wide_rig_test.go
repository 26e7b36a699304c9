package integration

import (
	"errors"
	"testing"
	"time"

	"disco/memory"
	"disco/vcpu"
	"disco/vcpu/kvm"
)

// yieldPort is where tiny guests wait for each other (integration/tiny/src/tiny.h).
const yieldPort = 0x518

// relayBase is where the wide rig keeps its relays.
const relayBase = 0xfef0_0000

// wideRig is a rig on several KVM VMs, all of which see the same memory.
type wideRig struct {
	*rig
	vms []*kvm.VM
	set *vcpu.Set
}

// newWideRig builds a machine with the tiny guest name loaded, paused: vCPU i is
// live in VM homes[i] of vms.
func newWideRig(t *testing.T, vms int, homes []int, name, cmdline string) *wideRig {
	t.Helper()
	r := &wideRig{rig: &rig{t: t, off: make(chan struct{})}}
	r.pio = func(port uint16, _ bool, _ []byte) {
		if port == yieldPort {
			time.Sleep(10 * time.Microsecond)
		}
	}
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		t.Fatal(err)
	}
	space, err := memory.New("rig", []memory.Range{{Size: rigMemory}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var errs []error
		if r.set != nil {
			errs = append(errs, r.set.Close())
		}
		for _, vm := range r.vms {
			errs = append(errs, vm.Close())
		}
		errs = append(errs, space.Close(), sys.Close())
		if err := errors.Join(errs...); err != nil {
			t.Errorf("taking the machine down: %v", err)
		}
	})
	for range vms {
		view, err := space.NewView()
		if err != nil {
			t.Fatal(err)
		}
		vm, err := sys.CreateVM()
		if err != nil {
			t.Fatal(err)
		}
		r.vms = append(r.vms, vm)
		for _, err := range []error{
			vm.SplitIRQChip(),
			vm.SetRealModeArea(rigRealMode),
			vm.SetMemory(0, 0, view.Bytes()),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	entry := loadRig(t, space, len(homes), name, cmdline)
	supported, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	r.set, err = vcpu.NewSet(vcpu.SetOptions{
		System: sys, VMs: r.vms, Homes: homes, Handler: r.rig, RelayBase: relayBase,
		CPUID: func(id int) []kvm.CPUIDEntry { return vcpu.CPUID(supported, id, len(homes)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	r.vcpus = r.set.VCPUs()
	if err := r.vcpus[0].SetBoot(entry); err != nil {
		t.Fatal(err)
	}
	return r
}

// spread are the homes of n vCPUs over vms VMs, in turn.
func spread(n, vms int) []int {
	homes := make([]int, n)
	for i := range homes {
		homes[i] = i % vms
	}
	return homes
}
