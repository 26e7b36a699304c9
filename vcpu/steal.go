package vcpu

import (
	"sync"
	"time"
)

// msrSteal has the address at which a guest wants to be told of steal time, and in
// bit 0 whether it does (MSR_KVM_STEAL_TIME, Linux Documentation/virt/kvm/x86/msr.rst).
const (
	msrSteal     = 0x4b564d03
	stealEnabled = 1
	stealMask    = 1<<6 - 1 // the rest of what is no address
)

// holds is for how long a vCPU was held. To the kernel a thread that is held is
// asleep, so KVM tells the guest nothing of it; we do, in the same place: KVM adds
// to what is there, on the same thread (record_steal_time in Linux's
// arch/x86/kvm/x86.c).
type holds struct {
	tell func(at uint64, d time.Duration) // or nil

	mu    sync.Mutex // innermost
	since time.Time  // of the one under way, or zero
	total time.Duration
}

// begin is called on the vCPU's thread before it waits.
func (h *holds) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since.IsZero() {
		h.since = time.Now()
	}
}

// end is called on it before it runs the guest, and is how long it was held.
func (h *holds) end() time.Duration {
	if h.since.IsZero() { // only this thread sets it
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	d := time.Since(h.since)
	h.total += d
	h.since = time.Time{}
	return d
}

// Held is how long Hold has kept the vCPU from running its guest. It may be called
// from any thread.
func (v *VCPU) Held() time.Duration {
	h := &v.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since.IsZero() {
		return h.total
	}
	return h.total + time.Since(h.since)
}

// resume has the guest told of a hold that has ended. A guest that names nonsense
// is told nothing.
func (v *VCPU) resume(b *incarnation) {
	d := v.holds.end()
	if d == 0 || v.holds.tell == nil {
		return
	}
	// A KVM without steal time has no such register.
	if at, err := b.kvm.MSR(msrSteal); err == nil && at&stealEnabled != 0 {
		v.holds.tell(at&^stealMask, d)
	}
}
