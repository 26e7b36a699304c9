package locality

import (
	"slices"

	"disco/numa"
)

// Tally counts accesses by the node that they came from and the node that
// answered them.
type Tally struct {
	Nodes  []numa.Node `json:"nodes"`
	Counts [][]uint64  `json:"counts"` // [from][to], both by index in Nodes
	// Lost are accesses to pages that were on none of the nodes when they were
	// looked for; they count as remote.
	Lost uint64 `json:"lost,omitempty"`
}

// NewTally counts nothing yet.
func NewTally(nodes []numa.Node) *Tally {
	t := &Tally{Nodes: nodes, Counts: make([][]uint64, len(nodes))}
	for i := range t.Counts {
		t.Counts[i] = make([]uint64, len(nodes))
	}
	return t
}

// Add counts n accesses.
func (t *Tally) Add(from, to numa.Node, n uint64) {
	f, o := slices.Index(t.Nodes, from), slices.Index(t.Nodes, to)
	if f < 0 || o < 0 {
		t.Lost += n
		return
	}
	t.Counts[f][o] += n
}

// Merge adds all of u, which has the same nodes.
func (t *Tally) Merge(u *Tally) {
	for i, row := range u.Counts {
		for j, n := range row {
			t.Counts[i][j] += n
		}
	}
	t.Lost += u.Lost
}

// Total is the number of all accesses.
func (t *Tally) Total() uint64 {
	n := t.Lost
	for _, row := range t.Counts {
		for _, c := range row {
			n += c
		}
	}
	return n
}

// Local is the share of accesses that their own node answered, 0 to 1; 0 if there
// were none.
func (t *Tally) Local() float64 {
	local := uint64(0)
	for i, row := range t.Counts {
		local += row[i]
	}
	if total := t.Total(); total > 0 {
		return float64(local) / float64(total)
	}
	return 0
}

// Latency is what an access from one node to another's memory takes, in ns.
type Latency func(from, to numa.Node) float64

// Disco's latencies: SOSP'97 §5.1, FLASH as simulated there.
const (
	discoLocal  = 300
	discoRemote = 900
)

// DiscoLatency is that of the machine in the paper.
func DiscoLatency(from, to numa.Node) float64 {
	if from == to {
		return discoLocal
	}
	return discoRemote
}

// Cost models the time of the accesses against a machine on which all memory
// is as near as the node's own: 1 is ideal. A lost access costs as much as the
// farthest.
func (t *Tally) Cost(l Latency) float64 {
	var time, ideal float64
	worst := 0.0
	for i, row := range t.Counts {
		for j, n := range row {
			here := l(t.Nodes[i], t.Nodes[j])
			worst = max(worst, here)
			time += float64(n) * here
			ideal += float64(n) * l(t.Nodes[i], t.Nodes[i])
		}
	}
	if t.Lost > 0 && len(t.Nodes) > 0 {
		time += float64(t.Lost) * worst
		ideal += float64(t.Lost) * l(t.Nodes[0], t.Nodes[0])
	}
	if ideal == 0 {
		return 1
	}
	return time / ideal
}
