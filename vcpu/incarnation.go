package vcpu

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

// incarnation is one KVM vCPU and the thread that runs it. A vCPU has one for
// each KVM VM of its guest.
type incarnation struct {
	kvm    *kvm.VCPU
	vm     int           // index of its VM in the set
	halted *kvm.Gauge    // or nil: see VCPU.WatchHalts
	steer  *kvm.Steering // the vCPU's

	calls atomic.Uint32 // kicks, which get the thread out of kvm.VCPU.RunSteered

	tid   atomic.Int64 // 0 before the thread runs, gone after it ended
	kicks sync.Mutex   // held while kicking, so that the thread cannot end and be closed meanwhile

	// Of a vCPU with several incarnations:

	relay relay
	// unborn says that the guest has not started the vCPU through this
	// incarnation nor, as far as it knows, through another. Only its thread uses
	// it, and Move while that is parked.
	unborn bool
	parked atomic.Bool // the thread waits for the gate to open
}

// gone is the tid of a thread that has ended.
const gone = -1

// start runs f on a new thread, after it has its id.
func (b *incarnation) start(f func()) {
	go func() {
		// Never unlocked: the thread dies with the goroutine, so that no
		// later goroutine inherits what a vCPU did to it.
		runtime.LockOSThread()
		b.tid.Store(int64(unix.Gettid()))
		f()
	}()
}

// ended is called on the thread when it will not run the KVM vCPU again.
func (b *incarnation) ended() {
	b.kicks.Lock()
	b.tid.Store(gone)
	b.kicks.Unlock()
}

// kick gets the thread out of KVM_RUN once, from any thread, even if it has not
// entered yet. It does not allocate.
func (b *incarnation) kick() { b.interrupt(true) }

// interrupt is a kick if out is true. If not, the thread only looks at what its
// kvm.Steering says, as soon as it has a CPU, and goes on.
func (b *incarnation) interrupt(out bool) {
	b.kicks.Lock()
	defer b.kicks.Unlock()
	tid := b.tid.Load()
	if tid == gone {
		return
	}
	if out {
		b.calls.Add(1)
	}
	// The flag first: a thread that has no id yet finds it on its way in.
	b.kvm.ImmediateExit(true)
	if tid := b.tid.Load(); tid != 0 {
		if out && b.steer.Idle() {
			// Else it would come out when nothing else wants its CPU. Who may
			// not raise it may not lower it either.
			_ = kvm.Raise(int(tid))
		}
		// The thread is ours and alive while kicks is held; nothing can go wrong.
		_ = unix.Tgkill(os.Getpid(), int(tid), unix.SIGURG)
	}
}

// raise gives the thread its own priority again.
func (b *incarnation) raise() error {
	b.kicks.Lock()
	defer b.kicks.Unlock()
	tid := b.tid.Load()
	if tid == 0 || tid == gone {
		return nil
	}
	return kvm.Raise(int(tid))
}

// pin binds the thread to host CPUs; none means that it is left as it is. A
// thread that does not run yet, or no more, is no error.
func (b *incarnation) pin(cpus []int) error {
	if len(cpus) == 0 {
		return nil
	}
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	b.kicks.Lock()
	defer b.kicks.Unlock()
	tid := b.tid.Load()
	if tid == 0 || tid == gone {
		return nil
	}
	if err := unix.SchedSetaffinity(int(tid), &set); err != nil {
		return fmt.Errorf("bind the thread to CPUs %v: %w", cpus, err)
	}
	return nil
}
