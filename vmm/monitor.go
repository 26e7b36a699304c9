package vmm

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"

	"disco/devices"
	"disco/numa"
	"disco/vcpu/kvm"
)

// MonitorConfig says what the guests of a Monitor share. The zero value will do.
type MonitorConfig struct {
	CacheSize uint64         // bytes of the buffer cache for images that guests share; 0 for its default
	Topology  *numa.Topology // the host's nodes, for guests that bring none; nil to read this host's for each guest
	Scheduler SchedulerConfig
	Segments  []Segment    // the networks of its guests that are declared; others are made when a guest names them
	Log       *slog.Logger // for guests that have no log of their own; nil to drop it
}

// Monitor is what guests of one process share: /dev/kvm, the kernels and initrds
// that several of them boot, and the knowledge of where the others run. Its
// guests are one trust domain.
//
// Its methods may be called from many goroutines; Close last.
type Monitor struct {
	cfg    MonitorConfig
	log    *slog.Logger
	sys    *kvm.System
	images images
	bases  bases

	segments segments
	observer observer // see Live

	mu     sync.Mutex // before any Guest.mu
	guests []*Guest   // those that have a place, in order of coming
	shares shares
	closed bool
}

// NewMonitor opens the KVM device and makes the segments that are declared. The error is
// a *ConfigError or a *HostError. The caller must Close the Monitor, after its guests.
func NewMonitor(c MonitorConfig) (*Monitor, error) {
	if err := ValidateSegments(c.Segments); err != nil {
		return nil, err
	}
	m := &Monitor{cfg: c, log: c.Log, bases: bases{size: c.CacheSize, topology: c.Topology}}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if m.sys, err = kvm.Open(KVMPath); err != nil {
		return nil, &HostError{err}
	}
	m.segments.log, m.segments.seat = m.log, seater()
	if err := m.segments.declare(c.Segments); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// New checks cfg, opens all that it names and builds the guest, paused. A
// *ConfigError lists everything that is wrong with cfg; a *HostError says what
// this host lacks or forbids. The caller must Close the Guest.
func (m *Monitor) New(cfg Config) (*Guest, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return m.build(cfg, false)
}

// New is a guest in a Monitor of its own, which ends with it.
func New(cfg Config) (*Guest, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, err := NewMonitor(MonitorConfig{Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	g, err := m.build(cfg, true)
	if err != nil {
		// Only a Monitor with guests fails to close.
		return nil, errors.Join(err, m.Close())
	}
	return g, nil
}

// build is New for a Config that is valid. A private Monitor is closed with its
// guest.
func (m *Monitor) build(cfg Config, private bool) (_ *Guest, err error) {
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	g := &Guest{cfg: cfg, log: cfg.Log, monitor: m, history: &history{w: cfg.Stdout}, turn: make(chan struct{})}
	if g.log == nil {
		g.log = m.log
	}
	g.clock.begin()
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	g.out = devices.NewOutput(g.history)
	if err = m.admit(g); err != nil {
		return nil, err
	}
	if !cfg.FromDisk {
		if g.image, err = m.images.get(&cfg); err != nil {
			return nil, err
		}
	}
	if g.backends, err = openBackends(&cfg, &m.bases, &m.segments, g, g.out, g.log); err != nil {
		return nil, err
	}
	if g.machine, err = g.build(); err != nil {
		return nil, err
	}
	g.clock.mark(&g.clock.built)
	g.private = private
	return g, nil
}

// Guests are those that are built and not closed, in the order of their making.
func (m *Monitor) Guests() []*Guest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.guests)
}

// Close frees what the Monitor opened. It fails, and does nothing, while guests
// are left. Closing twice is harmless.
func (m *Monitor) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	if n := len(m.guests); n > 0 {
		return fmt.Errorf("the monitor still has %d guest%s", n, plural(n, "", "s"))
	}
	m.closed = true
	m.observer.stop()
	m.shares.close()
	return errors.Join(m.segments.close(), m.bases.close(), m.sys.Close())
}

var errMonitorClosed = errors.New("the monitor is closed")

// admit finds g its place, with regard to where the others are, and counts it in.
func (m *Monitor) admit(g *Guest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errMonitorClosed
	}
	if g.cfg.NUMA.Topology == nil {
		g.cfg.NUMA.Topology = m.cfg.Topology
	}
	p, err := settle(&g.cfg, m.sys, m.given(&g.cfg.NUMA), g.log)
	if err != nil {
		return err
	}
	if g.share, err = m.enter(&g.cfg); err != nil {
		return err
	}
	g.place = p
	m.guests = append(m.guests, g)
	m.weigh()
	return nil
}

// dismiss forgets a guest that was admitted.
func (m *Monitor) dismiss(g *Guest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.guests, g); i >= 0 {
		m.guests = slices.Delete(m.guests, i, i+1)
		m.weigh()
	}
}

// grant is what guests were given of a node: vCPUs, and memory that they have not
// touched yet, in bytes, which the kernel still calls free.
type grant struct {
	cpus   int
	memory uint64
}

// given is what the Monitor's guests have, as far as their nodes are those of n:
// fake nodes are others than real ones. A Topology that n brings tells of a time
// before they had touched anything. The lock is held.
func (m *Monitor) given(n *NUMA) map[numa.Node]grant {
	nodes := map[numa.Node]grant{}
	for _, g := range m.guests {
		if g.cfg.NUMA.FakeNodes != n.FakeNodes {
			continue
		}
		p, memory := g.holding(n.Topology != nil)
		for i, node := range p.nodes {
			a := nodes[node]
			for _, home := range p.homes {
				if home == i {
					a.cpus++
				}
			}
			a.memory += memory / uint64(len(p.nodes))
			nodes[node] = a
		}
	}
	return nodes
}

// holding is where the guest runs, and how much of its memory it has not touched,
// or all of it.
func (g *Guest) holding(all bool) (*place, uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	memory := g.cfg.Memory
	if g.machine != nil && !all {
		memory -= min(memory, g.machine.space.Resident())
	}
	return g.place, memory
}

// perCPU bounds the processors of Go's for guests on one node, for each CPU of the
// host: there are hardly ever more vCPUs that ran within the last 10 ms, by the kernel's
// time slices, and who waits for one of so few CPUs waits longer than that anyway.
const perCPU = 4

// threads is how many of Go's processors a guest's threads may keep: those of
// vCPUs, relays too, and of what moves pages keep one for up to 10 ms while they are
// in the kernel, and workers, of other guests too, must not wait for that. Each
// processor costs some 30 KiB, or 256 where the kernel makes all memory of huge
// pages.
func threads(cfg *Config, p *place) demand {
	if cfg.NUMA.wide(p) {
		return demand{wide: (cfg.CPUs + 3) * len(p.nodes)}
	}
	return demand{narrow: cfg.CPUs + 1}
}

// demand is processors for guests that span nodes, whose vCPUs wait for each other,
// and for others.
type demand struct{ wide, narrow int }

// processors keeps GOMAXPROCS at what this process needs, for all Monitors: the
// host's CPUs and the threads of all guests that run. A guest that is only built
// does not count, also because the TCP of each user-mode network starts as many
// goroutines as there are processors at its making.
var processors processorCount

type processorCount struct {
	mu     sync.Mutex
	base   int // without guests
	guests int
	sum    demand
}

// begin counts a guest in, and end out again.
func (c *processorCount) begin(d demand) { c.change(1, d) }
func (c *processorCount) end(d demand)   { c.change(-1, demand{-d.wide, -d.narrow}) }

func (c *processorCount) change(guests int, d demand) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.guests == 0 {
		c.base = max(runtime.NumCPU(), runtime.GOMAXPROCS(0))
	}
	c.guests += guests
	c.sum.wide += d.wide
	c.sum.narrow += d.narrow
	runtime.GOMAXPROCS(c.base + c.sum.wide + min(c.sum.narrow, perCPU*runtime.NumCPU()))
}
