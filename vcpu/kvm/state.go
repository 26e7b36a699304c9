package kvm

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// The multiprocessing states of x86 (KVM api §4.38).
const (
	Runnable      = gokvm.MPStateRunnable
	Uninitialized = gokvm.MPStateUninitialized
	InitReceived  = gokvm.MPStateInitReceived
	Halted        = gokvm.MPStateHalted
)

// MPState reads the multiprocessing state. KVM first lets the vCPU accept INIT
// and SIPI that are pending, which runs nothing of the guest.
func (c *VCPU) MPState() (uint32, error) {
	s := &gokvm.MPState{}
	err := c.do("KVM_GET_MP_STATE", reqGetMPState, unsafe.Pointer(s))
	return s.State, err
}

// SetMPState writes the multiprocessing state.
func (c *VCPU) SetMPState(state uint32) error {
	return c.do("KVM_SET_MP_STATE", reqSetMPState, unsafe.Pointer(&gokvm.MPState{State: state}))
}

// LAPIC is the register page of a local APIC (KVM api §4.57): the 32-bit register
// at the offset that it has in memory-mapped mode, whatever the mode is.
type LAPIC [1024]byte

// Register reads the 32-bit register at offset.
func (l *LAPIC) Register(offset int) uint32 { return binary.LittleEndian.Uint32(l[offset:]) }

// SetRegister writes it.
func (l *LAPIC) SetRegister(offset int, value uint32) {
	binary.LittleEndian.PutUint32(l[offset:], value)
}

// LAPIC reads the local APIC.
func (c *VCPU) LAPIC() (*LAPIC, error) {
	l := &LAPIC{}
	return l, c.do("KVM_GET_LAPIC", reqGetLAPIC, unsafe.Pointer(l))
}

// SetLAPIC writes the local APIC. The APIC base (Sregs) must be set before. What
// arrives between LAPIC and SetLAPIC is lost.
func (c *VCPU) SetLAPIC(l *LAPIC) error {
	return c.do("KVM_SET_LAPIC", reqSetLAPIC, unsafe.Pointer(l))
}

// Events are exceptions, interrupts and NMIs under way (KVM api §4.31).
type Events = gokvm.VCPUEvents

// Flags of Events say which fields count when written.
const (
	EventsNMIPending = 1 << 0
	EventsSIPIVector = 1 << 1
	EventsShadow     = 1 << 2
	EventsSMM        = 1 << 3
)

// Events reads the events under way.
func (c *VCPU) Events() (*Events, error) {
	e := &Events{}
	return e, c.do("KVM_GET_VCPU_EVENTS", reqGetEvents, unsafe.Pointer(e))
}

// SetEvents writes the events under way.
func (c *VCPU) SetEvents(e *Events) error {
	return c.do("KVM_SET_VCPU_EVENTS", reqSetEvents, unsafe.Pointer(e))
}

// XCRS are the extended control registers (KVM api §4.44).
type XCRS = gokvm.XCRS

// XCRS reads the extended control registers.
func (c *VCPU) XCRS() (*XCRS, error) {
	x := &XCRS{}
	return x, c.do("KVM_GET_XCRS", reqGetXCRS, unsafe.Pointer(x))
}

// SetXCRS writes the extended control registers.
func (c *VCPU) SetXCRS(x *XCRS) error { return c.do("KVM_SET_XCRS", reqSetXCRS, unsafe.Pointer(x)) }

// DebugRegs are DR0 to DR7 (KVM api §4.34).
type DebugRegs = gokvm.DebugRegs

// DebugRegs reads the debug registers.
func (c *VCPU) DebugRegs() (*DebugRegs, error) {
	d := &DebugRegs{}
	return d, c.do("KVM_GET_DEBUGREGS", reqGetDebugRegs, unsafe.Pointer(d))
}

// SetDebugRegs writes the debug registers.
func (c *VCPU) SetDebugRegs(d *DebugRegs) error {
	return c.do("KVM_SET_DEBUGREGS", reqSetDebugRegs, unsafe.Pointer(d))
}

// xsaveSize is what KVM_GET_XSAVE has always held; more needs KVM_GET_XSAVE2.
const xsaveSize = 4096

// XSave reads the FPU, vector and other extended registers (KVM api §4.42,
// §4.134), in the form that SetXSave of a vCPU on the same host takes.
func (c *VCPU) XSave() ([]byte, error) {
	if c.xsave <= xsaveSize {
		p := make([]byte, xsaveSize)
		return p, c.do("KVM_GET_XSAVE", reqGetXSave, unsafe.Pointer(unsafe.SliceData(p)))
	}
	p := make([]byte, c.xsave)
	return p, c.do("KVM_GET_XSAVE2", reqGetXSave2, unsafe.Pointer(unsafe.SliceData(p)))
}

// SetXSave writes what XSave reads.
func (c *VCPU) SetXSave(p []byte) error {
	if len(p) < max(xsaveSize, c.xsave) {
		return fmt.Errorf("KVM_SET_XSAVE: %d bytes, not %d", len(p), max(xsaveSize, c.xsave))
	}
	return c.do("KVM_SET_XSAVE", reqSetXSave, unsafe.Pointer(unsafe.SliceData(p)))
}

// MSRs reads model-specific registers into the Data of msrs. It stops at the
// first that KVM does not give, and n says how many were read.
func (c *VCPU) MSRs(msrs []MSR) (n int, err error) {
	for n < len(msrs) {
		t := &msrTable{n: uint32(min(len(msrs)-n, maxMSRs))}
		copy(t.entries[:], msrs[n:])
		r, err := callPtr(c.fd, reqGetMSRs, unsafe.Pointer(t))
		if err != nil {
			return n, fmt.Errorf("KVM_GET_MSRS: %w", err)
		}
		copy(msrs[n:], t.entries[:r])
		n += int(r)
		if int(r) < int(t.n) {
			break
		}
	}
	return n, nil
}

const maxMSRIndices = 4096

type msrIndexList struct {
	n       uint32
	indices [maxMSRIndices]uint32
}

// MSRIndices are the model-specific registers that KVM keeps for a guest
// (KVM_GET_MSR_INDEX_LIST, KVM api §4.3). Some hosts do not let all be written.
func (s *System) MSRIndices() ([]uint32, error) {
	l := &msrIndexList{n: maxMSRIndices}
	if _, err := callPtr(s.fd, reqGetMSRIndexList, unsafe.Pointer(l)); err != nil {
		return nil, fmt.Errorf("KVM_GET_MSR_INDEX_LIST: %w", err)
	}
	return l.indices[:l.n], nil
}

type guestDebug struct {
	control, _ uint32
	debugreg   [8]uint64
}

const (
	guestDebugEnable     = 1 << 0
	guestDebugHardwareBP = 1 << 17
	debugGlobalExact     = 1 << 9 // DR7.GE
	debugReserved        = 1 << 10
)

// MaxBreakpoints is how many addresses Break takes.
const MaxBreakpoints = 4

// Break makes the vCPU come out with ExitDebug before it executes an instruction
// at any of the linear addresses at (KVM api §4.87); with none, debugging ends.
// The guest's own debug registers are out of use meanwhile.
func (c *VCPU) Break(at ...uint64) error {
	d := &guestDebug{}
	if len(at) > 0 {
		d.control = guestDebugEnable | guestDebugHardwareBP
		d.debugreg[7] = debugGlobalExact | debugReserved
	}
	for i, a := range at {
		d.debugreg[i] = a
		d.debugreg[7] |= 2 << (2 * i) // global enable, on execution
	}
	return c.do("KVM_SET_GUEST_DEBUG", reqSetGuestDebug, unsafe.Pointer(d))
}

type deviceAttr struct {
	flags, group uint32
	attr, addr   uint64
}

const (
	attrTSC       = 0 // KVM_VCPU_TSC_CTRL
	attrTSCOffset = 0 // KVM_VCPU_TSC_OFFSET
)

// TSCOffset is what is added to the host's time-stamp counter for the guest
// (KVM api, vcpu device, §4). It needs Linux 5.16.
func (c *VCPU) TSCOffset() (uint64, error) {
	offset := new(uint64)
	err := c.attr("KVM_GET_DEVICE_ATTR", reqGetDeviceAttr, offset)
	return *offset, err
}

// SetTSCOffset writes it.
func (c *VCPU) SetTSCOffset(offset uint64) error {
	p := new(uint64)
	*p = offset
	return c.attr("KVM_SET_DEVICE_ATTR", reqSetDeviceAttr, p)
}

func (c *VCPU) attr(name string, req uintptr, value *uint64) error {
	// The address goes inside a structure, where the garbage collector does not
	// see it: pinning is what keeps it in place.
	var pin runtime.Pinner
	pin.Pin(value)
	defer pin.Unpin()
	a := &deviceAttr{group: attrTSC, attr: attrTSCOffset, addr: uint64(uintptr(unsafe.Pointer(value)))}
	if err := c.do(name, req, unsafe.Pointer(a)); err != nil {
		return fmt.Errorf("TSC offset: %w", err)
	}
	return nil
}

// Clock is the VM's kvmclock (KVM api §4.29, §4.30).
type Clock = gokvm.ClockData

// ClockRealtime says that Clock.Realtime holds the wall clock of the same moment,
// in nanoseconds; SetClock then adds the time since.
const ClockRealtime = uint32(gokvm.Realtime)

// Clock reads the clock, with the wall clock of the same moment where KVM can
// tell (Linux 5.16).
func (m *VM) Clock() (*Clock, error) {
	k := &Clock{}
	if _, err := callPtr(m.fd, reqGetClock, unsafe.Pointer(k)); err != nil {
		return nil, fmt.Errorf("KVM_GET_CLOCK: %w", err)
	}
	return k, nil
}

// SetClock sets the clock.
func (m *VM) SetClock(k *Clock) error {
	a := &Clock{Clock: k.Clock, Flags: k.Flags & ClockRealtime, Realtime: k.Realtime}
	if _, err := callPtr(m.fd, reqSetClock, unsafe.Pointer(a)); err != nil {
		return fmt.Errorf("KVM_SET_CLOCK: %w", err)
	}
	return nil
}
