package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// IOAPICPins is how many GSIs a split irqchip keeps for the user-space I/O APIC.
const IOAPICPins = 24

// VM is one KVM virtual machine. Its methods may be called from many threads.
type VM struct {
	fd      int
	runSize int
	anyLen  bool
}

type enableCap struct {
	cap, flags uint32
	args       [4]uint64
	_          [64]uint8
}

// CreateVM makes a VM with no memory, no interrupt controller and no vCPUs. The
// caller must Close it, after its vCPUs.
func (s *System) CreateVM() (*VM, error) {
	fd, err := call(s.fd, reqCreateVM, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = call(s.fd, reqCreateVM, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	unix.CloseOnExec(int(fd))
	return &VM{fd: int(fd), runSize: s.runSize, anyLen: s.CheckExtension(CapIOEventFDAnyLen) != 0}, nil
}

// checkExtension is KVM_CHECK_EXTENSION asked of the VM (KVM api §4.4).
func (m *VM) checkExtension(c Capability) int {
	n, err := call(m.fd, reqCheckExtension, uintptr(c))
	if err != nil {
		return 0
	}
	return int(n)
}

// EnableCap is KVM_ENABLE_CAP on the VM (KVM api §4.37, §7).
func (m *VM) EnableCap(c Capability, args ...uint64) error {
	e := &enableCap{cap: uint32(c)}
	copy(e.args[:], args)
	if _, err := callPtr(m.fd, reqEnableCap, unsafe.Pointer(e)); err != nil {
		return fmt.Errorf("KVM_ENABLE_CAP %d: %w", c, err)
	}
	return nil
}

// Flags of KVM_CAP_X2APIC_API.
const use32BitIDs, noBroadcastQuirk = 1, 2

// SplitIRQChip puts local APICs in the kernel and leaves the I/O APIC, with
// IOAPICPins pins, to the monitor (KVM api §7.5). x2APIC ids are full 32-bit
// numbers, without KVM's broadcast quirk (§7.7). It comes before any vCPU.
func (m *VM) SplitIRQChip() error {
	if err := m.EnableCap(CapSplitIRQChip, IOAPICPins); err != nil {
		return err
	}
	return m.EnableCap(CapX2APICAPI, use32BitIDs|noBroadcastQuirk)
}

// SetRealModeArea gives KVM on older Intel CPUs the four pages from addr that it
// needs to run real mode (KVM api §4.36, §4.41). They must lie below 4 GiB,
// outside every memory slot. Other CPUs ignore it.
func (m *VM) SetRealModeArea(addr uint64) error {
	id := addr
	if _, err := callPtr(m.fd, reqSetIdentityAddr, unsafe.Pointer(&id)); err != nil {
		return fmt.Errorf("KVM_SET_IDENTITY_MAP_ADDR: %w", err)
	}
	if _, err := call(m.fd, reqSetTSSAddr, uintptr(addr+0x1000)); err != nil {
		return fmt.Errorf("KVM_SET_TSS_ADDR: %w", err)
	}
	return nil
}

// SetMemory puts the host memory hva at guest-physical address gpa, as slot
// (KVM api §4.35). An empty hva takes the slot away. hva must stay mapped until
// then or until the VM is closed.
func (m *VM) SetMemory(slot uint32, gpa uint64, hva []byte) error {
	return m.setMemory(slot, gpa, hva, 0)
}

// SetMemoryReadOnly is SetMemory for memory that the guest cannot write: its
// stores come out as MMIO. It needs KVM_CAP_READONLY_MEM.
func (m *VM) SetMemoryReadOnly(slot uint32, gpa uint64, hva []byte) error {
	const readOnly = 1 << 1
	return m.setMemory(slot, gpa, hva, readOnly)
}

func (m *VM) setMemory(slot uint32, gpa uint64, hva []byte, flags uint32) error {
	r := &gokvm.UserspaceMemoryRegion{Slot: slot, Flags: flags, GuestPhysAddr: gpa, MemorySize: uint64(len(hva))}
	if len(hva) > 0 {
		r.UserspaceAddr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(hva))))
	}
	if _, err := callPtr(m.fd, reqSetMemory, unsafe.Pointer(r)); err != nil {
		return fmt.Errorf("KVM_SET_USER_MEMORY_REGION slot %d at %#x, %d bytes: %w", slot, gpa, len(hva), err)
	}
	return nil
}

// Close ends the VM. Its memory can be unmapped once its vCPUs are closed too.
func (m *VM) Close() error { return unix.Close(m.fd) }
