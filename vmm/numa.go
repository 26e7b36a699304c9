package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"

	"disco/memory"
	"disco/memory/arena"
	"disco/numa"
	"disco/numa/balance"
	"disco/vcpu"
	"disco/vcpu/kvm"
	"disco/vmm/boot"
)

// NUMAStats is where a guest's memory is and what was done about it. Counts begin
// anew when the guest restarts.
type NUMAStats struct {
	Placed
	// LocalShare estimates, from samples, the part of what the guest uses that is
	// local to its users: 0 to 1, and 1 where nothing was seen remote or nothing
	// is sampled.
	LocalShare float64        `json:"local_share"`
	Relayed    uint64         `json:"relayed_ipis"` // interrupts between vCPUs of different nodes
	Memory     []NodeMemory   `json:"memory"`       // empty for a guest that is on no particular node
	Acts       memory.Stats   `json:"acts"`
	Balance    *balance.Stats `json:"balance,omitempty"` // nil where nothing is moved
}

// NodeMemory is what a guest has of a node's memory, in pages of 4 KiB.
type NodeMemory struct {
	Node     numa.Node `json:"node"`
	Pages    uint64    `json:"pages"`    // canonical copies
	Replicas uint64    `json:"replicas"` // further copies, for this node's CPUs
}

// Placed is where a guest runs.
type Placed struct {
	Nodes []numa.Node `json:"nodes"`      // those with vCPUs
	Homes []numa.Node `json:"vcpu_nodes"` // of each vCPU
	Wide  bool        `json:"wide"`       // a KVM VM on each node, not one for all
	Real  bool        `json:"real"`       // the nodes are the kernel's own and not fake
}

// topology is that of the host, or what cfg puts in its place.
func (n *NUMA) topology() (*numa.Topology, error) {
	t := n.Topology
	if t == nil {
		var err error
		if t, err = numa.Read(os.DirFS("/")); err != nil {
			return nil, &HostError{fmt.Errorf("NUMA nodes: %w", err)}
		}
	}
	if n.FakeNodes == 0 {
		return t, nil
	}
	fake, err := t.Fake(n.FakeNodes)
	if err != nil {
		return nil, &ConfigError{[]error{fmt.Errorf("fake nodes: %w", err)}}
	}
	return fake, nil
}

// settle chooses the guest's nodes and makes sure that this host can run it on
// them. With Lenient, cfg is changed to what the host can do.
func settle(cfg *Config, sys *kvm.System, log *slog.Logger) (*place, error) {
	n := &cfg.NUMA
	t, err := n.topology()
	if err != nil {
		return nil, err
	}
	p, err := placeGuest(n, t, cfg.CPUs, cfg.Memory)
	if err != nil {
		return nil, &ConfigError{[]error{err}}
	}
	if len(p.nodes) == 1 || n.Plain {
		n.Balance.Policy = balance.Off
		return p, nil
	}
	if err := canSpan(sys); err != nil {
		if !n.Lenient {
			return nil, &HostError{fmt.Errorf("a guest on nodes %s: %w", list(p.nodes), err)}
		}
		log.Warn("the guest's nodes share one KVM VM, and its pages stay where they are", "reason", err)
		n.Plain, n.Balance.Policy = true, balance.Off
		return p, nil
	}
	if n.Balance.Policy == balance.Off {
		return p, nil
	}
	if err := memory.Probe(); err != nil {
		err = fmt.Errorf("moving pages: %w", err)
		if !n.Lenient {
			return nil, &HostError{fmt.Errorf("%w; or choose the policy off", err)}
		}
		log.Warn("the guest's pages stay where they are", "reason", err)
		n.Balance.Policy = balance.Off
	}
	return p, nil
}

// canSpan says why this host cannot run a guest as several KVM VMs.
func canSpan(sys *kvm.System) error {
	if ok, why := kvm.TwoDimensional(os.DirFS("/")); !ok {
		return fmt.Errorf("KVM must use two-dimensional paging: %s", why)
	}
	return sys.Wide()
}

// openMemory makes the guest's memory and a View for each of its KVM VMs.
func (m *machine) openMemory(cfg *Config, ram []memory.Range) error {
	n, p := &cfg.NUMA, m.place
	o := memory.Options{Name: "disco-" + cfg.Name, RAM: ram, Huge: n.Huge}
	if p.pin || len(p.nodes) > 1 {
		o.Topology, o.Nodes, o.Place = p.topology, p.nodes, p.memory
		o.Tracked = n.Balance.Policy != balance.Off
		o.HostBalancing = n.HostBalancing
	}
	views := 1
	if n.wide(p) {
		views = len(p.nodes)
	}
	// Threads of vCPUs, relays too, and of the memory keep a processor of Go's for
	// up to 10 ms while they are in the kernel; workers must not wait for that.
	if n := runtime.NumCPU() + (cfg.CPUs+3)*views; runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
	var err error
	if m.space, err = memory.Open(o); err != nil {
		return err
	}
	for i := range views {
		if i > 0 && !o.Tracked {
			if _, err := m.space.NewView(); err != nil {
				return err
			}
		}
		m.views = append(m.views, m.space.View(i))
	}
	return nil
}

// setOptions are those of the guest's vCPUs.
func (m *machine) setOptions(sys *kvm.System, cfg *Config, supported []kvm.CPUIDEntry, log *slog.Logger) vcpu.SetOptions {
	p, wide := m.place, cfg.NUMA.wide(m.place)
	o := vcpu.SetOptions{
		System: sys, VMs: m.vms, Homes: make([]int, cfg.CPUs), Handler: buses{m},
		CPUID: func(id int) []kvm.CPUIDEntry { return vcpu.CPUID(supported, id, cfg.CPUs) },
	}
	switch {
	case len(p.nodes) > len(m.vms): // one KVM VM for all
		o.Pin = func(id, _ int) []int { return cpusOf(p.topology, p.nodes[p.homes[id]]) }
	case p.pin || len(p.nodes) > 1:
		for _, n := range p.nodes {
			o.CPUs = append(o.CPUs, cpusOf(p.topology, n))
		}
	}
	if !wide {
		return o
	}
	o.Homes, o.RelayBase = p.homes, boot.RelayArea
	o.Thread = func(vm, _ int) { m.space.Threads(p.nodes[vm], m.set.Threads(vm)...) }
	o.Moved = func(id, _, _ int) {
		if err := m.irq.moved(); err != nil {
			log.Error("interrupts of a vCPU that moved", "vcpu", id, "error", err)
		}
	}
	return o
}

func cpusOf(t *numa.Topology, n numa.Node) []int {
	cpus := make([]int, 0, len(t.CPUs(n)))
	for _, c := range t.CPUs(n) {
		cpus = append(cpus, int(c))
	}
	return cpus
}

// makeBalance makes what moves the guest's pages.
func (m *machine) makeBalance(cfg *Config, log *slog.Logger) (err error) {
	if !cfg.NUMA.wide(m.place) || cfg.NUMA.Balance.Policy == balance.Off {
		return nil
	}
	m.balance, err = balance.New(cfg.NUMA.Balance, m.space, m.place.topology, m.place.nodes, log)
	return err
}

// placed is where the machine's vCPUs are now.
func (m *machine) placed() Placed {
	p := m.place
	a := Placed{Nodes: p.nodes, Homes: make([]numa.Node, len(m.vcpus)), Wide: len(m.vms) > 1, Real: p.topology.Real()}
	for id := range a.Homes {
		at := p.homes[id]
		if a.Wide {
			at = m.set.Home(id)
		}
		a.Homes[id] = p.nodes[at]
	}
	return a
}

// numaStats asks the kernel where each page is, some 0.1 µs each.
func (m *machine) numaStats() NUMAStats {
	s := NUMAStats{Placed: m.placed(), LocalShare: 1, Relayed: m.set.Relayed(), Acts: m.space.Stats()}
	if m.place.pin || len(m.place.nodes) > 1 {
		s.Memory = m.nodeMemory(s.Acts.Replicas)
	}
	if m.balance != nil {
		b := m.balance.Stats()
		s.Balance, s.LocalShare = &b, b.LocalShare
	}
	return s
}

// nodeMemory is empty where the kernel does not tell.
func (m *machine) nodeMemory(replicas []uint64) []NodeMemory {
	pages, err := m.space.PagesOn()
	if err != nil {
		return nil
	}
	of := make([]NodeMemory, len(pages))
	for i, n := range m.place.topology.Nodes() {
		of[i] = NodeMemory{Node: n, Pages: pages[i]}
		if at := slices.Index(m.place.nodes, n); at >= 0 && at < len(replicas) {
			of[i].Replicas = replicas[at]
		}
	}
	return of
}

// errNoMachine is what comes of a guest that is between two power cycles or gone.
var errNoMachine = errors.New("the guest does not run")

// Space is the guest's memory, or nil when it does not run. It is a restart's
// victim: the next machine has another.
func (g *Guest) Space() *memory.Space {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil {
		return nil
	}
	return g.machine.space
}

// NUMAStats is where the guest's memory is now; false when the guest does not run.
func (g *Guest) NUMAStats() (NUMAStats, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil {
		return NUMAStats{}, false
	}
	return g.machine.numaStats(), true
}

// Placed is where the guest runs now; false when it does not run.
func (g *Guest) Placed() (Placed, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil {
		return Placed{}, false
	}
	return g.machine.placed(), true
}

// MoveVCPU makes vCPU id live on another of the nodes that a wide guest runs on,
// while it runs. Its memory follows as the policy sees fit.
func (g *Guest) MoveVCPU(id int, to numa.Node) error {
	g.mu.Lock()
	m := g.machine
	g.mu.Unlock()
	if m == nil {
		return errNoMachine
	}
	if id < 0 || id >= len(m.vcpus) {
		return fmt.Errorf("there is no vCPU %d", id)
	}
	for i, n := range m.place.nodes {
		if n == to && len(m.vms) > 1 {
			return m.set.Move(id, i)
		}
	}
	return fmt.Errorf("vCPU %d: the guest runs on %s and not on node %d", id, list(m.place.nodes), to)
}

// chunk is the memory that Move moves before it looks whether it may go on, in
// pages: 2 MiB.
const chunk = 512

// Move brings a guest that runs on one node to another, while it runs: first its
// vCPUs, at once, then its memory. progress, if not nil, is told bytes done and of
// how many. When ctx ends, or an error comes, the vCPUs stay on the new node with
// the memory that has followed. The guest's second-level page tables stay behind.
func (g *Guest) Move(ctx context.Context, to numa.Node, progress func(done, of uint64)) error {
	g.mu.Lock()
	m := g.machine
	g.mu.Unlock()
	if m == nil {
		return errNoMachine
	}
	p := m.place
	switch {
	case len(p.nodes) > 1:
		return fmt.Errorf("move to node %d: the guest runs on nodes %s; move its vCPUs one by one", to, list(p.nodes))
	case !p.topology.Has(to) || len(p.topology.CPUs(to)) == 0:
		return fmt.Errorf("move to node %d: no such node has CPUs; there are %s", to, list(roomy(p.topology)))
	}
	free, err := p.topology.ReadMemory(os.DirFS("/"), to)
	if err == nil && free.Available < m.space.Size() {
		return fmt.Errorf("move to node %d: it has %s free, less than the guest's memory", to, FormatSize(free.Available&^(1<<20-1)))
	}
	if err := m.set.SetCPUs(0, cpusOf(p.topology, to)); err != nil {
		return fmt.Errorf("move to node %d: %w", to, err)
	}
	g.mu.Lock()
	next := *p
	next.nodes = []numa.Node{to}
	m.place, g.place = &next, &next
	g.mu.Unlock()
	if err := m.space.SetNode(to); err != nil {
		return fmt.Errorf("move to node %d: %w", to, err)
	}
	var done uint64
	for _, r := range m.space.RAM() {
		for at := r.Start; at < r.End(); at += chunk * arena.PageSize {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(chunk, int((r.End()-at)/arena.PageSize))
			if _, err := m.space.Migrate(memory.PPN(at/arena.PageSize), n, to); err != nil && !errors.Is(err, memory.ErrBusy) {
				return fmt.Errorf("move to node %d: %w", to, err)
			}
			done += uint64(n) * arena.PageSize
			if progress != nil {
				progress(done, m.space.Size())
			}
		}
	}
	return nil
}

// Relayed is how many interrupts went between vCPUs of different nodes so far, at
// no cost; 0 when the guest does not run.
func (g *Guest) Relayed() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil {
		return 0
	}
	return g.machine.set.Relayed()
}
