package integration

import (
	"errors"
	"fmt"
	"runtime"
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
	// A thread in KVM may keep a processor of Go's for 10 ms.
	before := runtime.GOMAXPROCS(runtime.NumCPU() + vms*len(homes))
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
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
		if t.Failed() {
			r.explain()
		}
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

// wait is rig.wait, but that no vCPU waits for one that has failed.
func (r *wideRig) wait() {
	r.t.Helper()
	for _, v := range r.vcpus {
		go func() {
			<-v.Done()
			if v.End().Cause != vcpu.Stopped {
				r.set.Stop()
			}
		}()
	}
	r.rig.wait()
	for _, v := range r.vcpus {
		if e := v.End(); e.Cause != vcpu.Stopped {
			r.t.Error(e.Text)
		}
	}
}

// powerOff runs the guest and fails the test unless it powers off.
func (r *wideRig) powerOff() {
	r.t.Helper()
	r.set.Start()
	r.wait()
	select {
	case <-r.off:
	default:
		r.t.Fatalf("it did not power off; console: %q", r.console())
	}
}

// explain says where the vCPUs of a failed test stood.
func (r *wideRig) explain() {
	for _, v := range r.vcpus {
		at := "?"
		if regs, err := v.KVM().Regs(); err == nil {
			at = fmt.Sprintf("%#x", regs.RIP)
		}
		r.t.Logf("vCPU %d in VM %d at RIP %s: %d relayed to it, %d port exits, %d kicks", v.ID(), r.set.Home(v.ID()), at,
			v.Relayed(), v.Exits(kvm.ExitIO), v.Exits(kvm.ExitIntr))
	}
}

// spread are the homes of n vCPUs over vms VMs, in turn.
func spread(n, vms int) []int {
	homes := make([]int, n)
	for i := range homes {
		homes[i] = i % vms
	}
	return homes
}
