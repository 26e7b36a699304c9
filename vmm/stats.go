package vmm

import (
	"slices"

	"disco/memory"
	"disco/numa"
	"disco/numa/balance"
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
