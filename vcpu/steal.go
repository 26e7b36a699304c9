package vcpu

import "time"

// msrSteal has the address at which a guest wants to be told of steal time, and in
// bit 0 whether it does (MSR_KVM_STEAL_TIME, Linux Documentation/virt/kvm/x86/msr.rst).
const (
	msrSteal     = 0x4b564d03
	stealEnabled = 1
	stealMask    = 1<<6 - 1 // the rest of what is no address
)

// toldOf is the time for which a vCPU has to be held before its guest is told of it:
// to tell it, the thread has to leave kvm.VCPU.RunSteered.
const toldOf = 20 * time.Millisecond

// tellOf has f told of the time for which the vCPU was held. To the kernel a thread
// that is held is asleep, so KVM tells the guest nothing of it; we do, in the same
// place: KVM adds to what is there, on the same thread (record_steal_time in
// Linux's arch/x86/kvm/x86.c).
func (v *VCPU) tellOf(f func(at uint64, d time.Duration)) {
	if v.tell = f; f != nil {
		v.steer.Tell = int64(toldOf)
	}
}

// Held is how long Hold has kept the vCPU from running its guest. It may be called
// from any thread.
func (v *VCPU) Held() time.Duration { return time.Duration(v.steer.Held()) }

// resume has the guest told of holds that have ended. A guest that names nonsense
// is told nothing.
func (v *VCPU) resume(b *incarnation) {
	d := v.steer.Untold
	if d == 0 || v.tell == nil {
		return
	}
	v.steer.Untold = 0
	// A KVM without steal time has no such register.
	if at, err := b.kvm.MSR(msrSteal); err == nil && at&stealEnabled != 0 {
		v.tell(at&^stealMask, time.Duration(d))
	}
}
