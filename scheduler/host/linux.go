package host

import (
	"bytes"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// system is what a pool asks of the host; tests have one of their own.
type system interface {
	// now is monotonic time, in ns.
	now() int64
	// used is the CPU time that a thread has had, in ns; ok is false if there
	// is no such thread.
	used(tid int) (ns int64, ok bool)
	pin(tid int, cpus []int) error
	// runnable says whether the thread runs or waits for a CPU.
	runnable(tid int) bool
	// there are the CPUs that are online and that this process may use, ascending;
	// none if that is not known.
	there() []int
	// spread makes it faster to wake one of many threads.
	spread(lists int)
}

// linux is this host.
type linux struct{}

func (linux) now() int64 {
	var t unix.Timespec
	// It cannot fail for a clock that is always there.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}

func (linux) used(tid int) (int64, bool) {
	var t unix.Timespec
	if err := unix.ClockGettime(threadClock(tid), &t); err != nil {
		return 0, false
	}
	return t.Nano(), true
}

// threadClock is the id of a thread's own clock, made of the thread's as in the
// kernel's include/linux/posix-timers_types.h.
func threadClock(tid int) int32 {
	const perThread, scheduled = 4, 2
	return int32(^tid<<3 | perThread | scheduled)
}

func (linux) pin(tid int, cpus []int) error {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(tid, &set); err != nil {
		return fmt.Errorf("bind a vCPU's thread to CPUs %v: %w", cpus, err)
	}
	return nil
}

// urgent has the calling thread run as soon as it wants to: it does so for
// microseconds in each quantum. What it starts has no part in that. Its timers end in
// time: it may have inherited others.
func urgent() error {
	const exactly = 1 // nanosecond
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, exactly, 0, 0, 0)
	a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	if unix.SchedSetAttr(0, &a, 0) == nil {
		return nil
	}
	a = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	return unix.SchedSetAttr(0, &a, 0)
}

// runnable reads the third word of proc_pid_stat(5), which comes after the name in
// parentheses.
func (linux) runnable(tid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
	i := bytes.LastIndexByte(b, ')')
	return err == nil && i > 0 && len(b) > i+2 && b[i+2] == 'R'
}

// there asks for the calling thread: the kernel leaves out what is not online.
func (linux) there() []int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return nil
	}
	cpus := make([]int, 0, set.Count())
	for c := 0; len(cpus) < cap(cpus); c++ {
		if set.IsSet(c) {
			cpus = append(cpus, c)
		}
	}
	return cpus
}

// spread has the kernel keep threads that wait, as those that are held do, in so
// many lists instead of some for each CPU, all of which it goes through to wake one
// (PR_FUTEX_HASH, Linux 6.16). Kernels before have one large table for all processes.
func (linux) spread(lists int) {
	const prFutexHash, setSlots = 78, 1
	_ = unix.Prctl(prFutexHash, setSlots, uintptr(lists), 0, 0)
}

// permitted tries on a thread of its own whether this process may raise what it
// has lowered.
func permitted() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		a, err := unix.SchedGetAttr(0, 0)
		if err == nil {
			a.Policy = unix.SCHED_IDLE
			err = unix.SchedSetAttr(0, a, 0)
		}
		if err == nil {
			a.Policy = unix.SCHED_NORMAL
			err = unix.SchedSetAttr(0, a, 0)
		}
		if err != nil {
			err = fmt.Errorf("this process may not change its threads' priorities (%w): run it as root or with CAP_SYS_NICE, or leave scheduling to the host", err)
		}
		result <- err
	}()
	return <-result
}

// interrupt ends a sleep of a thread, if it is in one just now.
func interrupt(tid int) { _ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) }
