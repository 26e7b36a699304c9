package vmm

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"disco/memory"
	"disco/numa"
)

// place is where a guest runs.
type place struct {
	topology *numa.Topology
	nodes    []numa.Node // those with vCPUs
	homes    []int       // of each vCPU, an index of nodes
	memory   memory.Placement
	pin      bool // vCPUs run on the CPUs of their node only
}

// wide says that the guest has a KVM VM on each of several nodes.
func (n *NUMA) wide(p *place) bool { return len(p.nodes) > 1 && !n.Plain }

// roomy are the nodes that can run a guest: those with CPUs and memory.
func roomy(t *numa.Topology) []numa.Node {
	return slices.DeleteFunc(slices.Clone(t.Nodes()), func(n numa.Node) bool {
		return len(t.CPUs(n)) == 0 || t.Memory(n).Total == 0
	})
}

// placeGuest chooses the nodes of a guest with so many vCPUs and bytes of memory,
// beside others that were given parts of them. Its errors are about the Config.
func placeGuest(n *NUMA, t *numa.Topology, given map[numa.Node]grant, cpus int, size uint64) (*place, error) {
	p := &place{topology: t, memory: memory.FirstTouch}
	all := roomy(t)
	if len(all) == 0 {
		return nil, errors.New("placement: no node of this host has both CPUs and memory")
	}
	p.pin = len(all) > 1
	switch n.Placement.Kind {
	case PlaceNodes:
		if err := checkNodes(t, n.Placement.Nodes, size); err != nil {
			return nil, err
		}
		p.nodes, p.pin = slices.Clone(n.Placement.Nodes), true
	case PlaceInterleave:
		p.nodes, p.memory = all, memory.Interleaved
	default:
		p.nodes = fit(t, all, given, cpus, size)
	}
	if len(p.nodes) > cpus {
		p.nodes = p.nodes[:cpus]
	}
	if len(p.nodes) == 1 && p.memory == memory.FirstTouch && p.pin {
		p.memory = memory.Bound
	}
	p.homes = spread(t, p.nodes, cpus)
	return p, nil
}

func checkNodes(t *numa.Topology, nodes []numa.Node, size uint64) error {
	if len(nodes) == 0 {
		return errors.New("placement: it names no node; write nodes=0,1")
	}
	var total uint64
	for i, n := range nodes {
		switch {
		case !t.Has(n):
			return fmt.Errorf("placement: there is no node %d; this host has %s", n, numa.FormatNodes(t.Nodes()))
		case slices.Contains(nodes[:i], n):
			return fmt.Errorf("placement: node %d is given twice", n)
		case len(t.CPUs(n)) == 0:
			return fmt.Errorf("placement: node %d has no CPUs that are online; nodes with CPUs are %s", n, numa.FormatNodes(roomy(t)))
		}
		total += t.Memory(n).Total
	}
	if size > total {
		return fmt.Errorf("placement: the guest's memory is %s, and node%s %s %s %s; give it less, or more nodes",
			FormatSize(size), plural(len(nodes), "", "s"), numa.FormatNodes(nodes), plural(len(nodes), "has", "have"), FormatSize(total&^(1<<20-1)))
	}
	return nil
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// fit is the node that the guest fits on, or the fewest that hold it, those with
// the most free memory first; all of them if it is too large even so. Of several
// nodes that it fits on it is the one whose CPUs have the fewest vCPUs so far.
func fit(t *numa.Topology, all []numa.Node, given map[numa.Node]grant, cpus int, size uint64) []numa.Node {
	free := func(n numa.Node) uint64 {
		a := t.Memory(n).Available
		return a - min(a, given[n].memory)
	}
	byRoom := slices.Clone(all)
	slices.SortStableFunc(byRoom, func(a, b numa.Node) int { return cmp.Compare(free(b), free(a)) })
	best := -1
	for i, n := range byRoom {
		if len(t.CPUs(n)) < cpus || free(n) < size {
			continue
		}
		// Of two, a has fewer for each of its CPUs: a/A < b/B.
		if best < 0 || given[n].cpus*len(t.CPUs(byRoom[best])) < given[byRoom[best]].cpus*len(t.CPUs(n)) {
			best = i
		}
	}
	if best >= 0 {
		return byRoom[best : best+1]
	}
	var sum uint64
	room := 0
	for i, n := range byRoom {
		sum += free(n)
		room += len(t.CPUs(n))
		if sum >= size && room >= cpus {
			all = byRoom[:i+1]
			break
		}
	}
	all = slices.Clone(all)
	slices.Sort(all)
	return all
}

// spread gives each node a run of vCPUs, as many as its share of the CPUs.
func spread(t *numa.Topology, nodes []numa.Node, cpus int) []int {
	room := 0
	for _, n := range nodes {
		room += len(t.CPUs(n))
	}
	homes := make([]int, 0, cpus)
	before := 0
	for i, n := range nodes {
		before += len(t.CPUs(n))
		end := max(cpus*before/room, i+1)     // at least one each,
		end = min(end, cpus-(len(nodes)-1-i)) // and one left for each that comes
		for len(homes) < end {
			homes = append(homes, i)
		}
	}
	return homes
}
