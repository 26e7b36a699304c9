package vcpu

import (
	"errors"
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
			return true
		}
		// The thread itself waits, not only the goroutine, so that Release
		// wakes it without Go's scheduler in between. A kick ends the wait.
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&v.hold)), futexWaitPrivate, held, 0, 0, 0)
	}
}

// Lower has the vCPU's thread run only when nothing else wants its CPU
// (SCHED_IDLE), from any thread, until Raise. It is so in the guest only: in the
// monitor's own code, where it may hold what others wait for, Go's garbage
// collector among them, it has the priority of any other thread.
//
// It needs the right to raise what was lowered: CAP_SYS_NICE or an RLIMIT_NICE of
// at least 20 less the process's niceness.
func (v *VCPU) Lower() error { return v.setLow(true) }

// Raise ends a Lower, from any thread.
func (v *VCPU) Raise() error { return v.setLow(false) }

func (v *VCPU) setLow(low bool) error {
	v.low.Store(low)
	b := v.body()
	b.kicks.Lock() // so that the thread cannot end meanwhile
	defer b.kicks.Unlock()
	tid := int(b.tid.Load())
	if tid == 0 || tid == gone {
		return nil
	}
	if !low {
		return b.setIdle(tid, false)
	}
	if !b.inside.Load() {
		return nil // it will do it itself
	}
	err := b.setIdle(tid, true)
	if !b.inside.Load() {
		// It came out, and may have looked at low before.
		err = errors.Join(err, b.setIdle(tid, false))
	}
	return err
}

// goIn is called on the thread before it runs the guest, and comeOut after.
func (v *VCPU) goIn(b *incarnation) {
	if v.low.Load() {
		// Refused, it would have been refused to Lower too, which tells.
		_ = b.setIdle(0, true)
		if !v.low.Load() {
			_ = b.setIdle(0, false)
		}
	}
	b.inside.Store(true)
}

func (v *VCPU) comeOut(b *incarnation) {
	b.inside.Store(false)
	if v.low.Load() {
		_ = b.setIdle(0, false)
	}
}

// setIdle sets the policy of a thread, or with 0 of this one.
func (b *incarnation) setIdle(tid int, idle bool) error {
	a := &normal
	if idle {
		a = &idling
	}
	if err := unix.SchedSetAttr(tid, a, 0); err != nil {
		return fmt.Errorf("set the priority of a vCPU's thread: %w", err)
	}
	b.lowered.Store(idle)
	return nil
}

// The two ways in which a thread runs, with the process's niceness.
var (
	normal = attributes(unix.SCHED_NORMAL)
	idling = attributes(unix.SCHED_IDLE)
)

func attributes(policy uint32) unix.SchedAttr {
	a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy}
	if own, err := unix.SchedGetAttr(0, 0); err == nil {
		a.Nice = own.Nice
	}
	return a
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
