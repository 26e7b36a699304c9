package kvm

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RunLow is Run with the thread at SCHED_IDLE, while *low is not 0: it runs only
// when nothing else wants its CPU. Whoever sets *low to 0 then has to raise the
// thread, too: see Raise.
//
// The thread is low in the kernel only. Were it to be so in a single instruction
// of Go's runtime, then now and then it would be preempted with the runtime's locks
// held, by a guest that computes, and the whole process would stand still until
// the kernel has a few milliseconds for it: up to two seconds were seen, in one run
// of four seconds with three guests that exit all the time. So the priority changes between
// the runtime's two ends of a system call, without the runtime in between.
//
//go:norace
//go:nosplit
func (c *VCPU) RunLow(low *uint32) error {
	fd, idle := uintptr(c.fd), false
	entersyscall()
	if *low != 0 {
		syscall.RawSyscall6(unix.SYS_SCHED_SETATTR, 0, uintptr(unsafe.Pointer(&idling)), 0, 0, 0, 0)
		idle = true
	}
	if idle && *low == 0 {
		// Raised meanwhile, and lowered again just now.
		syscall.RawSyscall6(unix.SYS_SCHED_SETATTR, 0, uintptr(unsafe.Pointer(&normal)), 0, 0, 0, 0)
	}
	if idle {
		// A thread that lowers itself runs on to the next tick, up to 10 ms, unless
		// it gives way.
		syscall.RawSyscall6(unix.SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)
	}
	_, _, errno := syscall.RawSyscall6(unix.SYS_IOCTL, fd, reqRun, 0, 0, 0, 0)
	if idle {
		syscall.RawSyscall6(unix.SYS_SCHED_SETATTR, 0, uintptr(unsafe.Pointer(&normal)), 0, 0, 0, 0)
	}
	exitsyscall()
	if errno != 0 {
		return errno
	}
	return nil
}

// Raise ends what RunLow does to a thread of this process.
func Raise(tid int) error {
	if _, _, errno := unix.Syscall(unix.SYS_SCHED_SETATTR, uintptr(tid), uintptr(unsafe.Pointer(&normal)), 0); errno != 0 {
		return fmt.Errorf("raise the priority of a vCPU's thread: %w", errno)
	}
	return nil
}

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

// What syscall.Syscall begins and ends with; the runtime promises to keep them
// (go.dev/issue/67401).

//go:linkname entersyscall runtime.entersyscall
func entersyscall()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()
