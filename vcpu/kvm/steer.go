package kvm

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Steering is how others steer a vCPU that is in RunSteered. Whoever changes Low to
// 1, or Hold, then has to have KVM_RUN interrupted: ImmediateExit and a signal.
type Steering struct {
	// Low, if not 0, has the vCPU run its guest only when nothing else wants its
	// CPU (SCHED_IDLE). Whoever sets it to 0 then has to raise the thread: see
	// Raise.
	Low atomic.Uint32
	// Hold, if not 0, keeps the vCPU from running its guest. It is a futex, on
	// which the thread waits at SCHED_IDLE: whoever sets it to 0 has to wake it,
	// and to raise it first if Low is 0.
	Hold atomic.Uint32
	// Low and Hold were looked at after so many interruptions.
	turns atomic.Uint64
	// idle is 1 while the thread may have SCHED_IDLE.
	idle atomic.Uint32
	// inside is 1 while it is in RunSteered.
	inside atomic.Uint32

	// For how long Hold kept it, in ns of CLOCK_MONOTONIC. even changes twice
	// around every change of both.
	even  atomic.Uint32
	since atomic.Int64 // when the hold under way began; 0 for none
	total atomic.Int64

	// Untold is what of that the caller of RunSteered has not been told of, and
	// Tell is at how much of it RunSteered returns; 0 for never. Only the vCPU's
	// thread may use them.
	Untold, Tell int64

	clock unix.Timespec
}

// Idle says whether the thread may have SCHED_IDLE, so that it has to be raised to
// come out.
func (s *Steering) Idle() bool { return s.idle.Load() != 0 }

// Inside says whether the thread runs the guest, waits for an interrupt to it or is
// held, and not what it does for the guest in the monitor.
func (s *Steering) Inside() bool { return s.inside.Load() != 0 }

// Turns is how often KVM_RUN was interrupted without RunSteered returning.
func (s *Steering) Turns() uint64 { return s.turns.Load() }

// Held is for how many ns the vCPU was held so far.
func (s *Steering) Held() int64 {
	for {
		even := s.even.Load()
		since, total := s.since.Load(), s.total.Load()
		if even&1 != 0 || s.even.Load() != even {
			continue
		}
		if since != 0 {
			var now unix.Timespec
			// It cannot fail for a clock that is always there.
			_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
			total += max(0, now.Nano()-since)
		}
		return total
	}
}

// RunSteered is Run for a vCPU that is steered, until the guest needs the monitor
// or *calls is not seen any more: then the error is EINTR, as when there is
// something to tell. ImmediateExit has been cleared then. Whoever changes *calls has
// KVM_RUN interrupted afterwards, and raises the thread if it is Idle.
//
// What others want of the thread while the guest is to go on is done without
// returning, and all of it between the two ends of what is one system call to Go's
// runtime, for two reasons. A thread must not be low in a single instruction of the
// runtime: now and then it would be preempted with the runtime's locks held, by a
// guest that computes, and the whole process would stand still until the kernel has
// a few milliseconds for it; up to two seconds were seen, in one run of four
// seconds with three guests that exit all the time. And a way through the runtime
// wakes its own threads, which costs five times what it takes to choose another
// vCPU.
//
// Nothing here may split the stack or need one of the runtime's processors: plain
// loads and stores, raw system calls, and no race detector, which wants one.
//
//go:norace
//go:nosplit
func (c *VCPU) RunSteered(s *Steering, calls *atomic.Uint32, seen uint32) error {
	fd, exit := uintptr(c.fd), (*uint32)(unsafe.Pointer(&c.page[0]))
	low, hold, call := plain(&s.Low), plain(&s.Hold), plain(calls)
	was := false
	var errno syscall.Errno
	entersyscall()
	*plain(&s.inside) = 1
	for {
		if *low != 0 {
			was = true
			s.lower()
			if *low == 0 || *call != seen {
				// Raised meanwhile, and lowered again just now.
				raiseOwn()
			} else {
				// A thread that lowers itself runs on to the next tick, up to
				// 10 ms, unless it gives way.
				syscall.RawSyscall6(unix.SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)
			}
		}
		_, _, errno = syscall.RawSyscall6(unix.SYS_IOCTL, fd, reqRun, 0, 0, 0, 0)
		if errno != unix.EINTR {
			break
		}
		exchange(exit, 0)
		if *hold != 0 && *call == seen {
			was = true
			s.wait(hold, call, seen)
		}
		if *call != seen || s.Tell > 0 && s.Untold >= s.Tell {
			break
		}
		*(*uint64)(unsafe.Pointer(&s.turns))++
	}
	*plain(&s.inside) = 0
	if was {
		raiseOwn()
		*plain(&s.idle) = 0
	}
	exitsyscall()
	if errno != 0 {
		return errno
	}
	return nil
}

// wait waits until the vCPU is not held any more, or is called.
//
//go:norace
//go:nosplit
func (s *Steering) wait(hold, call *uint32, seen uint32) {
	since, total := (*int64)(unsafe.Pointer(&s.since)), (*int64)(unsafe.Pointer(&s.total))
	if *since == 0 {
		*since = s.now()
	}
	// Low already here, so that being let in next in line makes it run nowhere.
	s.lower()
	for *hold != 0 && *call == seen {
		// A signal ends the wait, too. One that comes just before it is not
		// seen; who calls calls again, or wakes those who wait here.
		syscall.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(hold)), futexWaitPrivate, uintptr(*hold), 0, 0, 0)
	}
	if *hold != 0 {
		return // called, and still held
	}
	d := s.now() - *since
	*plain(&s.even)++
	*total += d
	*since = 0
	*plain(&s.even)++
	s.Untold += d
}

//go:norace
//go:nosplit
func (s *Steering) now() int64 {
	syscall.RawSyscall6(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&s.clock)), 0, 0, 0, 0)
	return s.clock.Sec*1e9 + s.clock.Nsec
}

//go:norace
//go:nosplit
func (s *Steering) lower() {
	*plain(&s.idle) = 1
	syscall.RawSyscall6(unix.SYS_SCHED_SETATTR, 0, uintptr(unsafe.Pointer(&idling)), 0, 0, 0, 0)
}

//go:norace
//go:nosplit
func raiseOwn() {
	syscall.RawSyscall6(unix.SYS_SCHED_SETATTR, 0, uintptr(unsafe.Pointer(&normal)), 0, 0, 0, 0)
}

// plain is the word itself: operations of sync/atomic are calls of the race
// detector where that is on.
//
//go:nosplit
func plain(w *atomic.Uint32) *uint32 { return (*uint32)(unsafe.Pointer(w)) }

// Raise ends what RunSteered does to the priority of a thread of this process.
func Raise(tid int) error {
	if _, _, errno := unix.Syscall(unix.SYS_SCHED_SETATTR, uintptr(tid), uintptr(unsafe.Pointer(&normal)), 0); errno != 0 {
		return fmt.Errorf("raise the priority of a vCPU's thread: %w", errno)
	}
	return nil
}

// Wake wakes the thread that waits because of Hold.
func (s *Steering) Wake() {
	// Waking those who wait on a word of our own cannot fail.
	_, _, _ = unix.Syscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.Hold)), futexWakePrivate, 1)
}

const (
	futexPrivate     = 128
	futexWaitPrivate = 0 | futexPrivate
	futexWakePrivate = 1 | futexPrivate
)

// The two ways in which a thread runs, with the process's own niceness. Nobody
// writes to them any more.
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

// exchange stores v, and nothing that comes after is done before.
//
//go:noescape
func exchange(p *uint32, v uint32)

// What syscall.Syscall begins and ends with; the runtime promises to keep them
// (go.dev/issue/67401).

//go:linkname entersyscall runtime.entersyscall
func entersyscall()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()
