package vcpu

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

// birthPoll is how often a vCPU between INIT and SIPI is looked at at first, and
// birthPollMost how long it can come to take.
const (
	birthPoll     = time.Millisecond
	birthPollMost = 20 * time.Millisecond
)

// gestate is the life of an incarnation until the guest starts the vCPU (Intel
// SDM vol. 3A §9.4: INIT, then SIPI). It returns when b is unborn no more: as a
// relay if it is not the live one, else about to run the guest's first
// instruction there. It also returns when the vCPU stops, and when the roles
// have changed.
//
// INIT and SIPI arrive at the incarnation in the sender's VM, and KVM would have
// that one run the guest. It cannot: an incarnation that KVM made and nobody
// started yet comes out of KVM_RUN with EAGAIN when INIT, or INIT and SIPI, have
// come, before it runs anything. From then on KVM_RUN is not entered; KVM_GET_MP_STATE
// accepts a SIPI that came since, and runs nothing. So it does not matter how
// close INIT and SIPI are to each other and to the wake-up. Both are sent on to
// the live incarnation as messages; KVM starts it as if they had come there.
func (v *VCPU) gestate(b *incarnation) error {
	live := v.body() == b
	told := false // the live one of INIT
	wait := birthPoll
	for b.unborn && !v.stop.Load() {
		level := int32(allStopped)
		if live {
			level = liveStopped
		}
		v.set.gate.park(b, level)
		if live != (v.body() == b) {
			return nil
		}
		state, err := b.kvm.MPState()
		if err != nil {
			return err
		}
		switch {
		case state == kvm.Uninitialized && !live && v.begun.Load():
			// Started through another incarnation. What came here since waits
			// in the APIC, which has listened all the time.
			return v.relayMode(b)
		case state == kvm.Uninitialized:
			if err := v.doze(b); err != nil {
				return err
			}
		case state == kvm.InitReceived:
			if !live && !told {
				if err := v.send(b, deliverINIT); err != nil {
					return err
				}
				told = true
			}
			time.Sleep(wait)
			wait = min(wait*5/4, birthPollMost)
		default:
			return v.beBorn(b, live, told)
		}
	}
	return nil
}

// doze waits in KVM_RUN for something to come for an incarnation that nobody has
// started.
func (v *VCPU) doze(b *incarnation) error {
	switch err := b.kvm.Run(); {
	case errors.Is(err, unix.EINTR):
		b.kvm.ImmediateExit(false)
		return nil
	case errors.Is(err, unix.EAGAIN):
		return nil
	case err != nil:
		return fmt.Errorf("KVM_RUN: %w", err)
	}
	return relayFault{fmt.Sprintf("ran before it was started (%v)", b.kvm.Exit())}
}

// beBorn is called when SIPI has come to b, which stands before the first
// instruction that it would run.
func (v *VCPU) beBorn(b *incarnation, live, told bool) error {
	s, err := b.kvm.Sregs()
	if err != nil {
		return err
	}
	vector := s.CS.Base >> 12
	v.set.learn(s.CS.Base)
	if live {
		b.unborn = false
		v.begun.Store(true)
		for _, o := range v.bodies {
			if o != b {
				o.kick()
			}
		}
		return nil
	}
	if !told {
		if err := v.send(b, deliverINIT); err != nil {
			return err
		}
	}
	// First a relay, so that nothing is lost that is sent to the vCPU from
	// here after it has shown that it runs.
	if err := v.relayMode(b); err != nil {
		return err
	}
	return v.send(b, deliverSIPI|uint32(vector&0xff))
}

// restarted is called when a relay came out of KVM_RUN for a breakpoint. It stands
// at the beginning of the code with which the guest starts CPUs if INIT and SIPI
// came to it while it was in KVM_RUN, as when a CPU that was taken offline is put
// online again.
func (v *VCPU) restarted(b *incarnation) error {
	s, err := b.kvm.Sregs()
	if err != nil {
		return err
	}
	r, err := b.kvm.Regs()
	if err != nil {
		return err
	}
	at := s.CS.Base + r.RIP
	switch base := v.set.o.RelayBase; {
	case at >= base && at < base+relayTables:
		// KVM steps over what keeps it from injecting an NMI, on AMD's CPUs,
		// and tells us too, since a debugger might be interested.
		return nil
	case r.RIP != 0 || !v.set.knows(at):
		return relayFault{"stopped where nobody starts CPUs"}
	}
	return v.beBorn(b, false, false)
}
