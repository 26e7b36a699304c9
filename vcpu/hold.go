package vcpu

import "fmt"

// What the word Hold of a kvm.Steering says.
const (
	free = iota
	held
)

// Hold keeps the vCPU from running its guest until Release, from any thread, and
// does not wait for that to begin. A device access under way is finished first. A
// vCPU that is held can be stopped and moved. It does not allocate.
func (v *VCPU) Hold() {
	v.steer.Hold.Store(held)
	if v.stop.Load() {
		v.Release() // Stop may have released it before
	}
	v.body().interrupt(false)
}

// Release ends a Hold, from any thread. It does not allocate.
func (v *VCPU) Release() {
	if v.steer.Hold.Swap(free) != held {
		return
	}
	if v.steer.Low.Load() == 0 {
		// It waits at the lowest priority. That of a thread which is gone does
		// not matter, and who may not raise it may not have lowered it.
		_ = v.body().raise()
	}
	v.steer.Wake()
}

// TID is the id of the thread that runs the guest, or 0 if it does not run.
func (v *VCPU) TID() int { return max(0, int(v.body().tid.Load())) }

// Inside says whether that thread runs the guest, is halted as Halted tells, or is
// held. Otherwise it does something for the guest in the monitor, or Halted cannot
// tell.
func (v *VCPU) Inside() bool { return v.body().halted != nil && v.steer.Inside() }

// Lower has the vCPU run its guest only when nothing else wants its CPU, from any
// thread, until Raise, and does not wait for that to begin. The thread is low in
// the guest alone (kvm.VCPU.RunSteered). It does not allocate.
//
// It needs the right to raise what was lowered: CAP_SYS_NICE, or an RLIMIT_NICE of
// 20 less the process's niceness.
func (v *VCPU) Lower() {
	// One that is held will see it when it is let in.
	if v.steer.Low.Swap(1) == 0 && v.steer.Hold.Load() == free {
		v.body().interrupt(false)
	}
}

// Raise ends a Lower, from any thread.
func (v *VCPU) Raise() error {
	if v.steer.Low.Swap(0) == 0 {
		return nil
	}
	return v.body().raise()
}

// WatchHalts has Halted work. It is to be called before Start: KVM answers
// nothing about a vCPU while that runs.
func (v *VCPU) WatchHalts() error {
	for _, b := range v.bodies {
		if b.halted != nil {
			continue
		}
		var err error
		if b.halted, err = b.kvm.Blocking(); err != nil {
			return fmt.Errorf("vCPU %d: %w", v.id, err)
		}
	}
	return nil
}

// Halted says whether the guest has halted the vCPU and it waits for an interrupt;
// without WatchHalts, or where the kernel does not say, it is false. It may be
// called from any thread until Close, and does not allocate.
func (v *VCPU) Halted() bool {
	b := v.body()
	if b.halted == nil {
		return false
	}
	n, err := b.halted.Read()
	return err == nil && n != 0
}
