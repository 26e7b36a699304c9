package vcpu

import (
	"fmt"
	"slices"

	"disco/vcpu/kvm"
)

// MSRs that are treated apart when a vCPU moves.
const (
	msrTSC          = 0x10
	msrWallClockOld = 0x11
	msrClockOld     = 0x12
	msrTSCDeadline  = 0x6e0
	msrWallClock    = 0x4b564d00
	msrClock        = 0x4b564d01
	msrAsyncPF      = 0x4b564d02
	msrStealTime    = 0x4b564d03
	msrPVEOI        = 0x4b564d04
	msrPollControl  = 0x4b564d05
	msrAsyncPFInt   = 0x4b564d06
	msrAsyncPFAck   = 0x4b564d07
	msrMigration    = 0x4b564d08

	msrHyperV     = 0x40000000 // and 0xffff above
	msrMTRRPhys   = 0x200
	msrMTRRFixed  = 0x250
	msrMachine    = 0x400 // machine check banks of 4
	machineBanks  = 32
	variableMTRRs = 8
)

// transfer knows which MSRs carry a vCPU's state from one KVM VM to another.
type transfer struct {
	msrs []uint32 // all that can be read and written back, but for those apart
	// shared are pages of the guest that KVM writes to on behalf of the vCPU:
	// only the live incarnation may have them.
	shared   []kvm.MSR
	deadline bool
}

// newTransfer finds out, on vCPUs that have not run, which MSRs this KVM lets be
// read from one of them and written to another.
func newTransfer(sys *kvm.System, bodies []*incarnation) (t transfer, err error) {
	indices, err := sys.MSRIndices()
	if err != nil {
		return t, err
	}
	// KVM has lists these, but lists them only from Linux 6.3 on or never.
	for i := range uint32(2 * variableMTRRs) {
		indices = append(indices, msrMTRRPhys+i)
	}
	indices = append(indices, msrMTRRFixed, 0x258, 0x259, msrMTRRDefType)
	for i := range uint32(8) {
		indices = append(indices, 0x268+i)
	}
	for i := range uint32(4 * machineBanks) {
		indices = append(indices, msrMachine+i)
	}
	slices.Sort(indices)
	from, to := bodies[0].kvm, bodies[1].kvm
	for _, index := range slices.Compact(indices) {
		m := []kvm.MSR{{Index: index}}
		if n, err := from.MSRs(m); err != nil {
			return t, err
		} else if n == 0 {
			continue
		}
		switch {
		case index == msrTSC || index == msrWallClockOld || index == msrWallClock || index == msrMigration || index == msrAsyncPFAck:
			// The TSC goes by its offset; the wall clock is written when it is
			// set, once; the others have no state in a wide guest.
		case index >= msrHyperV && index <= msrHyperV+0xffff:
			// No guest of ours is told of Hyper-V's interface.
		case index == msrTSCDeadline:
			t.deadline = true
		case to.SetMSRs(m) != nil:
			// Not writable, so nothing that a guest can have changed.
		case index == msrClockOld || index == msrClock || index == msrAsyncPF || index == msrAsyncPFInt || index == msrStealTime || index == msrPVEOI:
			t.shared = append(t.shared, kvm.MSR{Index: index})
			t.msrs = append(t.msrs, index)
		default:
			t.msrs = append(t.msrs, index)
		}
	}
	return t, nil
}

// move carries the state of a vCPU from a to b, which is an idle relay. It does
// not touch a. Neither runs.
func (t *transfer) move(from, to *incarnation) error {
	a, b := from.kvm, to.kvm
	// First, since KVM may change other state when it is asked for this one.
	mp, err := a.MPState()
	if err != nil {
		return err
	}
	regs, err := a.Regs()
	if err != nil {
		return err
	}
	sregs, err := a.Sregs()
	if err != nil {
		return err
	}
	xcrs, err := a.XCRS()
	if err != nil {
		return err
	}
	xsave, err := a.XSave()
	if err != nil {
		return err
	}
	debug, err := a.DebugRegs()
	if err != nil {
		return err
	}
	offset, err := a.TSCOffset()
	if err != nil {
		return err
	}
	msrs := make([]kvm.MSR, 0, len(t.msrs)+1)
	for _, index := range t.msrs {
		msrs = append(msrs, kvm.MSR{Index: index})
	}
	if t.deadline {
		msrs = append(msrs, kvm.MSR{Index: msrTSCDeadline})
	}
	if n, err := a.MSRs(msrs); err != nil {
		return err
	} else if n < len(msrs) {
		return fmt.Errorf("KVM_GET_MSRS: KVM does not give MSR %#x", msrs[n].Index)
	}
	lapic, err := a.LAPIC()
	if err != nil {
		return err
	}
	for at := lapicIRR; at < lapicIRR+0x80; at += 0x10 {
		lapic.SetRegister(at, 0) // stays in a, which passes it on as a relay
	}
	events, err := a.Events()
	if err != nil {
		return err
	}
	events.Flags &= kvm.EventsShadow // without pending NMIs, for the same reason

	// Break first: the guest's debug registers are out of use while it holds.
	steps := []func() error{
		func() error { return b.Break() },
		func() error { return b.SetTSCOffset(offset) },
		func() error { return b.SetSregs(sregs) },
		func() error { return b.SetRegs(regs) },
		func() error { return b.SetXCRS(xcrs) },
		func() error { return b.SetXSave(xsave) },
		func() error { return b.SetDebugRegs(debug) },
		func() error { return b.SetMSRs(msrs[:len(t.msrs)]) },
		func() error { return b.SetLAPIC(lapic) },
		// After the APIC, whose timer mode it depends on.
		func() error { return b.SetMSRs(msrs[len(t.msrs):]) },
		func() error { return b.SetEvents(events) },
		func() error { return b.SetMPState(mp) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// leave takes from b what only a live incarnation may have.
func (t *transfer) leave(b *incarnation) error {
	msrs := slices.Clone(t.shared)
	if t.deadline {
		msrs = append(msrs, kvm.MSR{Index: msrTSCDeadline})
	}
	return b.kvm.SetMSRs(msrs)
}
