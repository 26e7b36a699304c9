// Package vcpu runs virtual CPUs: their threads, their loops of KVM_RUN and
// exits, and the kick that gets one out of the guest.
//
// A [Set] is the vCPUs of one guest. A [VCPU] has its own OS thread from Start
// until it ends. Exits that touch devices go to a [Handler] on that thread; every
// other exit ends the vCPU with an [End] that says why.
//
// The states and who moves them:
//
//	built   --Start-->            running
//	running --exit handled-->     running
//	running --Stop (any thread)-> ended (Stopped)
//	running --fatal exit-->       ended (Shutdown, HostError, …)
//	ended   --Close-->            freed
//
// A kick is: raise the request word, count the call, set immediate_exit, send
// SIGURG to the thread. KVM_RUN's caller clears immediate_exit after EINTR and then
// reads the count, so a kick at any moment is seen. SIGURG is the signal that the Go
// runtime itself uses to preempt, so its handler is always there and harmless.
//
// # Several KVM VMs
//
// A wide Set has one KVM VM for each node that its guest runs on. A vCPU then has
// an incarnation, with a thread, in each VM, in one of these roles:
//
//	unborn --INIT and SIPI, here or elsewhere--> relay, or live in its home
//	relay  --INIT, while kicked-->               unborn
//	relay  <--Set.Move-->                        live
//
// The live one runs the guest. A relay runs code of ours that names to its thread
// each interrupt that KVM delivers to it; the thread sends it on to the live
// incarnation (relayImage, passOn). How CPUs are started is at gestate, how
// one moves at Set.Move and transfer.
//
// Locks, outermost first: Set.moving (one Move, Start or Close), gate.mu (who is
// parked), Set.trapping, Set.affinity, incarnation.kicks. A vCPU's thread
// takes none of them on its way through an exit or a relayed interrupt.
//
// A scheduler of vCPUs has three means here: Hold keeps a vCPU outside the guest,
// Lower has it give way to all else while it is inside, and Halted tells whether
// it has anything to do.
//
// Not done here: who is to run and when, memory and devices, whether the host's KVM can run a wide guest
// at all (kvm.TwoDimensional), and where a vCPU had best be.
package vcpu

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

// Handler takes a vCPU's port and memory-mapped accesses. p is 1 to 8 bytes; a
// read fills it. Calls come on the vCPU's own thread, from many vCPUs at once.
// An error means that the monitor cannot go on, and ends the vCPU; what a guest
// does wrong is no error.
type Handler interface {
	PIO(port uint16, write bool, p []byte) error
	MMIO(addr uint64, write bool, p []byte) error
}

// Cause says why a vCPU ended.
type Cause int

// The causes of an End.
const (
	// Stopped is an answer to Stop.
	Stopped Cause = iota
	// Shutdown is a triple fault.
	Shutdown
	// InternalError is KVM giving up on an instruction or on its own state.
	InternalError
	// FailEntry is the CPU refusing the guest's state.
	FailEntry
	// Halted is a guest that stopped this CPU for good, on a VM without
	// in-kernel interrupt controllers.
	Halted
	// Unexpected is an exit that the monitor never asked for.
	Unexpected
	// RelayLost is a relay that did anything but relay: see Set.
	RelayLost
	// HostError is an error of the host or of a Handler.
	HostError
)

// End is how a vCPU ended.
type End struct {
	CPU   int
	Cause Cause
	Err   error  // with HostError
	Text  string // one line that says what happened, for people
}

// VCPU is one virtual CPU. Stop, Kick, Exits, Relayed and ID may be called from
// any thread; the rest is for the one goroutine that builds and ends the guest.
type VCPU struct {
	handler Handler
	id      int

	bodies []*incarnation // one for each VM
	live   atomic.Int32   // the index of the one that runs the guest; changes only in Set.Move
	set    *Set           // nil with one incarnation
	// entered, if not nil, is called on each thread first.
	entered func(*VCPU, *incarnation) error

	begun   atomic.Bool // with several incarnations: the guest has started the vCPU
	stop    atomic.Bool
	steer   kvm.Steering                     // see Hold and Lower
	tell    func(at uint64, d time.Duration) // or nil: see SetOptions.Stolen
	mend    func() bool                      // or nil: see SetOptions.Mend
	running atomic.Int32                     // threads that have not ended
	first   sync.Once                        // sets end
	end     End
	done    chan struct{}

	exits   [kvm.NumExits]atomic.Uint64
	relayed atomic.Uint64
}

// New wraps a KVM vCPU, which the VCPU owns from now on.
func New(id int, c *kvm.VCPU, h Handler) *VCPU {
	v := &VCPU{handler: h, id: id, done: make(chan struct{})}
	v.embody(c, 0)
	return v
}

// ID is the vCPU's number, which is its APIC id.
func (v *VCPU) ID() int { return v.id }

// KVM is the KVM vCPU that runs the guest, for setting registers before Start
// and reading them after Done.
func (v *VCPU) KVM() *kvm.VCPU { return v.body().kvm }

// embody gives the vCPU an incarnation in its guest's VM of that index.
func (v *VCPU) embody(c *kvm.VCPU, vm int) {
	v.bodies = append(v.bodies, &incarnation{kvm: c, vm: vm, steer: &v.steer})
}

func (v *VCPU) body() *incarnation { return v.bodies[v.live.Load()] }

// Start begins to run the guest on a thread of its own.
func (v *VCPU) Start() {
	v.running.Store(int32(len(v.bodies)))
	for _, b := range v.bodies {
		b.start(func() { v.run(b) })
	}
}

// run is the life of one thread.
func (v *VCPU) run(b *incarnation) {
	e := v.enter(b)
	v.first.Do(func() { v.end = e })
	b.ended()
	if v.running.Add(-1) == 0 {
		close(v.done)
	} else if !v.stop.Load() {
		v.Stop()
	}
}

func (v *VCPU) enter(b *incarnation) End {
	if v.entered != nil {
		if err := v.entered(v, b); err != nil {
			return v.hostError(err)
		}
	}
	if v.set == nil {
		return v.loop(b)
	}
	return v.runOneOfMany(b)
}

// Done is closed when the vCPU has ended.
func (v *VCPU) Done() <-chan struct{} { return v.done }

// End is how the vCPU ended. It is valid after Done is closed.
func (v *VCPU) End() End { return v.end }

// Stop asks the vCPU to end, from any thread, its own included, and does not
// wait: see Done.
func (v *VCPU) Stop() {
	v.stop.Store(true)
	v.Release()
	for _, b := range v.bodies {
		b.kick()
	}
}

// Kick gets the vCPU out of the guest once, from any thread. Of a vCPU that has
// ended it does nothing, even after Close. It does not allocate.
func (v *VCPU) Kick() { v.body().kick() }

// Exits is how often the vCPU came out to the monitor with reason e. What its
// relays came out for is not in it: see Relayed.
func (v *VCPU) Exits(e kvm.Exit) uint64 {
	if e >= kvm.NumExits {
		return 0
	}
	n := v.exits[e].Load()
	if e == kvm.ExitIntr {
		n += v.steer.Turns()
	}
	return n
}

// Relayed is how many interrupts came to the vCPU from other KVM VMs of its
// guest. It is 0 for a guest with one VM.
func (v *VCPU) Relayed() uint64 { return v.relayed.Load() }

// Close frees the vCPU. It must have ended, or never been started.
func (v *VCPU) Close() error {
	var errs []error
	for _, b := range v.bodies {
		if b.halted != nil {
			errs = append(errs, b.halted.Close())
		}
		errs = append(errs, b.kvm.Close())
	}
	return errors.Join(errs...)
}

// loop runs the guest until it ends, or until the vCPU is live elsewhere: then
// the End is that of a Stop, and v.live says so.
func (v *VCPU) loop(b *incarnation) End {
	calls, on := v.ask(b)
	if !on {
		return End{CPU: v.id, Cause: Stopped}
	}
	for {
		// A request that came before this thread had an id to signal left
		// immediate_exit set, so KVM_RUN returns at once.
		if err := b.kvm.RunSteered(&v.steer, &b.calls, calls); err != nil {
			switch {
			case errors.Is(err, unix.EINTR):
				v.exits[kvm.ExitIntr].Add(1)
				if calls, on = v.ask(b); !on {
					return End{CPU: v.id, Cause: Stopped}
				}
				continue
			case errors.Is(err, unix.EAGAIN):
				// An application processor woke for INIT or SIPI.
				continue
			case errors.Is(err, unix.EFAULT) && v.mend != nil:
				if v.mend() {
					continue
				}
				err = fmt.Errorf("the guest used memory, its own or a device's, that cannot be had: %w", err)
			}
			return v.hostError(fmt.Errorf("KVM_RUN: %w", err))
		}
		e := b.kvm.Exit()
		if e < kvm.NumExits {
			v.exits[e].Add(1)
		}
		switch e {
		case kvm.ExitIO:
			if err := v.io(b); err != nil {
				return v.hostError(err)
			}
		case kvm.ExitMMIO:
			m := b.kvm.MMIO()
			if err := v.handler.MMIO(m.Addr, m.Write, m.Data); err != nil {
				return v.hostError(err)
			}
		case kvm.ExitIntr, kvm.ExitIOAPICEOI:
			// Interrupts are edge-triggered only, so an EOI asks for nothing.
		default:
			return v.fatal(b, e)
		}
	}
}

// ask says whether the vCPU is to go on in b, and how many calls have been answered.
func (v *VCPU) ask(b *incarnation) (calls uint32, on bool) {
	calls = b.calls.Load() // before what they are about
	if v.stop.Load() || v.set != nil && !v.interlude(b) {
		return calls, false
	}
	v.resume(b)
	if v.steer.Hold.Load() != free {
		b.kvm.ImmediateExit(true)
	}
	return calls, true
}

func (v *VCPU) io(b *incarnation) error {
	io := b.kvm.IO()
	for len(io.Data) > 0 {
		if err := v.handler.PIO(io.Port, io.Out, io.Data[:io.Size:io.Size]); err != nil {
			return err
		}
		io.Data = io.Data[io.Size:]
	}
	return nil
}

func (v *VCPU) hostError(err error) End {
	return End{CPU: v.id, Cause: HostError, Err: err, Text: fmt.Sprintf("vCPU %d: %v", v.id, err)}
}

func (v *VCPU) fatal(b *incarnation, e kvm.Exit) End {
	end := End{CPU: v.id}
	var what string
	switch e {
	case kvm.ExitShutdown:
		end.Cause, what = Shutdown, "triple fault"
	case kvm.ExitHLT:
		end.Cause, what = Halted, "halted for good"
	case kvm.ExitFailEntry:
		end.Cause, what = FailEntry, fmt.Sprintf("the CPU refused the guest's state (hardware reason %#x)", b.kvm.HardwareReason())
	case kvm.ExitInternalError:
		code, data := b.kvm.Suberror()
		end.Cause, what = InternalError, internalError(code, data)
	default:
		end.Cause, what = Unexpected, fmt.Sprintf("unexpected KVM exit %v", e)
	}
	end.Text = fmt.Sprintf("vCPU %d: %s%s", v.id, what, b.where())
	return end
}

// where says where the guest stood, as far as KVM tells.
func (b *incarnation) where() string {
	r, err := b.kvm.Regs()
	if err != nil {
		return ""
	}
	s, err := b.kvm.Sregs()
	if err != nil {
		return fmt.Sprintf(" at RIP %#x", r.RIP)
	}
	return fmt.Sprintf(" at RIP %#x (CR0 %#x, CR3 %#x, CS %#x)", r.RIP, s.CR0, s.CR3, s.CS.Selector)
}
