// Package sample finds out which nodes use which pages of a guest, and whether
// they write to them, by watching a few of them in the nodes' Views.
//
// # How it asks
//
// A page that is watched in a View is not mapped there; the guest's next access
// through that View is a fault, reported as a [memory.Touch], and costs the
// guest some microseconds once. A page that is watched and not used costs
// nothing. So every 2 MiB block has probe pages that stay watched in the Views of
// all nodes but the one where they are: as long as a guest's accesses are local
// there are no faults at all, and the first ones that are not are seen at once.
//
// A block that is touched from afar is looked at: eight new probes are watched in
// every View, for as long as touches come in and at least twice the time in which
// the remote node came back. If the probes agree it is judged whole, 512 pages for
// some twenty faults; if not, each of its pages is watched. Pages that several
// nodes use are guarded, first the probes, then all of them: those that stay
// unwritten for a time are worth copies. The fault on a guarded page, unlike the
// kind of access that a touch reports, is sure to be a store: KVM asks for a page
// that is absent as if it would write to it.
//
// Where the kernel backs a guest by huge pages, a part of one takes all of it
// along when it migrates. That is noticed the first time; from then on a block is
// one page, which the node that has two thirds of its probes for itself gets.
// Copies are made of parts all the same.
//
// What cannot be helped is left alone for a time that doubles (the hold), so that
// faults that lead to nothing become rare.
//
// # Not done here
//
// How a fault is raised and answered (memory), what follows from the heat and how
// a page is moved (balance). How often a page is used is not counted, only by whom
// and whether within the window: accesses cannot be counted without hardware that
// tells of each.
//
// # Goroutines
//
// Touched is called by those that answer faults: it takes no lock and allocates
// nothing. All else is called by one goroutine, the daemon's.
package sample

import (
	"sync/atomic"
	"time"

	"disco/memory"
	"disco/numa"
)

// Memory is what a Sampler asks of a guest's memory; [memory.Space] has it. None
// of these methods may wait for a guest's access.
type Memory interface {
	RAM() []memory.Range
	// Locate fills dst with the nodes of the pages from p on, -1 where there is none.
	Locate(dst []numa.Node, p memory.PPN) error
	// States fills dst with the states of the pages from p on.
	States(dst []memory.State, p memory.PPN) error
	// Replicas is the set of Views with a copy of p.
	Replicas(p memory.PPN) uint32
	// Watch has the next access to each of n pages in the View of a node reported.
	Watch(p memory.PPN, n int, on numa.Node) error
	// Unwatch ends that for those that were not accessed.
	Unwatch(p memory.PPN, n int, on numa.Node) error
	// Guard has the next store to each of n pages reported, after which the page is
	// Private.
	Guard(p memory.PPN, n int) error
	// Unguard takes that back.
	Unguard(p memory.PPN, n int) error
}

// Config is how eagerly a Sampler asks. All fields are needed.
type Config struct {
	Window, MaxWindow time.Duration // least and longest time of a look
	GuardWindow       time.Duration // least time of a guard
	Hold, MaxHold     time.Duration // first and longest hold
	Decay             time.Duration // in which what was counted against a block fades
	FaultRate         int           // faults per second and node that may lead to nothing
	Share             float64       // part of one CPU that Step may take
	Guard             bool          // ask whether pages of several nodes are written
	GuardSole         bool          // ask it of pages of one remote node too
}

const (
	maxLooks  = 1024 // blocks looked at at the same time
	maxTables = 32   // and of those page by page
	maxHeats  = 1024
	// scanning is how soon a block is visited for the first time; the interval
	// doubles with each visit that finds nothing new, up to scanning<<maxIdles.
	scanning = 4 * time.Second
	maxIdles = 4
	// scanPart is the part of Share that visits to blocks that nothing is known of
	// may take.
	scanPart = 4
	// rechecks is the part of FaultRate at which blocks that are written from
	// several nodes are looked at again: each costs about that many faults.
	rechecks = 4
)

// Stats are totals since New.
type Stats struct {
	Faults  [MaxNodes]uint64 // touches reported, by node
	Writes  uint64           // those of them that were stores
	Looks   uint64           // blocks looked at
	Fine    uint64           // page by page
	Guarded uint64           // asked for stores
	Strays  uint64           // touched too little to matter
	Holds   uint64           // left alone for a time
	Late    uint64           // visits put off, as faults or time were used up
	// LocalShare is the part of the probes' uses that was local when each block was
	// last looked at; where nothing remote was seen, all.
	LocalShare float64
}

// Sampler is the sampler of one guest. See the package for who may call what.
type Sampler struct {
	cfg   Config
	mem   Memory
	nodes []numa.Node
	index []int8 // by Node: its place in nodes, -1
	now   func() time.Duration
	cpu   func() time.Duration
	wake  func()

	blocks []block
	looks  []inquiry
	free   []uint16 // of looks
	tables [maxTables]table
	spare  []uint8 // of tables
	heats  []Heat

	faults [MaxNodes]atomic.Uint64
	stores atomic.Uint64

	at        time.Duration // of the last Step
	cursor    int           // the block where Step went on to spend its time
	turn      int           // the same for looks
	scanned   int           // and for scans
	seen      [MaxNodes]uint64
	credit    [MaxNodes]float64 // faults that may still be caused
	ceiling   float64           // of credit
	recheck   float64           // rechecks that may still be begun
	allowance time.Duration     // time that Step may still take
	leisure   time.Duration     // and scans
	random    uint32
	stats     Stats

	// coarse is whether it was seen that more was moved than was asked for: the
	// kernel backs the guest by huge pages, and moves them whole.
	coarse bool
	alive  int // blocks with pages
	remote int // their remote, summed

	homes  [BlockPages]numa.Node
	states [BlockPages]memory.State
}

// New makes a Sampler for a guest that runs on nodes, at most [MaxNodes] of them,
// in the order of its Views. now is a monotonic clock, and cpu the CPU time of the
// thread that calls Step. wake is called when there is something that should not
// wait for the next Step; it is called by Touched and must not block.
func New(cfg Config, m Memory, nodes []numa.Node, now, cpu func() time.Duration, wake func()) *Sampler {
	s := &Sampler{
		cfg: cfg, mem: m, nodes: nodes, now: now, cpu: cpu, wake: wake,
		looks:  make([]inquiry, maxLooks),
		free:   make([]uint16, maxLooks),
		spare:  make([]uint8, maxTables),
		heats:  make([]Heat, 0, maxHeats),
		random: 1,
	}
	for i, n := range nodes {
		for int(n) >= len(s.index) {
			s.index = append(s.index, -1)
		}
		s.index[n] = int8(i)
	}
	for i := range s.free {
		s.free[i] = uint16(i)
	}
	for i := range s.spare {
		s.spare[i] = uint8(i)
	}
	ram := m.RAM()
	s.blocks = make([]block, (uint64(ram[len(ram)-1].End())+blockSize-1)/blockSize)
	for _, r := range ram {
		// A block that RAM begins within is left out: machines have none.
		for i := (uint64(r.Start) + blockSize - 1) / blockSize; i*blockSize < uint64(r.End()); i++ {
			s.blocks[i].pages = uint16(min(blockSize, uint64(r.End())-i*blockSize) / pageSize)
		}
	}
	s.at = now()
	for i := range s.blocks {
		// Spread, or all come due in the same Step for ever.
		s.blocks[i].due = s.at + scanning*time.Duration(i)/time.Duration(len(s.blocks))
		s.blocks[i].aged = s.at
	}
	s.ceiling = float64(1024 + 16*len(s.blocks))
	for v := range s.credit {
		s.credit[v] = s.ceiling
	}
	return s
}

const (
	pageSize  = 4096
	blockSize = BlockPages * pageSize
)

// Touched takes note of a touch. It is what to give to memory's OnTouch.
func (s *Sampler) Touched(t memory.Touch) {
	v := s.place(t.Node)
	i := int(t.PPN / BlockPages)
	if v < 0 || i >= len(s.blocks) {
		return
	}
	s.faults[v].Add(1)
	b := &s.blocks[i]
	page := int(t.PPN % BlockPages)
	if w, bit := &b.touched[v/8], uint64(1)<<(v%8*8+page/stratum); w.Load()&bit == 0 {
		w.Or(bit)
	}
	var sure uint32
	if t.Write {
		s.stores.Add(1)
		if t.Known {
			sure = tableWritten
			b.writes.Or(1 << (page / stratum))
		}
		if n := b.writes.Add(1<<8) >> 8; n == rush && b.copied.Load() != 0 {
			s.wake()
		}
	}
	if n := b.table.Load(); n != 0 {
		s.tables[n-1][page].Or(1<<v | sure)
	}
}

// place is where node n is in the list of nodes, -1 if it is not.
func (s *Sampler) place(n numa.Node) int {
	if n < 0 || int(n) >= len(s.index) {
		return -1
	}
	return int(s.index[n])
}

// Step looks at what was touched, watches what is to be watched, and adds to what
// Heats will return, until it has used up its share of time: first the inquiries
// under way, then what was touched, and then what may have come unseen, for which
// a part of the share must do.
func (s *Sampler) Step() {
	now := s.now()
	s.refill(now)
	for range s.looks {
		if !s.afford() {
			return
		}
		if l := &s.looks[s.turn]; l.used {
			s.spend(func() { s.advance(l, now) })
		}
		s.turn = (s.turn + 1) % len(s.looks)
	}
	for range s.blocks {
		if b := &s.blocks[s.cursor]; b.pages > 0 && b.phase == idle && s.pending(b, now) {
			if !s.afford() {
				s.stats.Late++
				return
			}
			s.spend(func() { s.visit(s.cursor, now) })
		}
		s.cursor = (s.cursor + 1) % len(s.blocks)
	}
	for range s.blocks {
		if b := &s.blocks[s.scanned]; b.pages > 0 && b.phase == idle && !b.held && now >= b.due {
			if !s.afford() || s.leisure <= 0 {
				return
			}
			s.leisure -= s.spend(func() { s.scan(s.scanned, now) })
		}
		s.scanned = (s.scanned + 1) % len(s.blocks)
	}
}

// refill credits what time has brought and debits the faults taken.
func (s *Sampler) refill(now time.Duration) {
	dt := now - s.at
	s.at = now
	rate := float64(s.cfg.FaultRate) * dt.Seconds()
	for v := range s.nodes {
		n := s.faults[v].Load()
		s.earn(v, rate-float64(n-s.seen[v]))
		s.seen[v] = n
	}
	// A second's worth may be saved, at least one.
	s.recheck = min(s.recheck+rate/rechecks, max(1, float64(s.cfg.FaultRate)/rechecks))
	share := time.Duration(s.cfg.Share * float64(dt))
	second := max(share, time.Duration(s.cfg.Share*float64(time.Second)))
	// One act that took long must not blind the Sampler for longer.
	s.allowance = min(max(s.allowance, -2*second)+share, second)
	s.leisure = min(s.leisure+share/scanPart, second/scanPart)
}

// earn adds faults that node v may cause. Debts end somewhere, too: a burst of
// faults that nobody foresaw must not blind the Sampler for long.
func (s *Sampler) earn(v int, faults float64) {
	s.credit[v] = max(min(s.credit[v]+faults, s.ceiling), -10*float64(s.cfg.FaultRate))
}

// solvent says whether more faults may be caused on purpose.
func (s *Sampler) solvent() bool {
	for v := range s.nodes {
		if s.credit[v] <= 0 {
			return false
		}
	}
	return true
}

func (s *Sampler) afford() bool { return s.allowance > 0 }

// spend does f, and debits the CPU time that it took and returns it.
func (s *Sampler) spend(f func()) time.Duration {
	t := s.cpu()
	f()
	took := max(0, s.cpu()-t)
	s.allowance -= took
	return took
}

// Heats are the judgements since the last call, valid until the next Step. Each
// block that has any waits for a [Sampler.Finish].
func (s *Sampler) Heats() []Heat {
	h := s.heats
	s.heats = s.heats[:0]
	return h
}

// Stats may be called by the goroutine that calls Step.
func (s *Sampler) Stats() Stats {
	st := s.stats
	for v := range s.nodes {
		st.Faults[v] = s.faults[v].Load()
	}
	st.Writes = s.stores.Load()
	st.LocalShare = 1
	if s.alive > 0 {
		st.LocalShare = 1 - float64(s.remote)/float64(s.alive*allRemote)
	}
	return st
}

// pick is a number from 0 to n-1, the same ones in each run.
func (s *Sampler) pick(n int) int {
	s.random ^= s.random << 13
	s.random ^= s.random >> 17
	s.random ^= s.random << 5
	return int(s.random % uint32(n))
}
