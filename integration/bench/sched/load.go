package sched

import (
	"fmt"
	"slices"
	"strings"
)

// load is guests that want to run all at once, and what happens to them.
type load struct {
	name   string
	about  string
	guests []member
	groups map[string]int64
	phases []phase
	// slow is by how much longer the load has to be measured for one error of a
	// quantum to be small; 0 for 1.
	slow float64
	only []Policy // nil for all
	// nodes is how many CPUs, each with a queue of its own, are made nodes of: 0 is
	// that all CPUs are one.
	nodes int
	kind  kind
}

// kind is what guests a load is of.
type kind int

const (
	computing kind = iota // tiny guests, without a monitor
	reading               // tiny guests of a monitor, the first of which reads a disk all the time
	linux                 // guests of a monitor with Linux
)

// pools are the sets of CPUs on which the guests run.
func (l *load) pools(o Options) [][]int {
	if l.nodes == 0 {
		return [][]int{o.CPUs}
	}
	var pools [][]int
	for _, c := range o.Nodes[:l.nodes] {
		pools = append(pools, []int{c})
	}
	return pools
}

// member is one guest.
type member struct {
	name    string
	group   string
	tickets int64
	cmdline string
	late    bool // it is not there at the beginning
	node    int
}

// phase is a part of a load's time, after something has changed.
type phase struct {
	part   float64 // of the whole
	change func(stage) error
	// want is the share of each guest, in any unit; 0 for one that is not there.
	want []float64
}

// hogs are guests that compute all the time, with so many tickets.
func hogs(tickets ...int64) []member {
	var ms []member
	for i, n := range tickets {
		ms = append(ms, member{name: fmt.Sprint("g", i), tickets: n})
	}
	return ms
}

// ratio is hogs alone.
func ratio(tickets ...int64) load {
	var words []string
	var want []float64
	for _, n := range tickets {
		words = append(words, fmt.Sprint(n))
		want = append(want, float64(n))
	}
	return load{name: strings.Join(words, ":"), guests: hogs(tickets...), phases: []phase{{part: 1, want: want}}}
}

// What a guest is told that uses about a fifth of a quantum of 10 ms, and then
// halts for a tenth of a millisecond: its turns are emulated one by one where the
// CPU lacks virtualization, about a microsecond each, and take longer there.
const resting = "work=1000 rest=100000"

// allTickets gives hogs so many tickets.
func allTickets(s stage, tickets ...int64) error {
	for i, n := range tickets {
		if err := s.tickets(fmt.Sprint("g", i), n); err != nil {
			return err
		}
	}
	return nil
}

// ofLinux are those of guests with Linux: one boot for all.
func ofLinux() []load {
	return []load{{
		name: "linux", about: "3:2:1, then 1:1:1, then 1:1, the third being gone, then 3:1", guests: hogs(300, 200, 100), kind: linux,
		only: []Policy{Stride, Lottery},
		phases: []phase{
			{part: 1, want: []float64{3, 2, 1}},
			{part: 1, want: []float64{1, 1, 1}, change: func(s stage) error { return allTickets(s, 100, 100, 100) }},
			{part: 1, want: []float64{1, 1, 0}, change: func(s stage) error { return s.leave("g2") }},
			{part: 1, want: []float64{3, 1, 0}, change: func(s stage) error { return s.tickets("g0", 300) }},
		},
	}}
}

// loads are all there are, of tiny guests or of Linux's.
func loads(many int, linux bool) []load {
	if linux {
		return ofLinux()
	}
	all := []load{ratio(1, 1), ratio(2, 1), ratio(3, 2, 1), ratio(10, 1), ratio(100, 1)}
	all[4].slow = 2
	all = append(all,
		load{
			name: "change", about: "1:1, then 3:1, then 1:3", guests: hogs(100, 100),
			phases: []phase{
				{part: 1. / 3, want: []float64{1, 1}},
				{part: 1. / 3, want: []float64{3, 1}, change: func(s stage) error { return s.tickets("g0", 300) }},
				{part: 1. / 3, want: []float64{1, 3}, change: func(s stage) error { return allTickets(s, 100, 300) }},
			},
		},
		load{
			name: "join", about: "2:1, a third with 3 joins, and leaves",
			guests: []member{{name: "g0", tickets: 200}, {name: "g1", tickets: 100}, {name: "g2", tickets: 300, late: true}},
			phases: []phase{
				{part: 1. / 3, want: []float64{2, 1, 0}},
				{part: 1. / 3, want: []float64{2, 1, 3}, change: func(s stage) error { return s.join("g2") }},
				{part: 1. / 3, want: []float64{2, 1, 0}, change: func(s stage) error { return s.leave("g2") }},
			},
		},
		load{
			name: "resting", about: "1:1, the second halts all the time for a moment",
			guests: []member{{name: "g0", tickets: 100}, {name: "g1", tickets: 100, cmdline: resting}},
			phases: []phase{{part: 1, want: []float64{1, 1}}},
		},
		load{
			name: "storms", about: "1:1:1:1, a hog, PAUSE, port accesses, memory-mapped accesses",
			guests: []member{
				{name: "g0", tickets: 100}, {name: "pause", tickets: 100, cmdline: "mode=1 work=1000"},
				{name: "ports", tickets: 100, cmdline: "mode=2 work=10"}, {name: "mmio", tickets: 100, cmdline: "mode=3 work=10"},
			},
			phases: []phase{{part: 1, want: []float64{1, 1, 1, 1}}}, only: []Policy{Stride, Cgroup},
		},
		load{
			name: "inflation", about: "groups a and b 1:1; half-way a's second guest takes ten times its tickets",
			groups: map[string]int64{"a": 100, "b": 100},
			guests: []member{{name: "a0", group: "a", tickets: 100}, {name: "a1", group: "a", tickets: 100}, {name: "b0", group: "b", tickets: 100}},
			phases: []phase{
				{part: 0.5, want: []float64{1, 1, 2}},
				{part: 0.5, want: []float64{1, 10, 11}, change: func(s stage) error { return s.tickets("a1", 1000) }},
			},
		},
	)
	all = append(all, load{
		name: "workers", about: "1:1, then 1:3; the first reads a disk all the time, and the workers' time is its own", kind: reading,
		guests: hogs(100, 100), only: []Policy{Stride, Lottery},
		phases: []phase{
			{part: 0.5, want: []float64{1, 1}},
			{part: 0.5, want: []float64{1, 3}, change: func(s stage) error { return s.tickets("g1", 300) }},
		},
	})
	nodes := load{
		name: "nodes", about: "two nodes of one CPU: 2:1 on one, 3:1 on the other", only: []Policy{Stride}, nodes: 2,
		guests: hogs(200, 100, 300, 100),
		phases: []phase{{part: 1, want: []float64{2, 1, 3, 1}}},
	}
	nodes.guests[2].node, nodes.guests[3].node = 1, 1
	all = append(all, nodes)
	skewed := ratio(append([]int64{100}, slices.Repeat([]int64{1}, 100)...)...)
	skewed.name, skewed.about = "skewed", "100:1:…:1, 101 guests"
	skewed.only = []Policy{Stride, Cgroup}
	all = append(all, skewed)
	if many > 1 {
		l := ratio(append(slices.Repeat([]int64{2}, many/2), slices.Repeat([]int64{1}, many-many/2)...)...)
		l.name, l.about, l.only, l.slow = "many", fmt.Sprintf("%d guests, half of them 2, half 1", many), []Policy{Stride}, 2
		all = append(all, l)
	}
	return all
}
