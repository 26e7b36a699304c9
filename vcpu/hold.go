package vcpu

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the word held says.
const (
	free = iota
	held
)

// Hold keeps the vCPU from running its guest until Release, from any thread, and
// does not wait for that to begin. A device access under way is finished first. A
// vCPU that is held can be stopped and moved. It does not allocate.
func (v *VCPU) Hold() {
	v.hold.Store(held)
	if v.stop.Load() {
		v.Release() // Stop may have released it before
	}
	v.Kick()
}

// Release ends a Hold, from any thread. It does not allocate.
func (v *VCPU) Release() {
	if v.hold.Swap(free) == held {
		// Waking those who wait on a word of our own cannot fail.
		_, _, _ = unix.Syscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&v.hold)), futexWakePrivate, 1)
	}
}

// TID is the id of the thread that runs the guest, or 0 if it does not run.
func (v *VCPU) TID() int { return max(0, int(v.body().tid.Load())) }

const (
	futexPrivate     = 128
	futexWaitPrivate = 0 | futexPrivate
	futexWakePrivate = 1 | futexPrivate
)

// wait is where a thread waits while its vCPU is held. It returns false if the
// vCPU is to stop, or is not live in b any more.
func (v *VCPU) wait(b *incarnation) bool {
	for {
		if v.stop.Load() || v.set != nil && !v.interlude(b) {
			return false
		}
		if v.hold.Load() == free {
			v.resume(b)
			return true
		}
		v.holds.begin()
		// The thread itself waits, not only the goroutine, so that Release
		// wakes it without Go's scheduler in between. A kick ends the wait.
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&v.hold)), futexWaitPrivate, held, 0, 0, 0)
	}
}

// Lower has the vCPU run its guest only when nothing else wants its CPU, from any
// thread, until Raise, and does not wait for that to begin. The thread is low in
// the guest alone (kvm.VCPU.RunLow). It does not allocate.
//
// It needs the right to raise what was lowered: CAP_SYS_NICE, or an RLIMIT_NICE of
// 20 less the process's niceness.
func (v *VCPU) Lower() {
	if v.low.Swap(1) == 0 {
		v.Kick()
	}
}

// Raise ends a Lower, from any thread.
func (v *VCPU) Raise() error {
	if v.low.Swap(0) == 0 {
		return nil
	}
	return v.body().raise()
}

// runKVM runs the guest until it needs the monitor.
func (v *VCPU) runKVM(b *incarnation) error {
	if v.low.Load() == 0 {
		return b.kvm.Run()
	}
	b.low.Store(true)
	err := b.kvm.RunLow((*uint32)(unsafe.Pointer(&v.low)))
	b.low.Store(false)
	return err
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
