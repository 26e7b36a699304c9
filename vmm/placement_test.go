package vmm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"disco/memory"
	"disco/numa"
)

// nodeOf is a node of a made-up host: its CPUs, as a list of the kernel's, and how
// many MiB it has and has free.
type nodeOf struct {
	cpus        string
	total, free int
}

func hostOf(t *testing.T, nodes ...nodeOf) *numa.Topology {
	t.Helper()
	fs := fstest.MapFS{}
	put := func(path, format string, a ...any) {
		fs["sys/devices/system/"+path] = &fstest.MapFile{Data: fmt.Appendf(nil, format+"\n", a...)}
	}
	var online []string
	for i, n := range nodes {
		if n.cpus != "" {
			online = append(online, n.cpus)
		}
		distance := make([]string, len(nodes))
		for j := range distance {
			distance[j] = "21"
		}
		distance[i] = "10"
		put(fmt.Sprintf("node/node%d/cpulist", i), "%s", n.cpus)
		put(fmt.Sprintf("node/node%d/distance", i), "%s", strings.Join(distance, " "))
		put(fmt.Sprintf("node/node%d/meminfo", i), "Node %d MemTotal: %d kB\nNode %d MemFree: %d kB", i, n.total<<10, i, n.free<<10)
	}
	put("node/online", "0-%d", len(nodes)-1)
	put("cpu/online", "%s", strings.Join(online, ","))
	topology, err := numa.Read(fs)
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

func TestPlaceGuest(t *testing.T) {
	one := hostOf(t, nodeOf{"0-3", 4096, 2048})
	two := hostOf(t, nodeOf{"0-3", 4096, 1024}, nodeOf{"4-7", 4096, 2048})
	odd := hostOf(t, nodeOf{"0-5", 4096, 4000}, nodeOf{"6-7", 4096, 4000}, nodeOf{"", 8192, 8192})
	const mib = 1 << 20
	nodes := func(n ...numa.Node) Placement { return Placement{PlaceNodes, n} }
	for _, c := range []struct {
		name   string
		host   *numa.Topology
		place  Placement
		cpus   int
		mib    uint64
		nodes  []numa.Node
		homes  []int
		memory memory.Placement
		pin    bool
	}{
		{"one node, and nothing is pinned", one, Placement{}, 2, 512, []numa.Node{0}, []int{0, 0}, memory.FirstTouch, false},
		{"one node, more CPUs than it has", one, Placement{}, 6, 512, []numa.Node{0}, []int{0, 0, 0, 0, 0, 0}, memory.FirstTouch, false},
		{"one node, chosen", one, nodes(0), 1, 512, []numa.Node{0}, []int{0}, memory.Bound, true},
		{"fits where most is free", two, Placement{}, 2, 512, []numa.Node{1}, []int{0, 0}, memory.Bound, true},
		{"fits on one only", two, Placement{}, 4, 2000, []numa.Node{1}, []int{0, 0, 0, 0}, memory.Bound, true},
		{"too many CPUs for one", two, Placement{}, 6, 512, []numa.Node{0, 1}, []int{0, 0, 0, 1, 1, 1}, memory.FirstTouch, true},
		{"too much memory for one", two, Placement{}, 2, 2500, []numa.Node{0, 1}, []int{0, 1}, memory.FirstTouch, true},
		{"too much for all", two, Placement{}, 9, 8000, []numa.Node{0, 1}, []int{0, 0, 0, 0, 1, 1, 1, 1, 1}, memory.FirstTouch, true},
		{"one CPU stays on one node", two, Placement{}, 1, 2500, []numa.Node{0}, []int{0}, memory.Bound, true},
		{"chosen, though it does not fit", two, nodes(0), 6, 512, []numa.Node{0}, []int{0, 0, 0, 0, 0, 0}, memory.Bound, true},
		{"chosen, in that order", two, nodes(1, 0), 2, 512, []numa.Node{1, 0}, []int{0, 1}, memory.FirstTouch, true},
		{"interleaved", two, Placement{Kind: PlaceInterleave}, 4, 512, []numa.Node{0, 1}, []int{0, 0, 1, 1}, memory.Interleaved, true},
		{"by the nodes' CPUs, none without any", odd, Placement{Kind: PlaceInterleave}, 4, 512, []numa.Node{0, 1}, []int{0, 0, 0, 1}, memory.Interleaved, true},
		{"each node at least one", odd, Placement{Kind: PlaceInterleave}, 2, 512, []numa.Node{0, 1}, []int{0, 1}, memory.Interleaved, true},
	} {
		p, err := placeGuest(&NUMA{Placement: c.place}, c.host, nil, c.cpus, c.mib*mib)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !slices.Equal(p.nodes, c.nodes) || !slices.Equal(p.homes, c.homes) || p.memory != c.memory || p.pin != c.pin {
			t.Errorf("%s: nodes %v, homes %v, memory %v, pinned %v", c.name, p.nodes, p.homes, p.memory, p.pin)
		}
	}
}

// TestPlaceBesideOthers: what other guests were given is not given again, and of
// nodes with room the one with fewer vCPUs is taken.
func TestPlaceBesideOthers(t *testing.T) {
	two := hostOf(t, nodeOf{"0-3", 4096, 3000}, nodeOf{"4-7", 4096, 2000})
	const mib = 1 << 20
	for _, c := range []struct {
		name  string
		given map[numa.Node]grant
		mib   uint64
		want  []numa.Node
	}{
		{"the first", nil, 512, []numa.Node{0}},
		{"the second goes elsewhere", map[numa.Node]grant{0: {2, 512 * mib}}, 512, []numa.Node{1}},
		{"the third, where more is free", map[numa.Node]grant{0: {2, 512 * mib}, 1: {2, 512 * mib}}, 512, []numa.Node{0}},
		{"fewer vCPUs, but no room", map[numa.Node]grant{0: {8, 0}, 1: {1, 1900 * mib}}, 512, []numa.Node{0}},
		{"more promised than is there", map[numa.Node]grant{0: {2, 1 << 40}}, 1500, []numa.Node{1}},
		{"no node has room any more", map[numa.Node]grant{0: {2, 2000 * mib}, 1: {2, 1000 * mib}}, 1500, []numa.Node{0, 1}},
	} {
		p, err := placeGuest(&NUMA{}, two, c.given, 2, c.mib*mib)
		if err != nil || !slices.Equal(p.nodes, c.want) {
			t.Errorf("%s: %v, %v; want %v", c.name, p, err, c.want)
		}
	}
}

func TestPlaceGuestRefuses(t *testing.T) {
	two := hostOf(t, nodeOf{"0-3", 1024, 512}, nodeOf{"4-7", 1024, 1000}, nodeOf{"", 8192, 8192})
	for _, c := range []struct {
		nodes []numa.Node
		mib   uint64
		want  string
	}{
		{nil, 512, "names no node"},
		{[]numa.Node{7}, 512, "no node 7; this host has 0,1,2"},
		{[]numa.Node{0, 0}, 512, "given twice"},
		{[]numa.Node{2}, 512, "node 2 has no CPUs"},
		{[]numa.Node{1}, 2000, "memory is 2000M, and node 1 has 1G"},
		{[]numa.Node{0, 1}, 3000, "nodes 0,1 have 2G"},
	} {
		_, err := placeGuest(&NUMA{Placement: Placement{PlaceNodes, c.nodes}}, two, nil, 2, c.mib<<20)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("nodes %v, %d MiB: %v, want %q", c.nodes, c.mib, err, c.want)
		}
	}
}
