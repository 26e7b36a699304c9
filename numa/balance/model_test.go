package balance

import (
	"math/rand/v2"
	"testing"
	"testing/fstest"
	"time"

	"disco/memory"
	"disco/numa"
	"disco/numa/sample"
)

// model is a guest's memory that is only counted: where each page is, which Views
// map it, which have copies. It does what memory.Space promises.
type model struct {
	nodes []numa.Node
	ram   []memory.Range
	page  []modelPage
	touch func(memory.Touch)
	known bool // whether touches tell reads from stores

	size  []int // pages on each node
	limit []int // that a node may have; 0: any number
	stuck func(p memory.PPN) bool
	spend func(time.Duration) // for an act
	scale time.Duration       // how slow acts are
	runs  int                 // copies that mappings are left for
	huge  bool                // pages of a block move together

	faults                                  []int // by node
	migrated, replicated, collapsed, writes int
	reclaimed                               int
}

type modelPage struct {
	home    int8 // place of the node; -1: none
	state   memory.State
	mapped  sample.Mask // Views in which an access does not fault
	watched sample.Mask
	copies  sample.Mask
}

func newModel(n, pages int) *model {
	m := &model{ram: []memory.Range{{Size: uint64(pages) * pageSize}}, page: make([]modelPage, pages),
		size: make([]int, n), limit: make([]int, n), faults: make([]int, n), known: true, scale: 1, runs: 1 << 30}
	for i := range n {
		m.nodes = append(m.nodes, numa.Node(i))
	}
	for i := range m.page {
		m.page[i].home = -1
	}
	return m
}

func (m *model) work(d time.Duration) {
	if m.spend != nil {
		m.spend(d * m.scale)
	}
}

func (m *model) RAM() []memory.Range          { return m.ram }
func (m *model) OnTouch(f func(memory.Touch)) { m.touch = f }
func (m *model) Stats() memory.Stats          { return memory.Stats{VMABudget: 60000} }
func (m *model) Replicas(p memory.PPN) uint32 { return uint32(m.page[p].copies) }

func (m *model) Locate(dst []numa.Node, p memory.PPN) error {
	m.work(time.Microsecond + time.Duration(len(dst))*100*time.Nanosecond)
	for i := range dst {
		dst[i] = numa.Node(m.page[int(p)+i].home)
	}
	return nil
}

func (m *model) States(dst []memory.State, p memory.PPN) error {
	for i := range dst {
		dst[i] = m.page[int(p)+i].state
	}
	return nil
}

func (m *model) Watch(p memory.PPN, n int, on numa.Node) error {
	m.work(3 * time.Microsecond)
	for i := range n {
		if g := &m.page[int(p)+i]; g.home >= 0 && g.state == memory.Private {
			g.watched |= 1 << on
			g.mapped &^= 1 << on
		}
	}
	return nil
}

func (m *model) Unwatch(p memory.PPN, n int, on numa.Node) error {
	for i := range n {
		m.page[int(p)+i].watched &^= 1 << on
	}
	return nil
}

func (m *model) Guard(p memory.PPN, n int) error {
	m.work(3 * time.Microsecond)
	for i := range n {
		if g := &m.page[int(p)+i]; g.state == memory.Private && g.home >= 0 {
			g.state = memory.Guarded
		}
	}
	return nil
}

func (m *model) Unguard(p memory.PPN, n int) error {
	for i := range n {
		if g := &m.page[int(p)+i]; g.state == memory.Guarded {
			g.state = memory.Private
		}
	}
	return nil
}

func (m *model) Migrate(p memory.PPN, n int, to numa.Node) (done int, err error) {
	if m.huge && n < sample.BlockPages {
		m.huge = false
		first := p - p%sample.BlockPages
		before := m.page[p].home
		_, err = m.Migrate(first, min(sample.BlockPages, len(m.page)-int(first)), to)
		m.huge = true
		if before != m.page[p].home {
			done = n
		}
		return done, err
	}
	for i := range n {
		g := &m.page[int(p)+i]
		switch {
		case g.home < 0 || int(g.home) == int(to) || g.copies != 0:
		case m.stuck != nil && m.stuck(p+memory.PPN(i)):
			err = memory.ErrBusy
		case m.full(to):
			return done, memory.ErrNodeFull
		default:
			m.work(1500 * time.Nanosecond)
			m.size[g.home]--
			m.size[to]++
			g.home = int8(to)
			done++
			m.migrated++
		}
	}
	return done, err
}

func (m *model) full(n numa.Node) bool { return m.limit[n] > 0 && m.size[n] >= m.limit[n] }

func (m *model) Replicate(p memory.PPN, n int, on numa.Node) (done int, err error) {
	if m.runs == 0 {
		return 0, memory.ErrBudget
	}
	m.runs--
	for i := range n {
		g := &m.page[int(p)+i]
		switch {
		case g.home < 0 || int(g.home) == int(on) || g.copies.Has(int(on)):
		case m.stuck != nil && m.stuck(p+memory.PPN(i)):
			err = memory.ErrPinned
		case m.full(on):
			return done, memory.ErrNodeFull
		default:
			m.work(2 * time.Microsecond)
			m.size[on]++
			g.state = memory.Replicated
			g.copies |= 1 << on
			g.mapped |= 1 << on
			g.watched &^= 1 << on
			done++
			m.replicated++
		}
	}
	return done, err
}

func (m *model) Collapse(p memory.PPN, n int) (done int, err error) {
	for i := range n {
		if g := &m.page[int(p)+i]; g.copies != 0 {
			m.drop(g)
			done++
		}
	}
	m.collapsed += done
	return done, nil
}

func (m *model) drop(g *modelPage) {
	for v := range m.nodes {
		if g.copies.Has(v) {
			m.size[v]--
		}
	}
	g.mapped &^= g.copies
	g.copies, g.state = 0, memory.Private
}

func (m *model) Reclaim(pages int) (n int) {
	for i := range m.page {
		if g := &m.page[i]; n < pages && g.copies != 0 {
			m.drop(g)
			n++
		}
	}
	m.reclaimed += n
	return n
}

// access is one access of a guest's thread on the node at place v. It says
// whether the page was local.
func (m *model) access(p memory.PPN, v int, write bool) bool {
	g := &m.page[p]
	if g.home < 0 { // the kernel fills the hole, on this node, and tells nobody
		g.home = int8(v)
		g.mapped = 1 << v
		m.size[v]++
	}
	if !g.mapped.Has(v) {
		m.faults[v]++
		if !g.watched.Has(v) {
			end := min(p&^(sample.BlockPages-1)+sample.BlockPages, memory.PPN(len(m.page)))
			for q := p; q < end; q++ {
				if h := &m.page[q]; h.home >= 0 && !h.watched.Has(v) {
					h.mapped |= 1 << v
				}
			}
		}
		g.mapped |= 1 << v
		g.watched &^= 1 << v
		m.touch(memory.Touch{PPN: p, Node: m.nodes[v], Write: write || !m.known, Known: m.known})
	}
	if write && g.state != memory.Private {
		m.faults[v]++
		m.writes++
		if g.state == memory.Replicated {
			m.collapsed++
			m.drop(g)
			g.mapped |= 1 << v
		}
		g.state = memory.Private
		m.touch(memory.Touch{PPN: p, Node: m.nodes[v], Write: true, Known: true})
	}
	return int(g.home) == v || g.copies.Has(v)
}

// pattern is the access that the thread on the node at place v makes at a time.
type pattern func(r *rand.Rand, v int, at time.Duration) (p memory.PPN, write bool)

// guest is one thread on each node of a model, and the daemon that sees to it.
type guest struct {
	*model
	d     *Daemon
	clock time.Duration
	tick  time.Duration
	rnd   *rand.Rand
	rate  int // accesses of a thread in a tenth of a second
	next  pattern

	moving int           // pages moved when that last changed
	still  time.Duration // since when it has not
}

func newGuest(t testing.TB, m *model, cfg Config) *guest {
	t.Helper()
	g := &guest{model: m, rnd: rand.New(rand.NewPCG(1, 2)), rate: 1000, tick: 100 * time.Millisecond}
	if cfg.Policy == Off {
		m.touch = func(memory.Touch) {}
		return g
	}
	g.d = newDaemon(cfg.complete(), m, topology(t, len(m.nodes)), m.nodes, nil,
		func() time.Duration { return g.clock }, func() time.Duration { return g.clock },
		func(n numa.Node) (numa.Memory, error) {
			if m.limit[n] == 0 {
				return numa.Memory{Total: 1 << 40, Available: 1 << 40}, nil
			}
			return numa.Memory{Total: uint64(m.limit[n]) * pageSize, Available: uint64(m.limit[n]-m.size[n]) * pageSize}, nil
		})
	return g
}

// run lets the guest work for a time and returns its local share in it.
func (g *guest) run(d time.Duration) float64 {
	local, all := 0, 0
	for end := g.clock + d; g.clock < end; {
		n := int(time.Duration(g.rate) * g.tick / (100 * time.Millisecond))
		for range n {
			for v := range g.nodes {
				p, write := g.next(g.rnd, v, g.clock)
				if g.access(p, v, write) {
					local++
				}
				all++
				if g.d != nil {
					select {
					case <-g.d.wake:
						g.d.Step()
					default:
					}
				}
			}
		}
		g.clock += g.tick
		if g.d == nil {
			continue
		}
		g.d.Step()
		if m := g.moved(); m > g.moving {
			g.moving, g.still = m, g.clock
		}
	}
	return float64(local) / float64(all)
}

// fill has the thread on one node touch all memory first.
func (g *guest) fill(v int) {
	for i := range g.page {
		g.access(memory.PPN(i), v, true)
	}
}

func (g *guest) moved() int { return g.migrated + g.replicated }

func (g *guest) allFaults() (n int) {
	for _, f := range g.faults {
		n += f
	}
	return n
}

// machine is a host of one node, to be split.
var machine = fstest.MapFS{
	"sys/devices/system/node/online":         {Data: []byte("0\n")},
	"sys/devices/system/node/node0/cpulist":  {Data: []byte("0-15\n")},
	"sys/devices/system/node/node0/distance": {Data: []byte("10\n")},
	"sys/devices/system/node/node0/meminfo":  {Data: []byte("Node 0 MemTotal:       16777216 kB\nNode 0 MemFree:        8388608 kB\n")},
	"sys/devices/system/cpu/online":          {Data: []byte("0-15\n")},
}

func topology(t testing.TB, n int) *numa.Topology {
	t.Helper()
	one, err := numa.Read(machine)
	if err != nil {
		t.Fatal(err)
	}
	fake, err := one.Fake(n)
	if err != nil {
		t.Fatal(err)
	}
	return fake
}
