// Package numa knows which NUMA nodes a machine has: their CPUs, how far they
// are from each other, their memory. It reads sysfs through an [fs.FS], so that
// a test can be any machine, and splits one node into [Topology.Fake] ones, so
// that what is written for several nodes runs where there is only one.
//
// Not done here: hotplug (a Topology is how things were when it was read; read
// another); cpusets and affinity masks (a CPU listed here may be forbidden to
// this process); caches, cores and threads; bandwidth, latency and initiators
// of the HMAT; kinds of memory (a node of CXL or high-bandwidth memory is a node
// without CPUs); placing anything.
package numa

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Node is the number of a NUMA node, as the kernel counts. Numbers may have gaps.
type Node int

// FormatNodes writes nodes for a person and for a command line: "0,1,5".
func FormatNodes(nodes []Node) string {
	words := make([]string, len(nodes))
	for i, n := range nodes {
		words[i] = fmt.Sprint(int(n))
	}
	return strings.Join(words, ",")
}

// CPU is the number of a logical CPU, as the kernel counts.
type CPU int

const (
	// Local is the distance of a node to itself: ACPI 6.5 §5.2.17, where others
	// are relative to it, so 20 means twice the latency.
	Local = 10
	// Remote is the distance between nodes whose firmware does not tell it, which
	// is what the kernel supposes too.
	Remote = 20
	// Unreachable is the distance to a node that cannot be accessed from here.
	Unreachable = 255
)

// Memory is the memory of a node, in bytes.
type Memory struct {
	Total uint64 // what the kernel manages; 0 for a node without memory
	Free  uint64 // without page cache and what else the kernel could reclaim
	// Available is Free and half of the clean page cache and reclaimable slabs of
	// the node: about what it can give without hurting anyone. 0 to Total.
	Available uint64
}

// Topology is the nodes of a machine that are online. [Read] or [Topology.Fake]
// makes one; it never changes, and many goroutines may use it. Its methods do
// not allocate, except String, Fake and ReadMemory. The slices they return are
// the Topology's own: read them, do not write them. To name a node that it does
// not have is a mistake of the program and panics; ask [Topology.Has] first.
type Topology struct {
	nodes  []Node
	places []place
	index  []int  // of places, by Node; -1 for none
	home   []Node // by CPU; -1 for none
	shown  bool   // the kernel has NUMA and shows the nodes that these are, or are parts of
	fake   bool
}

// place is what is known of one node.
type place struct {
	cpus     []CPU
	distance []int // by index of the other node
	nearest  []Node
	memory   Memory
	meminfo  string // the file that memory comes from
	share    uint64 // memory is this part of what the file says: 1 is all, 2 half
	behind   Node   // the kernel's node
}

// newTopology completes nodes, ascending, and places, both with the same index.
func newTopology(nodes []Node, places []place) *Topology {
	t := &Topology{nodes: slices.Clip(nodes), places: places}
	t.index = slices.Repeat([]int{-1}, int(nodes[len(nodes)-1])+1)
	for i, n := range nodes {
		t.index[n] = i
	}
	for i := range places {
		p := &places[i]
		for _, c := range p.cpus {
			for int(c) >= len(t.home) {
				t.home = append(t.home, -1)
			}
			if t.home[c] < 0 {
				t.home[c] = nodes[i]
			}
		}
		p.nearest = slices.Clone(nodes)
		slices.SortStableFunc(p.nearest, func(a, b Node) int {
			return cmp.Compare(p.rank(t.index[a], i), p.rank(t.index[b], i))
		})
	}
	return t
}

// rank orders the nodes around node self; firmware that calls another node
// nearer than itself does not mislead it.
func (p *place) rank(i, self int) int {
	if i == self {
		return 0
	}
	return p.distance[i]
}

func (t *Topology) place(n Node) *place {
	if !t.Has(n) {
		panic(fmt.Sprintf("numa: no node %d among %v", n, t.nodes))
	}
	return &t.places[t.index[n]]
}

// Real says whether the nodes are the kernel's own. Those of [Topology.Fake], and
// the one node of a kernel without NUMA, are not: what is counted as local or
// remote with them says nothing about this machine.
func (t *Topology) Real() bool { return t.shown && !t.fake }

// Backing is the kernel's node behind n, the one to give to mbind(2): n itself
// if n is real. It is false if the kernel has no NUMA and so no such node.
func (t *Topology) Backing(n Node) (Node, bool) {
	return t.place(n).behind, t.shown
}

// Nodes are all nodes, ascending, at least one. Some may have no CPUs, some no
// memory.
func (t *Topology) Nodes() []Node { return t.nodes }

// Has says whether there is a node n.
func (t *Topology) Has(n Node) bool {
	return n >= 0 && int(n) < len(t.index) && t.index[n] >= 0
}

// CPUs are the CPUs of node n that are online, ascending; none for a node of
// memory alone. Fake nodes may share them.
func (t *Topology) CPUs(n Node) []CPU { return t.place(n).cpus }

// NodeOf is the node of CPU c, the lowest if fake nodes share it. It is false
// for a CPU that is offline or absent.
func (t *Topology) NodeOf(c CPU) (Node, bool) {
	if c < 0 || int(c) >= len(t.home) || t.home[c] < 0 {
		return 0, false
	}
	return t.home[c], true
}

// Distance is how far node b's memory is from node a's CPUs, from [Local] to
// [Unreachable]. Distance(b, a) may differ.
func (t *Topology) Distance(a, b Node) int {
	t.place(b) // panics if absent
	return t.place(a).distance[t.index[b]]
}

// Nearest is all nodes by their distance from node n: n first, then the nearest;
// of equals, the lowest.
func (t *Topology) Nearest(n Node) []Node { return t.place(n).nearest }

// Memory is the memory of node n when the Topology was read. See
// [Topology.ReadMemory].
func (t *Topology) Memory(n Node) Memory { return t.place(n).memory }

// String is one line for a person, as "2 nodes; node 0: CPUs 0-3, 1024 MiB,
// distances 10 21; node 1: …". It says if the nodes are not real.
func (t *Topology) String() string {
	var b strings.Builder
	switch count := len(t.nodes); {
	case !t.shown && !t.fake:
		b.WriteString("1 node for the whole machine, as its kernel has no NUMA")
	case t.fake && count == 1:
		b.WriteString("1 fake node")
	case t.fake:
		fmt.Fprintf(&b, "%d fake nodes", count)
	case count == 1:
		b.WriteString("1 node")
	default:
		fmt.Fprintf(&b, "%d nodes", count)
	}
	for i, p := range t.places {
		cpus := formatList(p.cpus)
		if cpus == "" {
			cpus = "none"
		}
		fmt.Fprintf(&b, "; node %d: CPUs %s, %d MiB", t.nodes[i], cpus, p.memory.Total>>20)
		if len(t.nodes) > 1 {
			b.WriteString(", distances")
			for _, d := range p.distance {
				fmt.Fprintf(&b, " %d", d)
			}
		}
	}
	return b.String()
}
