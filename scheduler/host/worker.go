package host

import (
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the monitor's own threads do for a guest, as the workers of its disks and
// networks, they do at the monitor's priority, so that no guest keeps them from
// working for another; but it is the guest who pays for it. That is a transfer of
// tickets in its simplest form (OSDI'94 §3.1): a vCPU that waits for a worker, or has
// one work for it, stays in the competition with its tickets meanwhile, and what the
// worker has used counts as its own. So it waits afterwards, or its share of the next
// quanta is less, until all the others have had theirs. Who makes workers work without
// end has to run for it, and can when it has paid.

// worked is what the workers of a guest have used.
type worked struct {
	unpaid atomic.Int64 // ns, since they were paid for
	next   *Guest       // in Scheduler.owing, while unpaid is not 0
	total  atomic.Int64
}

// Begin has the calling goroutine keep to its thread, and counts what it uses for the
// guest until End. It may be called by many at once, at any time, also after Close.
// Like Lap and End it costs a system call, and nothing is allocated.
func (g *Guest) Begin() (mark int64) {
	runtime.LockOSThread()
	return threadTime()
}

// Lap has the guest pay for what the thread has used since the mark, and gives the next.
func (g *Guest) Lap(mark int64) int64 {
	now := threadTime()
	g.owe(now - mark)
	return now
}

// End is a Lap, and lets the goroutine go.
func (g *Guest) End(mark int64) {
	g.owe(threadTime() - mark)
	runtime.UnlockOSThread()
}

// Worked is the CPU time that workers have used for the guest.
func (g *Guest) Worked() time.Duration { return time.Duration(g.worked.total.Load()) }

// threadTime is the CPU time of the calling thread, in ns. It takes no longer than a
// system call does: Go's runtime is not told of it, as it does not wait.
func threadTime() int64 {
	var t unix.Timespec
	// It cannot fail for a clock that is always there.
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_THREAD_CPUTIME_ID, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano()
}

// owe notes what was used, without a lock. The first to do so since the guest has paid
// puts it on the list of those who owe.
func (g *Guest) owe(ns int64) {
	if ns <= 0 {
		return
	}
	g.worked.total.Add(ns)
	if g.worked.unpaid.Add(ns) != ns {
		return
	}
	for _, p := range g.s.pools {
		p.stir()
	}
	for {
		first := g.s.owing.Load()
		g.worked.next = first
		if g.s.owing.CompareAndSwap(first, g) {
			return
		}
	}
}

// collect has all guests pay. Scheduler.mu is held.
func (s *Scheduler) collect(now int64) {
	for g := s.owing.Swap(nil); g != nil; {
		// Once it has paid it may be put on the list again.
		next := g.worked.next
		g.pay(g.worked.unpaid.Swap(0), now)
		g = next
	}
}

// pay has those of the guest's vCPUs that compete pay in equal parts, as they divide
// its tickets. If none does, the one that ran last has the worker's time for its own,
// by which it may be found to compete; what it owes is forgotten as time goes on. Of
// those that run where there is a CPU for all none pays, as nobody went without.
func (g *Guest) pay(ns, now int64) {
	if g.limit != nil {
		g.limit.Spend(now, ns)
	}
	awake := int64(0)
	for _, v := range g.members {
		if v.awake {
			awake++
		}
	}
	for _, v := range g.members {
		switch {
		case v.awake:
			v.pay(ns / awake)
		case awake == 0 && v == g.latest:
			v.pay(ns)
		}
	}
}

func (v *VCPU) pay(ns int64) {
	v.worked += ns
	v.workers += ns
	if v.pool.contested || !v.awake {
		v.pool.policy.Charge(v.client, ns)
	}
}
