package vcpu

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

// SetOptions say what a guest's vCPUs are.
type SetOptions struct {
	// System is what the VMs were made from; a wide set asks it what it can do.
	System *kvm.System
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
	// neither RAM nor devices, aligned to its size and below 4 GiB, for a wide
	// set.
	RelayBase uint64
	// CPUs are the host CPUs on which the threads of each VM run; without it, or
	// with an empty entry, wherever the kernel puts them.
	CPUs [][]int
	// Pin, if not nil, is asked for the host CPUs of each vCPU's threads where
	// CPUs and SetCPUs say nothing.
	Pin func(id, vm int) []int
	// Thread, if not nil, is called on each vCPU thread before it enters the
	// guest, with the index of its VM and its thread id.
	Thread func(vm, tid int)
	// Stolen, if not nil, is called on the thread of a vCPU that was held for so
	// long, before it runs its guest again, if the guest keeps count of steal time:
	// 8 aligned bytes at that guest-physical address.
	Stolen func(at uint64, held time.Duration)
	// Mend, if not nil, is called on the thread of a vCPU that could not reach a
	// page of the memory that a VM was given, and says whether it can now. Else the
	// vCPU ends.
	Mend func() bool
	// Moved, if not nil, is called at the end of a Move, when the guest runs
	// again: the caller's chance to route the vCPU's device interrupts anew.
	Moved func(id, from, to int)
}

// Set is the vCPUs of one guest, on one KVM VM or, when it is wide, on several.
//
// In a wide set every vCPU has an incarnation in each VM. One is live: it runs
// the guest. The others are relays: what the guest's vCPUs in that VM send to
// this one, KVM delivers to the relay there, and its thread sends it on as a
// message to the live one. Timers, EOIs and interrupts within a VM stay in the
// kernel. The page comments of relayImage and gestate have the protocol.
type Set struct {
	o     SetOptions
	vcpus []*VCPU
	gate  gate

	code     []byte   // of relays; all VMs map it
	data     [][]byte // page tables and stacks of relays, one mapping for each VM
	transfer transfer
	moving   sync.Mutex // one Move at a time; also guards started
	started  bool

	trapping sync.Mutex // guards traps
	traps    []uint64   // where relays must not run: the code with which the guest starts CPUs

	affinity sync.Mutex // guards cpus
	cpus     [][]int
}

// NewSet makes the vCPUs: created, their CPUID leaves set, their APICs in x2APIC
// mode, the boot processor (vCPU 0) waiting for SetBoot and the others for the
// guest to start them. The caller must Close the Set before the VMs. On error
// nothing is left behind.
//
// A wide set refuses a KVM that lacks something it needs; whether page tables
// are two-dimensional is for the caller to ask (kvm.TwoDimensional).
func NewSet(o SetOptions) (_ *Set, err error) {
	s := &Set{o: o, cpus: make([][]int, len(o.VMs))}
	s.gate.cond.L = &s.gate.mu
	copy(s.cpus, o.CPUs)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.check(); err != nil {
		return nil, err
	}
	for id, home := range o.Homes {
		v := &VCPU{id: id, handler: o.Handler, entered: s.entered, done: make(chan struct{})}
		v.tellOf(o.Stolen)
		v.mend = o.Mend
		v.live.Store(int32(home))
		s.vcpus = append(s.vcpus, v)
		for i, vm := range o.VMs {
			c, err := vm.CreateVCPU(id)
			if err != nil {
				return nil, err
			}
			v.embody(c, i)
		}
		cpuid := o.CPUID(id)
		if s.wide() {
			v.set = s
			cpuid = wideCPUID(cpuid)
		}
		if err := v.Reset(cpuid); err != nil {
			return nil, err
		}
	}
	if s.wide() {
		if err := s.prepare(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Set) wide() bool { return len(s.o.VMs) > 1 }

func (s *Set) check() error {
	if len(s.o.VMs) == 0 {
		return errors.New("a guest without a KVM VM")
	}
	for id, home := range s.o.Homes {
		if home < 0 || home >= len(s.o.VMs) {
			return fmt.Errorf("vCPU %d: the guest has no KVM VM %d", id, home)
		}
	}
	if !s.wide() {
		return nil
	}
	switch base := s.o.RelayBase; {
	case base%RelaySize != 0 || base+RelaySize > 1<<32:
		return fmt.Errorf("relays at %#x: not a megabyte below 4 GiB", base)
	case len(s.o.Homes) > maxRelays:
		return fmt.Errorf("%d vCPUs: at most %d on several KVM VMs", len(s.o.Homes), maxRelays)
	}
	return s.o.System.Wide()
}

// prepare makes relays of what is not live.
func (s *Set) prepare() (err error) {
	if s.code, err = mapPages(relayTables); err != nil {
		return err
	}
	copy(s.code, relayImage(s.o.RelayBase))
	for i, vm := range s.o.VMs {
		data, err := mapPages(relayStacks - relayTables + len(s.vcpus)*relayStack)
		if err != nil {
			return err
		}
		copy(data, relayPaging(s.o.RelayBase))
		s.data = append(s.data, data)
		err = errors.Join(
			vm.SetMemoryReadOnly(RelaySlot, s.o.RelayBase, s.code),
			vm.SetMemory(RelaySlot+1, s.o.RelayBase+relayTables, data),
		)
		if err != nil {
			return fmt.Errorf("relays of KVM VM %d: %w", i, err)
		}
	}
	if err := s.alignClocks(); err != nil {
		return err
	}
	for _, v := range s.vcpus {
		boot := v.id == 0
		v.begun.Store(boot)
		for _, b := range v.bodies {
			var err error
			switch {
			case !boot:
				// The live one too, which another may take over from before anybody
				// starts the vCPU.
				b.unborn = true
				err = b.listen()
			case b != v.body():
				err = v.relayMode(b)
			}
			if err != nil {
				return fmt.Errorf("vCPU %d: relay in KVM VM %d: %w", v.id, b.vm, err)
			}
		}
	}
	s.transfer, err = newTransfer(s.o.System, s.vcpus[0].bodies)
	return err
}

// alignClocks gives all incarnations one time-stamp counter and all VMs one
// kvmclock.
func (s *Set) alignClocks() error {
	offset, err := s.vcpus[0].KVM().TSCOffset()
	if err != nil {
		return fmt.Errorf("vCPU 0: %w", err)
	}
	for _, v := range s.vcpus {
		for _, b := range v.bodies {
			if err := b.kvm.SetTSCOffset(offset); err != nil {
				return fmt.Errorf("vCPU %d: %w", v.id, err)
			}
		}
	}
	for _, vm := range s.o.VMs[1:] {
		clock, err := s.o.VMs[0].Clock()
		if err != nil {
			return err
		}
		if err := vm.SetClock(clock); err != nil {
			return err
		}
	}
	return nil
}

// mapPages is zeroed memory outside the Go heap, of at least size bytes.
func mapPages(size int) ([]byte, error) {
	size = (size + pageSize - 1) &^ (pageSize - 1)
	p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("%d bytes for relays: %w", size, err)
	}
	return p, nil
}

const pageSize = 4096

// learn notes that the guest starts CPUs at address at, so that relays are kept
// from running there. Of more than kvm.MaxBreakpoints the first are kept.
func (s *Set) learn(at uint64) {
	s.trapping.Lock()
	news := len(s.traps) < kvm.MaxBreakpoints && !slices.Contains(s.traps, at)
	if news {
		s.traps = append(s.traps, at)
	}
	s.trapping.Unlock()
	if !news {
		return
	}
	for _, v := range s.vcpus {
		for _, b := range v.bodies {
			if b != v.body() {
				b.kick()
			}
		}
	}
}

func (s *Set) knows(at uint64) bool {
	s.trapping.Lock()
	defer s.trapping.Unlock()
	return slices.Contains(s.traps, at)
}

// trap makes a relay stop before it would run what learn has noted.
func (s *Set) trap(b *incarnation) error {
	s.trapping.Lock()
	traps := s.traps
	s.trapping.Unlock()
	if len(traps) == b.relay.traps {
		return nil
	}
	b.relay.traps = len(traps)
	return b.kvm.Break(traps...)
}

// entered is called on each thread before it enters the guest.
func (s *Set) entered(v *VCPU, b *incarnation) error {
	s.affinity.Lock()
	cpus := s.cpus[b.vm]
	s.affinity.Unlock()
	if len(cpus) == 0 && s.o.Pin != nil {
		cpus = s.o.Pin(v.id, b.vm)
	}
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

// Start begins to run the guest. A thread in KVM_RUN may keep one of Go's
// processors for up to 10 ms, so GOMAXPROCS had best be raised by the number of
// vCPUs times that of VMs.
func (s *Set) Start() {
	s.moving.Lock()
	defer s.moving.Unlock()
	s.started = true
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
	s.moving.Lock()
	defer s.moving.Unlock()
	var errs []error
	for _, v := range s.vcpus {
		errs = append(errs, v.Close())
	}
	s.vcpus = nil
	for i, data := range s.data {
		errs = append(errs,
			s.o.VMs[i].SetMemory(RelaySlot, s.o.RelayBase, nil),
			s.o.VMs[i].SetMemory(RelaySlot+1, s.o.RelayBase+relayTables, nil),
			unix.Munmap(data))
	}
	s.data = nil
	if s.code != nil {
		errs = append(errs, unix.Munmap(s.code))
		s.code = nil
	}
	return errors.Join(errs...)
}

// Home is the index of the VM in which vCPU id is live.
func (s *Set) Home(id int) int { return int(s.vcpus[id].live.Load()) }

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
func (s *Set) Relayed() (n uint64) {
	for _, v := range s.vcpus {
		n += v.Relayed()
	}
	return n
}

// MSIHome is the index of the VM to which a device's message with this address
// goes by the shortest way. Any other VM works too, through a relay.
func (s *Set) MSIHome(address uint64) int {
	if !s.wide() {
		return 0
	}
	id := int(address>>12&0xff | address>>40<<8)
	const logical = 1 << 2
	if address&logical != 0 {
		// x2APIC logical ids are a cluster of 16 and a bit in it (Intel SDM
		// vol. 3A §10.12.10.2); the first CPU named stands for all.
		id = id>>16<<4 | bits.TrailingZeros16(uint16(id))
	}
	if id >= len(s.vcpus) {
		return 0
	}
	return s.Home(id)
}

// SignalMSI raises an interrupt by its message. delivered is false where the
// message names no vCPU that takes it.
func (s *Set) SignalMSI(address uint64, data uint32) (delivered bool, err error) {
	return s.o.VMs[s.MSIHome(address)].SignalMSI(address, data)
}
