// Package host runs vCPU threads on this host's CPUs by the tickets of their
// guests.
//
// A [Scheduler] has a pool for each set of CPUs, a NUMA node's as a rule, and a
// thread in each that decides at the end of every quantum who is next there
// (package scheduler says who). It acts by three means, and what was wrong with
// the others is in docs/decisions/007-priorities-and-parking.md:
//
//   - the chosen thread runs at the priority of the monitor's own threads,
//   - the next few in line are lowered to SCHED_IDLE, so that one of them runs
//     as soon as the chosen one halts, and not before,
//   - all others that want to run are held: they wait outside the guest.
//
// Every thread pays for the CPU time that it has had, by its own clock, chosen or
// not, and for what the monitor's workers have used for it ([Guest.Begin]). One that
// has halted keeps the priority of the chosen while it is owed something, so that it
// is served when its interrupt comes.
//
// Nothing is done while there is a CPU for everyone who wants one: then the kernel
// has nothing to choose either. To see when that ends, the pool's thread sleeps on
// the CPU clock of the process, so that idle guests are not looked at at all.
//
// Locks: Scheduler.mu, around everything; taken by API calls and by the pools'
// threads for each decision.
//
// Not done here: moving a vCPU to another node when its own has too many (see
// Scheduler.Crowded), disks and networks (package scheduler/flow).
package host

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"disco/scheduler"
)

// Thread is a vCPU as the scheduler sees it; vcpu.VCPU is one. Its methods are
// called from any thread, until Remove has returned, and must not block.
type Thread interface {
	// TID is the thread that runs the guest, or 0.
	TID() int
	// Halted says whether it waits for an interrupt to the guest.
	Halted() bool
	// Inside says whether it runs the guest, is halted or held. Otherwise it does
	// something for the guest, and may wait for that.
	Inside() bool
	// Hold keeps it from running the guest, until Release.
	Hold()
	Release()
	// Lower has it run the guest only when nothing else wants its CPU, until
	// Raise.
	Lower()
	Raise() error
}

// Kind is a way to choose.
type Kind int

const (
	// Stride is scheduler.NewSpreadStride.
	Stride Kind = iota
	// Lottery is scheduler.Lottery.
	Lottery
)

// Limits of a quantum.
const (
	MinQuantum     = time.Millisecond
	DefaultQuantum = 10 * time.Millisecond
	MaxQuantum     = 30 * time.Millisecond
)

// Config says how a Scheduler works.
type Config struct {
	Kind    Kind
	Quantum time.Duration // MinQuantum to MaxQuantum; 0 for DefaultQuantum
	// Pools are the host's CPUs, a set for each pool, without overlap.
	Pools [][]int
	// Bound keeps threads to their pool's CPUs even while all find one; without
	// it they run then where they were bound to before.
	Bound bool
	Seed  uint64 // of a lottery
	Log   *slog.Logger

	// Line is how many of those next in line are lowered and not held; 0 for
	// DefaultLine.
	Line int
}

// With a line of one, a CPU stands still while two halt at once. In a long one,
// the kernel gives each SCHED_IDLE thread up to 3/1024 of what the chosen has.
const (
	DefaultLine = 3
	Everyone    = 1 << 30 // nobody is held
)

// Scheduler divides CPUs among guests. Its methods may be called from any
// goroutine but not from a Thread's methods.
type Scheduler struct {
	cfg Config
	sys system
	// owing are the guests whose workers have used something that is not paid for.
	owing atomic.Pointer[Guest]
	// crowded is told of quanta in which not all found a CPU.
	crowded chan struct{}

	mu     sync.Mutex
	ledger *scheduler.Ledger
	pools  []*pool
	guests []*Guest
	closed bool
	limits int // guests with a limit

	vcpus    int // that were added so far
	troubles int // that the log was told of
}

// New starts a Scheduler, with a thread for each pool. The caller must Close it.
func New(c Config) (*Scheduler, error) {
	s, err := build(c, linux{})
	if err != nil {
		return nil, err
	}
	if err := permitted(); err != nil {
		return nil, err
	}
	for _, p := range s.pools {
		p.start()
	}
	return s, nil
}

func build(c Config, sys system) (*Scheduler, error) {
	if c.Quantum == 0 {
		c.Quantum = DefaultQuantum
	}
	if c.Quantum < MinQuantum || c.Quantum > MaxQuantum {
		return nil, fmt.Errorf("a quantum of %v: use %v to %v", c.Quantum, MinQuantum, MaxQuantum)
	}
	if len(c.Pools) == 0 {
		return nil, errors.New("no CPUs to run vCPUs on")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Line == 0 {
		c.Line = DefaultLine
	}
	s := &Scheduler{cfg: c, sys: sys, ledger: scheduler.NewLedger(), crowded: make(chan struct{}, 1)}
	seen := map[int]bool{}
	for i, cpus := range c.Pools {
		if len(cpus) == 0 {
			return nil, fmt.Errorf("pool %d has no CPU", i)
		}
		for _, c := range cpus {
			if seen[c] {
				return nil, fmt.Errorf("CPU %d is named twice", c)
			}
			seen[c] = true
		}
		s.pools = append(s.pools, newPool(s, cpus, uint64(i)))
	}
	return s, nil
}

// Close ends the pools' threads and lets all vCPUs that are left run as the kernel
// likes. Closing twice is harmless.
func (s *Scheduler) Close() {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return
	}
	for _, p := range s.pools {
		p.end()
	}
}

// Crowded receives while not all who want to run find a CPU in their pool, and
// nothing otherwise: for one who moves them to others (scheduler.Relieve).
func (s *Scheduler) Crowded() <-chan struct{} { return s.crowded }

// Group is a currency: guests in it divide what it has among them, and what they
// are given moves nothing elsewhere.
type Group struct{ funds }

// funds are a currency and the ticket that backs it.
type funds struct {
	s        *Scheduler
	currency *scheduler.Currency
	ticket   *scheduler.Ticket
}

// fund makes a currency with so many tickets of a group's, or of the base; mu is held.
func (s *Scheduler) fund(name string, by *Group, tickets int64) (f funds, err error) {
	f = funds{s: s, currency: s.ledger.NewCurrency(name)}
	f.ticket, err = s.currency(by).Back(f.currency, tickets)
	return f, err
}

// SetTickets changes the tickets. It counts from the next quantum on.
func (f *funds) SetTickets(n int64) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.ticket.Set(n)
}

// NewGroup makes a group with so many tickets of the base currency, or of parent.
func (s *Scheduler) NewGroup(name string, parent *Group, tickets int64) (*Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.fund(name, parent, tickets)
	if err != nil {
		return nil, err
	}
	return &Group{f}, nil
}

func (s *Scheduler) currency(g *Group) *scheduler.Currency {
	if g == nil {
		return s.ledger.Base()
	}
	return g.currency
}

// Close ends a group that has no guests.
func (g *Group) Close() error {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	return g.currency.Close()
}

// Guest is a currency that its vCPUs divide equally.
type Guest struct {
	funds
	name    string
	gang    bool
	limit   *scheduler.Limit // or nil
	members []*VCPU
	latest  *VCPU // of them, the one that was seen last to have run, or nil
	worked  worked
}

// GuestConfig says what a guest may have.
type GuestConfig struct {
	Name    string
	Group   *Group // or nil for the base currency
	Tickets int64
	// Limit caps it at so many thousandths of a CPU, for all its vCPUs together;
	// 0 for no limit.
	Limit int
	// Gang has its vCPUs of a pool run at the same time: when one has its turn, so
	// have the others. It is for guests whose vCPUs spin while they wait for each
	// other.
	Gang bool
}

// NewGuest makes one without vCPUs.
func (s *Scheduler) NewGuest(c GuestConfig) (*Guest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.fund(c.Name, c.Group, c.Tickets)
	if err != nil {
		return nil, err
	}
	g := &Guest{funds: f, name: c.Name, gang: c.Gang}
	g.setLimit(c.Limit)
	s.guests = append(s.guests, g)
	return g, nil
}

// Tickets is how many the guest has.
func (g *Guest) Tickets() int64 {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	return g.ticket.Amount()
}

// SetLimit caps the guest at so many thousandths of a CPU; 0 for no limit.
func (g *Guest) SetLimit(thousandths int) {
	g.s.mu.Lock()
	g.setLimit(thousandths)
	g.s.mu.Unlock()
	g.nudge()
}

func (g *Guest) setLimit(thousandths int) {
	if g.limit != nil {
		g.limit = nil
		g.s.limits--
	}
	if thousandths > 0 {
		g.s.limits++
		g.limit = scheduler.NewLimit(int64(thousandths), 1000, burst*int64(g.s.cfg.Quantum))
	}
}

func (g *Guest) nudge() {
	for _, p := range g.s.pools {
		p.nudge()
	}
}

// crowd is how many vCPUs make it worth while to have the kernel find those that wait
// faster: it takes 64 KiB.
const crowd = 64

// burst is how many quanta a guest with a limit may use at once after a rest.
const burst = 10

// vcpuTickets is what each vCPU of a guest has of its currency.
const vcpuTickets = 1000

// Add puts a vCPU's thread into a pool. It may not run yet, and may end before
// Remove.
func (g *Guest) Add(id int, t Thread, pool int) (*VCPU, error) {
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the scheduler is closed")
	}
	v := &VCPU{guest: g, id: id, thread: t, holder: s.ledger.NewHolder(g.name), cpu: noCPU}
	if _, err := g.currency.Issue(v.holder, vcpuTickets); err != nil {
		return nil, err
	}
	v.client = scheduler.NewClient(id, v.holder.Weight())
	g.members = append(g.members, v)
	s.pools[pool].add(v)
	if s.vcpus++; s.vcpus == crowd {
		s.sys.spread(crowd * 16)
	}
	return v, nil
}

// Close removes a guest and its vCPUs.
func (g *Guest) Close() error {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	for len(g.members) > 0 {
		g.members[0].remove()
	}
	g.setLimit(0)
	g.s.guests = slices.DeleteFunc(g.s.guests, func(o *Guest) bool { return o == g })
	return g.currency.Close()
}

// VCPU is one vCPU's thread in a pool.
type VCPU struct {
	guest  *Guest
	id     int
	thread Thread
	holder *scheduler.Holder
	client *scheduler.Client
	pool   *pool

	tid     int   // at the last look; 0 if it did not run
	clock   int64 // its CPU time then
	glanced int64 // the same at the last look or glance
	took    int64 // CPU time between the last two looks, until it is accounted for
	worked  int64 // and what it has paid of workers' since the last look
	seen    int64 // up to when waited and asked are right
	loose   bool  // it is in the pool's list of those
	level   level
	class   level // raised or lowered, also while it is held
	cpu     int   // the CPU that it is bound to, or anyCPU or noCPU
	next    int   // the one that it is to be bound to
	awake   bool  // it wants to run, if not just now
	halted  bool  // not just now
	capped  bool  // it wants to, and has used up its limit
	chosen  bool
	idled   bool // it was, and used less than half of what it could
	inLine  bool

	share   float64 // of CPUs, as its tickets ask
	used    int64   // CPU time in ns, as all of these
	workers int64
	waited  int64
	asked   int64
	choices uint64
}

// Where a thread may be bound to beside a single CPU.
const (
	anyCPU  = -1 // all of the pool's
	noCPU   = -2 // it has not been bound by us
	lostCPU = -3 // to some that the pool has no more, or not all of those it has
)

// Remove takes the vCPU out. Its thread runs as the kernel likes.
func (v *VCPU) Remove() {
	v.guest.s.mu.Lock()
	defer v.guest.s.mu.Unlock()
	v.remove()
}

func (v *VCPU) remove() {
	if v.pool == nil {
		return
	}
	v.pool.remove(v)
	g := v.guest
	g.members = slices.DeleteFunc(g.members, func(o *VCPU) bool { return o == v })
	if g.latest == v {
		g.latest = nil
	}
	v.holder.Close()
}

// Move puts the vCPU into another pool, as when it has moved to another node.
func (v *VCPU) Move(pool int) {
	s := v.guest.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.pool == nil || v.pool == s.pools[pool] {
		return
	}
	v.pool.remove(v)
	to := s.pools[pool]
	to.add(v)
	if tid := v.thread.TID(); tid != 0 {
		// The pool that it left may have bound it last. A thread that has ended is
		// nothing to bind, and CPUs that have gone are found out.
		_ = s.sys.pin(tid, to.cpus)
	}
}

// Usage is what a vCPU has had.
type Usage struct {
	Guest   string
	VCPU    int
	Pool    int
	State   State
	Share   float64       // of the pool's CPUs, as its tickets ask now; of those that compete
	Used    time.Duration // CPU time of its thread
	Workers time.Duration // and of the monitor's that worked for it: its part of the guest's, up to the last look
	Waited  time.Duration // time in which it wanted to run and did not
	Asked   time.Duration // CPU time that its tickets were worth while it competed
	Choices uint64        // quanta that it was chosen for
}

// State is what a vCPU did when last looked at.
type State int

const (
	// Idle has halted, or does not run at all.
	Idle State = iota
	// Running was chosen, or all are who want to run.
	Running
	// Waiting wants to run and is not chosen.
	Waiting
	// Capped has used up what its limit allows for now.
	Capped
)

// Usage tells of all vCPUs, in order of guests and ids.
func (s *Scheduler) Usage() []Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Usage
	for _, g := range s.guests {
		for _, v := range g.members {
			all = append(all, v.usage())
		}
	}
	return all
}
