package vcpu

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

// relay is what an incarnation needs while it is not the live one.
type relay struct {
	message kvm.Message // to the live incarnation
	traps   int         // how many of the set's traps it has
}

// relayFault is why a relay cannot go on.
type relayFault struct{ what string }

func (f relayFault) Error() string { return f.what }

// runOneOfMany runs a thread of a vCPU with several incarnations, through all
// the roles it comes to have.
func (v *VCPU) runOneOfMany(b *incarnation) End {
	for {
		err := v.gestate(b)
		switch {
		case err != nil || v.stop.Load():
		case b.unborn: // its role has changed
		case v.body() == b:
			if e := v.loop(b); e.Cause != Stopped || v.stop.Load() {
				return e
			}
		default:
			err = v.passOn(b)
		}
		var fault relayFault
		switch {
		case errors.As(err, &fault):
			return End{CPU: v.id, Cause: RelayLost, Text: fmt.Sprintf(
				"vCPU %d: its relay in KVM VM %d %s%s: the guest wrote to the memory of relays, from %#x up, or started a CPU in a way that is not known",
				v.id, b.vm, fault.what, b.where(), v.set.o.RelayBase+relayTables)}
		case err != nil:
			return v.hostError(fmt.Errorf("in KVM VM %d: %w", b.vm, err))
		case v.stop.Load():
			return End{CPU: v.id, Cause: Stopped}
		}
	}
}

// interlude is for the live incarnation between two KVM_RUNs: it waits while the
// world is stopped, and is false if b is not live any more.
func (v *VCPU) interlude(b *incarnation) (live bool) {
	v.set.gate.park(b, liveStopped)
	return v.body() == b
}

// passOn is the role of a relay, until the vCPU stops or b becomes live or is
// reset.
func (v *VCPU) passOn(b *incarnation) error {
	for {
		err := b.kvm.Run()
		switch {
		case errors.Is(err, unix.EINTR):
			b.kvm.ImmediateExit(false)
			if v.stop.Load() {
				return nil
			}
			if leave, err := v.checkup(b); leave || err != nil {
				return err
			}
		case errors.Is(err, unix.EAGAIN):
			b.unborn = true
			return nil
		case err != nil:
			return fmt.Errorf("KVM_RUN: %w", err)
		default:
			if err := v.relayExit(b); err != nil {
				return err
			}
		}
	}
}

// checkup is done on a relay that was kicked: the world may have to stop, INIT
// may have reset it, and there may be new addresses where it must not run.
func (v *VCPU) checkup(b *incarnation) (leave bool, err error) {
	state, err := b.kvm.MPState()
	if err != nil {
		return false, err
	}
	if state == kvm.InitReceived || state == kvm.Uninitialized {
		b.unborn = true
		return true, nil
	}
	if v.set.gate.level.Load() >= allStopped {
		// Only when it has nothing to pass on any more. Whoever stopped the
		// world kicks until then.
		if idle, err := b.idle(state); !idle || err != nil {
			return false, err
		}
		v.set.gate.park(b, allStopped)
		if v.body() == b {
			return true, nil
		}
	}
	return false, v.set.trap(b)
}

// idle says that a relay in mp state state stands in its hlt with nothing to do.
func (b *incarnation) idle(state uint32) (bool, error) {
	if state != kvm.Halted {
		return false, nil
	}
	e, err := b.kvm.Events()
	if err != nil {
		return false, err
	}
	l, err := b.kvm.LAPIC()
	if err != nil {
		return false, err
	}
	busy := e.N.Pending|e.N.Inject|e.I.Inject != 0 || vectors(l, lapicIRR)+vectors(l, lapicISR) > 0
	return !busy, nil
}

// relayExit passes on the interrupt behind an exit. It does not allocate.
func (v *VCPU) relayExit(b *incarnation) error {
	switch e := b.kvm.Exit(); e {
	case kvm.ExitIO:
		io := b.kvm.IO()
		if !io.Out || io.Port != relayPort || len(io.Data) != 1 {
			return relayFault{fmt.Sprintf("used port %#x", io.Port)}
		}
		switch vector := io.Data[0]; {
		case vector == vectorNMI:
			return v.forward(b, deliverNMI)
		case vector < 16:
			return relayFault{fmt.Sprintf("met exception %d", vector)}
		default:
			return v.forward(b, uint32(vector))
		}
	case kvm.ExitIntr, kvm.ExitIOAPICEOI:
		return nil
	case kvm.ExitDebug:
		// A SIPI has come to a relay that INIT had reset inside KVM_RUN.
		return v.restarted(b)
	case kvm.ExitShutdown:
		return relayFault{"ended in a triple fault"}
	default:
		return relayFault{fmt.Sprintf("came out with %v", e)}
	}
}

// Delivery modes of an interrupt message (Intel SDM vol. 3A §10.11.2).
const (
	deliverNMI  = 4 << 8
	deliverINIT = 5 << 8
	deliverSIPI = 6 << 8
)

// forward sends an interrupt to the live incarnation and counts it. It does not
// allocate.
func (v *VCPU) forward(b *incarnation, data uint32) error {
	v.relayed.Add(1)
	return v.send(b, data)
}

// send sends the live incarnation a message with data.
func (v *VCPU) send(b *incarnation, data uint32) error {
	b.relay.message.Set(messageTo(v.id), data)
	_, err := v.set.o.VMs[v.live.Load()].Signal(&b.relay.message)
	// The guest may have turned off the APIC at the other end (EPERM); what is
	// sent to it then is lost, as between real CPUs.
	if err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

// An interrupt message's address: the base, the low byte of the APIC id in bits
// 19:12, and with KVM_CAP_X2APIC_API the others in bits 63:40.
const messageBase = 0xfee00000

func messageTo(id int) uint64 {
	return messageBase | uint64(id&0xff)<<12 | uint64(id>>8)<<40
}

// relayMode makes b a relay that waits in hlt.
func (v *VCPU) relayMode(b *incarnation) error {
	s, err := b.kvm.Sregs()
	if err != nil {
		return err
	}
	base := v.set.o.RelayBase
	s.CR0, s.CR2, s.CR3, s.CR4, s.CR8 = cr0PE|cr0ET|cr0PG, 0, base+relayTables, cr4PAE, 0
	s.EFER = eferLME | eferLMA
	s.CS = relayCS
	s.DS, s.ES, s.FS, s.GS, s.SS = relayDS, relayDS, relayDS, relayDS, relayDS
	s.TR = kvm.Segment{Limit: 0x67, Typ: 0xb, Present: 1}
	s.LDT = kvm.Segment{Unusable: 1}
	s.GDT = kvm.Descriptor{Base: base + relayGDT, Limit: 3*8 - 1}
	s.IDT = kvm.Descriptor{Base: base + relayIDT, Limit: 256*16 - 1}
	s.InterruptBitmap = [4]uint64{}
	if err := b.kvm.SetSregs(s); err != nil {
		return err
	}
	const reserved, interrupts = 1 << 1, 1 << 9
	err = b.kvm.SetRegs(&kvm.Regs{
		RIP:    base + relayLoop + 1, // after the hlt that it stands in
		RSP:    base + relayStacks + uint64(v.id+1)*relayStack,
		RFLAGS: reserved | interrupts,
	})
	if err != nil {
		return err
	}
	if err := b.kvm.SetEvents(&kvm.Events{Flags: kvm.EventsShadow}); err != nil {
		return err
	}
	if err := b.listen(); err != nil {
		return err
	}
	b.unborn = false
	b.relay.traps = 0
	if err := v.set.trap(b); err != nil {
		return err
	}
	return b.kvm.SetMPState(kvm.Halted)
}
