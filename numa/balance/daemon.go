package balance

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/numa"
	"disco/numa/sample"
)

// Memory is what a Daemon does to a guest's memory; [memory.Space] has it.
type Memory interface {
	sample.Memory
	// OnTouch says whom to tell of touches, before the guest runs.
	OnTouch(func(memory.Touch))
	// Migrate, Replicate and Collapse do so with up to n pages from p on, as many
	// as they can, and say how many. Pages that are so already do not count.
	Migrate(p memory.PPN, n int, to numa.Node) (done int, err error)
	Replicate(p memory.PPN, n int, on numa.Node) (done int, err error)
	Collapse(p memory.PPN, n int) (done int, err error)
	// Reclaim gives back some pages of replicas, and says how many.
	Reclaim(pages int) int
	Stats() memory.Stats
}

const (
	pageSize = 4096
	// checking is how often free memory and mappings are looked at while pages
	// move, and idling how often while none do.
	checking = time.Second
	idling   = 10 * time.Second
	// backlog is the actions waiting above which no more is decided: what waits
	// grows stale.
	backlog = 64
)

// Daemon keeps one guest's pages near those who use them. All methods may be
// called from any goroutine.
type Daemon struct {
	cfg     Config
	mem     Memory
	top     *numa.Topology
	nodes   []numa.Node
	log     *slog.Logger
	sampler *sample.Sampler
	now     func() time.Duration
	cpu     func() time.Duration // of the thread that calls Step
	free    func(numa.Node) (numa.Memory, error)

	wake    chan struct{}
	quit    chan struct{}
	done    chan struct{}
	started sync.Once
	closed  sync.Once

	step   sync.Mutex // held while the daemon acts
	paused bool
	queue  []Action // from head on
	head   int
	result sample.Outcome // of the block at the head, so far
	room   []int
	minRun int
	last   time.Duration // of the last step
	check  time.Duration // when to look at free memory next
	pages  float64       // that may still be moved
	time   time.Duration // that moving may still take
	full   bool          // said that memory is short
	scarce bool          // said that mappings are

	since  time.Duration // of the rates
	faults uint64        // then
	moves  uint64

	mu    sync.Mutex // guards stats; taken inside step
	stats Stats
}

// New makes a Daemon for a guest that runs on nodes, two to [sample.MaxNodes] of
// them in the order of the Space's Views. With [Off], or one node, there is
// nothing for a Daemon to do, and making one is an error. The Daemon is told of
// touches from now on, so the guest must not run yet. Close it before the Space.
// log may be nil.
func New(cfg Config, m Memory, t *numa.Topology, nodes []numa.Node, log *slog.Logger) (*Daemon, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("numa policy: %w", err)
	}
	switch {
	case cfg.Policy == Off:
		return nil, errors.New("numa policy: off needs no daemon")
	case len(nodes) < 2 || len(nodes) > sample.MaxNodes:
		return nil, fmt.Errorf("numa policy: a guest on %d nodes: 2 to %d can be balanced", len(nodes), sample.MaxNodes)
	}
	for _, n := range nodes {
		if !t.Has(n) {
			return nil, fmt.Errorf("numa policy: this machine has no node %d", n)
		}
	}
	root := os.DirFS("/")
	begin := time.Now()
	d := newDaemon(cfg.complete(), m, t, nodes, log,
		func() time.Duration { return time.Since(begin) }, threadTime,
		func(n numa.Node) (numa.Memory, error) { return t.ReadMemory(root, n) })
	return d, nil
}

func newDaemon(cfg Config, m Memory, t *numa.Topology, nodes []numa.Node, log *slog.Logger,
	now, cpu func() time.Duration, free func(numa.Node) (numa.Memory, error)) *Daemon {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Daemon{
		cfg: cfg, mem: m, top: t, nodes: nodes, log: log, now: now, cpu: cpu, free: free,
		wake:  make(chan struct{}, 1),
		quit:  make(chan struct{}),
		done:  make(chan struct{}),
		queue: make([]Action, 0, 1024),
		room:  make([]int, len(nodes)),
	}
	d.sampler = sample.New(sample.Config{
		Window: cfg.Window, MaxWindow: cfg.MaxWindow, GuardWindow: cfg.GuardWindow,
		Hold: cfg.Hold, MaxHold: cfg.MaxHold, Decay: cfg.Decay,
		FaultRate: cfg.FaultRate, Share: cfg.SampleShare,
		Guard: cfg.Policy.replicates(), GuardSole: !cfg.Policy.migrates(),
	}, m, nodes, now, cpu, d.hurry)
	d.last = now()
	d.stats = Stats{Policy: cfg.Policy, LocalShare: 1}
	m.OnTouch(d.sampler.Touched)
	return d
}

// hurry has the daemon act before the next tick.
func (d *Daemon) hurry() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Start starts the daemon's goroutine.
func (d *Daemon) Start() {
	d.started.Do(func() { go d.run() })
}

// threadTime is the CPU time of this thread: where an act waits for a CPU that a
// guest has, that is no cost of the act.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func (d *Daemon) run() {
	defer close(d.done)
	runtime.LockOSThread() // for threadTime
	defer runtime.UnlockOSThread()
	tick := time.NewTicker(d.cfg.Tick)
	defer tick.Stop()
	for {
		select {
		case <-d.quit:
			return
		case <-tick.C:
		case <-d.wake:
		}
		d.Step()
	}
}

// Close stops the daemon and waits until it is done. Pages stay as they are.
func (d *Daemon) Close() {
	d.closed.Do(func() { close(d.quit) })
	d.started.Do(func() { close(d.done) })
	<-d.done
}

// Pause waits until no act is under way, and has none begun until Resume.
func (d *Daemon) Pause() { d.pause(true) }

// Resume ends a Pause.
func (d *Daemon) Resume() { d.pause(false) }

func (d *Daemon) pause(p bool) {
	d.step.Lock()
	defer d.step.Unlock()
	d.paused = p
	d.mu.Lock()
	d.stats.Paused = p
	d.mu.Unlock()
}

// Stats are the counters as of the last tick.
func (d *Daemon) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Step does what is due now: what the goroutine does at each tick.
func (d *Daemon) Step() {
	d.step.Lock()
	defer d.step.Unlock()
	now := d.now()
	dt := now - d.last
	d.last = now
	if d.paused {
		return
	}
	if now >= d.check {
		d.look(now)
	}
	began := d.cpu()
	d.sampler.Step()
	sampled := d.cpu()
	if len(d.queue)-d.head < backlog {
		d.decide()
	}
	rate := float64(d.cfg.MoveRate)
	d.pages = min(d.pages+rate*dt.Seconds(), max(sample.BlockPages, rate*d.cfg.Tick.Seconds()*2))
	// One act that took long must not stop all others for longer than a second.
	owed := -time.Duration(d.cfg.MoveShare * float64(time.Second))
	d.time = min(max(d.time, owed)+time.Duration(d.cfg.MoveShare*float64(dt)), time.Duration(d.cfg.MoveShare*float64(2*d.cfg.Tick)))
	for d.head < len(d.queue) && d.pages > 0 && d.time > 0 {
		t := d.cpu()
		d.next()
		d.time -= max(0, d.cpu()-t)
	}
	d.publish(now, sampled-began, d.cpu()-sampled)
}

// decide queues what follows from the heat there is. What is to be collapsed is
// collapsed at once: stores are being held up by it.
func (d *Daemon) decide() {
	if d.head > 0 {
		n := copy(d.queue, d.queue[d.head:])
		d.queue, d.head = d.queue[:n], 0
	}
	from := len(d.queue)
	d.queue = Decide(d.top, d.sampler.Heats(), Budget{
		Policy: d.cfg.Policy, Nodes: d.nodes, MaxMoves: d.cfg.MaxMoves, Room: d.room, MinRun: d.minRun,
	}, d.queue)
	kept := d.queue[:from]
	for _, a := range d.queue[from:] {
		if a.Do != ToCollapse {
			kept = append(kept, a)
			continue
		}
		n, err := d.mem.Collapse(a.First, a.Pages)
		d.mu.Lock()
		d.stats.Collapsed += uint64(n)
		d.mu.Unlock()
		d.failed(err, -1)
		d.sampler.Finish(a.First, sample.Outcome{Collapsed: n, Bad: true})
	}
	d.queue = kept
}

// next does the action at the head of the queue.
func (d *Daemon) next() {
	a := d.queue[d.head]
	d.head++
	var n int
	var err error
	switch a.Do {
	case ToMigrate:
		n, err = d.mem.Migrate(a.First, a.Pages, a.To)
		d.result.Moved += n
	case ToReplicate:
		n, err = d.mem.Replicate(a.First, a.Pages, a.To)
		d.result.Copied += n
	case ToLeave:
		d.result.Bad = d.result.Bad || a.Why != Local
	}
	d.pages -= float64(n)
	if err != nil {
		d.result.Bad = true
		d.failed(err, place(d.nodes, a.To))
	}
	d.mu.Lock()
	switch a.Do {
	case ToMigrate:
		d.stats.Migrated += uint64(n)
	case ToReplicate:
		d.stats.Replicated += uint64(n)
	case ToLeave:
		d.stats.left(a.Why)
	}
	d.mu.Unlock()
	if d.head < len(d.queue) && d.queue[d.head].First/sample.BlockPages == a.First/sample.BlockPages {
		return
	}
	if d.result.Moved+d.result.Copied == 0 {
		d.result.Bad = true // or it would be looked at again at once, for the same
	}
	d.sampler.Finish(a.First, d.result)
	d.result = sample.Outcome{}
}

// failed takes note of what memory refused; v is the place of the node that pages
// were for.
func (d *Daemon) failed(err error, v int) {
	if err == nil {
		return
	}
	d.mu.Lock()
	d.stats.Failed++
	d.mu.Unlock()
	switch {
	case errors.Is(err, memory.ErrNodeFull):
		if v >= 0 {
			d.room[v] = 0 // until the next look
		}
		if !d.full {
			d.full = true
			d.log.Warn("a node is full: no more pages are brought there", "error", err)
		}
	case errors.Is(err, memory.ErrBudget):
		d.minRun = sample.BlockPages + 1 // until the next look
		if !d.scarce {
			d.scarce = true
			d.log.Warn("mappings are used up: no more copies of pages; raise vm.max_map_count", "error", err)
		}
	default:
		d.log.Debug("pages stay where they are", "error", err)
	}
}

// look looks at available memory and mappings, and gives replicas back if a node has
// too little.
func (d *Daemon) look(now time.Duration) {
	short := 0
	for v, n := range d.nodes {
		m, err := d.free(n)
		if err != nil {
			// Nothing is known: nothing is brought there.
			d.room[v] = 0
			continue
		}
		room := (int64(m.Available) - int64(float64(m.Total)*d.cfg.MinFree)) / pageSize
		d.room[v] = int(max(room, 0))
		short = max(short, int(-room))
	}
	if short > 0 {
		n := d.mem.Reclaim(short)
		d.mu.Lock()
		d.stats.Reclaimed += uint64(n)
		d.mu.Unlock()
		if n > 0 {
			d.log.Info("a node is short of memory: copies of pages are given back", "pages", n)
		}
	}
	st := d.mem.Stats()
	switch used, all := uint64(st.VMAs), uint64(st.VMABudget); {
	case used*2 < all:
		d.minRun = sample.MinRun
	case used*4 < all*3:
		d.minRun = 16
	default:
		d.minRun = 64
	}
	d.check = now + idling
	if d.head < len(d.queue) || d.moved() != d.moves {
		d.check = now + checking
	}
}

// moved is the pages that were moved and copied.
func (d *Daemon) moved() uint64 { return d.stats.Migrated + d.stats.Replicated }

// publish brings Stats up to date.
func (d *Daemon) publish(now, sampling, moving time.Duration) {
	st := d.sampler.Stats()
	var faults uint64
	for _, n := range st.Faults {
		faults += n
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &d.stats
	s.Faults, s.Writes = faults, st.Writes
	s.Looks, s.Fine, s.Guarded, s.Strays, s.Holds, s.Late = st.Looks, st.Fine, st.Guarded, st.Strays, st.Holds, st.Late
	s.LocalShare = st.LocalShare
	s.Sampling += sampling
	s.Moving += moving
	if dt := now - d.since; dt >= time.Second {
		s.FaultsPerSecond = float64(faults-d.faults) / dt.Seconds()
		s.MovesPerSecond = float64(d.moved()-d.moves) / dt.Seconds()
		d.since, d.faults, d.moves = now, faults, d.moved()
		d.check = min(d.check, now+checking)
	}
}
