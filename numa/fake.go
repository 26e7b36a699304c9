package numa

import (
	"errors"
	"fmt"
	"slices"
)

// MaxFake is the largest number of fake nodes.
const MaxFake = 64

// Fake splits a node of t into n nodes, 0 to n-1, 1 to [MaxFake] of them, so that
// every mechanism for several nodes runs on a machine that has one. The node is
// the lowest that has both CPUs and memory; others are left out, so that what
// differs between the fake nodes is never the hardware.
//
// CPUs are dealt out in turn; if there are fewer than n, every fake node has all
// of them. Each has 1/n of the memory. Distances are made up: [Local] and
// [Remote]. Nothing keeps a fake node to its share of memory.
func (t *Topology) Fake(n int) (*Topology, error) {
	if n < 1 || n > MaxFake {
		return nil, fmt.Errorf("%d fake nodes: choose 1 to %d", n, MaxFake)
	}
	i := slices.IndexFunc(t.places, func(p place) bool { return len(p.cpus) > 0 && p.memory.Total > 0 })
	if i < 0 {
		return nil, errors.New("fake nodes: no node of this machine has both CPUs and memory to split")
	}
	from := t.places[i]
	nodes := make([]Node, n)
	places := make([]place, n)
	for i := range n {
		nodes[i] = Node(i)
		p := place{
			cpus:     from.cpus,
			distance: slices.Repeat([]int{Remote}, n),
			memory:   Memory{Total: from.memory.Total / uint64(n), Free: from.memory.Free / uint64(n), Available: from.memory.Available / uint64(n)},
			meminfo:  from.meminfo,
			share:    from.share * uint64(n),
			behind:   from.behind,
		}
		p.distance[i] = Local
		if len(from.cpus) >= n {
			p.cpus = nil
			for c := i; c < len(from.cpus); c += n {
				p.cpus = append(p.cpus, from.cpus[c])
			}
			p.cpus = slices.Clip(p.cpus)
		}
		places[i] = p
	}
	f := newTopology(nodes, places)
	f.shown, f.fake = t.shown, true
	return f, nil
}
