package vcpu

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"disco/vcpu/kvm"
)

// SetOptions say what a guest's vCPUs are.
type SetOptions struct {
	// VMs are the guest's KVM VMs, one for each node that it runs on, with
	// split interrupt chips and their memory. They stay the caller's.
	VMs []*kvm.VM
	// Homes has for each vCPU the index of the VM that it is live in.
	Homes []int
	// Handler takes the device accesses of all vCPUs.
	Handler Handler
	// CPUID makes the leaves that vCPU id sees. A wide set takes from them what
	// cannot work across VMs.
	CPUID func(id int) []kvm.CPUIDEntry
	// RelayBase is the guest-physical address of RelaySize bytes that are
	// neither RAM nor devices, page-aligned and below 4 GiB, for a wide set.
	RelayBase uint64
	// CPUs are the host CPUs on which the threads of each VM run; without it, or
	// with an empty entry, wherever the kernel puts them.
	CPUs [][]int
	// Thread, if not nil, is called on each vCPU thread before it enters the
	// guest, with the index of its VM and its thread id.
	Thread func(vm, tid int)
	// Moved, if not nil, is called at the end of a Move, when the guest runs
	// again: the caller's chance to route the vCPU's device interrupts anew.
	Moved func(id, from, to int)
}

// Set is the vCPUs of one guest.
type Set struct {
	o     SetOptions
	vcpus []*VCPU

	affinity sync.Mutex // guards cpus
	cpus     [][]int
}

// NewSet makes the vCPUs: created, their CPUID leaves set, their APICs in x2APIC
// mode, the boot processor (vCPU 0) waiting for SetBoot and the others for the
// guest to start them. The caller must Close the Set before the VMs. On error
// nothing is left behind.
func NewSet(o SetOptions) (_ *Set, err error) {
	if len(o.VMs) != 1 {
		return nil, fmt.Errorf("a guest of %d KVM VMs: not supported", len(o.VMs))
	}
	s := &Set{o: o, cpus: make([][]int, len(o.VMs))}
	copy(s.cpus, o.CPUs)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for id := range o.Homes {
		c, err := o.VMs[0].CreateVCPU(id)
		if err != nil {
			return nil, err
		}
		v := New(id, c, o.Handler)
		v.entered = s.entered
		s.vcpus = append(s.vcpus, v)
		if err := v.Reset(o.CPUID(id)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// entered is called on each thread before it enters the guest.
func (s *Set) entered(b *incarnation) error {
	s.affinity.Lock()
	cpus := s.cpus[b.vm]
	s.affinity.Unlock()
	if err := b.pin(cpus); err != nil {
		return err
	}
	if s.o.Thread != nil {
		s.o.Thread(b.vm, int(b.tid.Load()))
	}
	return nil
}

// VCPUs are the guest's vCPUs by id. The slice is the caller's.
func (s *Set) VCPUs() []*VCPU { return slices.Clone(s.vcpus) }

// Start begins to run the guest.
func (s *Set) Start() {
	for _, v := range s.vcpus {
		v.Start()
	}
}

// Stop asks all vCPUs to end, from any thread, and does not wait.
func (s *Set) Stop() {
	for _, v := range s.vcpus {
		v.Stop()
	}
}

// Close frees the vCPUs. They must have ended, or never been started.
func (s *Set) Close() error {
	var errs []error
	for _, v := range s.vcpus {
		errs = append(errs, v.Close())
	}
	s.vcpus = nil
	return errors.Join(errs...)
}

// Home is the index of the VM in which vCPU id is live.
func (s *Set) Home(id int) int { return int(s.vcpus[id].live.Load()) }

// Move makes vCPU id live in VM to.
func (s *Set) Move(id, to int) error {
	if to == s.Home(id) {
		return nil
	}
	return fmt.Errorf("vCPU %d: the guest has no KVM VM %d", id, to)
}

// SetCPUs binds the threads of a VM to host CPUs, those that run and those that
// will.
func (s *Set) SetCPUs(vm int, cpus []int) error {
	s.affinity.Lock()
	defer s.affinity.Unlock()
	s.cpus[vm] = slices.Clone(cpus)
	var errs []error
	for _, v := range s.vcpus {
		if err := v.bodies[vm].pin(cpus); err != nil {
			errs = append(errs, fmt.Errorf("vCPU %d: %w", v.id, err))
		}
	}
	return errors.Join(errs...)
}

// Threads are the ids of the threads that run the vCPUs of a VM, relays among
// them, as far as they have begun and not ended.
func (s *Set) Threads(vm int) []int {
	var tids []int
	for _, v := range s.vcpus {
		if tid := v.bodies[vm].tid.Load(); tid > 0 {
			tids = append(tids, int(tid))
		}
	}
	return tids
}

// Relayed is how many interrupts went from one VM of the guest to another.
func (s *Set) Relayed() uint64 {
	var n atomic.Uint64
	for _, v := range s.vcpus {
		n.Add(v.Relayed())
	}
	return n.Load()
}

// MSIHome is the index of the VM to which a device's message with this address
// goes by the shortest way. Any other VM works too, through a relay.
func (s *Set) MSIHome(address uint64) int {
	return 0
}

// SignalMSI raises an interrupt by its message. delivered is false where the
// message names no vCPU that takes it.
func (s *Set) SignalMSI(address uint64, data uint32) (delivered bool, err error) {
	return s.o.VMs[s.MSIHome(address)].SignalMSI(address, data)
}
