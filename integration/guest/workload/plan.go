// Package workload is the program that shows where a guest's memory is: threads,
// one on each vCPU, that visit the pages of some regions in a known order, a fixed
// number of times. It is both ends of it: what the guest runs ([Serve]), what
// the host sends and gets over a stream ([Conn]), and the plan that both know
// ([Spec], [Plan]), so that the host knows exactly how often each thread visited
// each page without the guest counting them one by one.
//
// # Visits
//
// All is counted in visits: [VisitAccesses] accesses to one page, spread over
// it. A thread goes through its part of a region page by page and begins anew at
// the end; [Span] says where it began and how many visits it made, which is all that
// is needed to know the count of each page. Visits differ by [Act]: read loads,
// update loads and increments a word of the page, add adds atomically to
// 16 of its words. Words that nobody writes hold a known value and each load
// is checked; the increments are summed up in the end: so a stale or lost page is
// found, whatever the monitor does with it.
//
// # Workloads
//
//	private      each thread updates an array of its own
//	readshared   all threads read one table
//	writeshared  all threads add to one region
//	mixed        of 20 visits, 10 go to an own array, 9 to a shared table, 1 to a region that all write
//	phase        as private; half-way each thread goes on with the array of a thread of the next node
//	moving       as private; half-way the host moves the guest
//
// All of a workload's memory is fresh, and all of it is first touched by the thread
// on vCPU 0. Nothing is given back: the next workload gets other pages, which no
// policy has moved yet. What booting has used and given back is taken first, and
// not used.
//
// # Protocol
//
// The guest connects to the host's vsock [Port]. Each message is a frame: length of
// the rest (4 bytes, little-endian), kind (1 byte), and numbers as uvarints. The guest says
// hello; the host says run; the guest makes the regions and says ready, with the
// page numbers of all pages; the host says go, the guest does a round and says what
// it did, as often as there are rounds; after the last go it checks the memory and says
// done. Then comes another run, or bye. Between a round's report and the next go
// no thread touches the memory: the host looks where the pages are meanwhile.
//
// Not done: access patterns that hide from prefetchers, memory that is given back,
// threads that wait for each other, more threads than vCPUs.
package workload

import (
	"fmt"
	"slices"
)

const (
	// Port is where the host listens on its vsock.
	Port = 4111
	// PageSize is the unit of everything here, in bytes.
	PageSize = 4096
	// BallastPages is the memory that the guest's program takes before any workload.
	BallastPages = 16384
	// VisitAccesses is the number of accesses in one visit.
	VisitAccesses = 16
	// MaxThreads is the largest number of threads.
	MaxThreads = 254
	// MaxPages is the largest number of pages of one region.
	MaxPages = 1 << 24
	// MaxRounds is the largest number of rounds.
	MaxRounds = 10_000
)

// Names are the workloads, in the order in which they are run.
var Names = []string{"private", "readshared", "writeshared", "mixed", "phase", "moving"}

// Spec is one workload as the host asks for it. The zero value is not valid.
type Spec struct {
	Name    string
	Pages   int   // of each thread's own array; the sizes of shared regions follow from it
	Rounds  int   // phase needs an even number
	Visits  int   // of each thread in each round
	Threads []int // for each thread, which is pinned to the vCPU of its index, the index of its node
	Huge    bool  // ask the guest's kernel for 2 MiB pages
}

// Act is what a visit does to its page.
type Act uint8

// The acts.
const (
	Read   Act = iota // 16 loads
	Update            // 15 loads, and one word incremented; no other thread may be there in the same round
	Add               // 16 atomic additions
)

// Region is some memory of a workload.
type Region struct {
	Name  string
	Pages int
	Act   Act
}

// Turn is one region that a thread goes to in a round.
type Turn struct {
	Region int // index
	Weight int // of the sum of all weights in the round
}

// Plan is a Spec worked out.
type Plan struct {
	Spec    Spec
	Regions []Region
	shared  []Turn // of every thread, beside its own array
	own     int    // weight of the own array; 0: the workload has none
	swap    []int  // by thread, whose array it has in the second half; nil: its own
}

// New checks s and works it out.
func New(s Spec) (*Plan, error) {
	t := len(s.Threads)
	switch {
	case t < 1 || t > MaxThreads:
		return nil, fmt.Errorf("workload: %d threads: use 1 to %d", t, MaxThreads)
	case s.Pages < 4 || s.Pages > MaxPages:
		return nil, fmt.Errorf("workload: %d pages for each thread: use 4 to %d", s.Pages, MaxPages)
	case s.Rounds < 2 || s.Rounds > MaxRounds || s.Rounds%2 != 0:
		return nil, fmt.Errorf("workload: %d rounds: use an even number from 2 to %d", s.Rounds, MaxRounds)
	case s.Visits < 1:
		return nil, fmt.Errorf("workload: %d visits: use at least 1", s.Visits)
	}
	p := &Plan{Spec: s}
	table := min(4*s.Pages, MaxPages)
	switch s.Name {
	case "private", "moving":
		p.arrays(s.Pages, 1)
	case "phase":
		p.arrays(s.Pages, 1)
		p.swap = partners(s.Threads)
	case "readshared":
		p.share("table", table, Read, 1)
	case "writeshared":
		p.share("counters", s.Pages, Add, 1)
	case "mixed":
		p.arrays(s.Pages/2, 10)
		p.share("table", table/2, Read, 9)
		p.share("counters", s.Pages/4, Add, 1)
	default:
		return nil, fmt.Errorf("workload: %q is not one; there are %v", s.Name, Names)
	}
	return p, nil
}

func (p *Plan) arrays(pages, weight int) {
	for i := range p.Spec.Threads {
		p.Regions = append(p.Regions, Region{fmt.Sprintf("array %d", i), pages, Update})
	}
	p.own = weight
}

func (p *Plan) share(name string, pages int, act Act, weight int) {
	p.shared = append(p.shared, Turn{len(p.Regions), weight})
	p.Regions = append(p.Regions, Region{name, pages, act})
}

// partners gives each thread another's array, that of a thread on the next
// node wherever all nodes have as many threads.
func partners(nodes []int) []int {
	order := make([]int, len(nodes))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return nodes[a] - nodes[b] })
	sorted := slices.Sorted(slices.Values(nodes))
	step := len(nodes) / max(1, len(slices.Compact(sorted)))
	p := make([]int, len(nodes))
	for i, t := range order {
		p[t] = order[(i+step)%len(order)]
	}
	return p
}

// Turns are the regions that a thread goes to in a round.
func (p *Plan) Turns(thread, round int) []Turn {
	var turns []Turn
	if p.own > 0 {
		array := thread
		if p.swap != nil && round >= p.Spec.Rounds/2 {
			array = p.swap[thread]
		}
		turns = append(turns, Turn{array, p.own})
	}
	return append(turns, p.shared...)
}

// Pages is the memory of all regions together.
func (p *Plan) Pages() int {
	n := 0
	for _, r := range p.Regions {
		n += r.Pages
	}
	return n
}

// Settled says that a policy has had its time: round is in the last
// quarter of the rounds, or of each half for a workload that changes half-way.
func (p *Plan) Settled(round int) bool {
	n := p.Spec.Rounds
	if p.swap != nil || p.Spec.Name == "moving" {
		n /= 2
	}
	return round%n >= n-max(1, n/4)
}

// Span is what one thread did in one region in one round: Visits visits, one page
// after the other, from page First of the region on, and from page 0 again after
// the last.
type Span struct{ First, Visits int }

// Weights adds to w, which has one element for each page of the region, how often
// each was visited.
func (s Span) Weights(w []uint64) {
	if len(w) == 0 {
		return
	}
	all, rest := s.Visits/len(w), s.Visits%len(w)
	for i := range w {
		w[i] += uint64(all)
	}
	for i := range rest {
		w[(s.First+i)%len(w)]++
	}
}

// pattern is an order of turns in which each comes as often as its weight says and
// is spread out: indices into turns.
func pattern(turns []Turn) []int {
	total := 0
	for _, t := range turns {
		total += t.Weight
	}
	credit := make([]int, len(turns))
	order := make([]int, total)
	for i := range order {
		best := 0
		for j, t := range turns {
			credit[j] += t.Weight
			if credit[j] > credit[best] {
				best = j
			}
		}
		credit[best] -= total
		order[i] = best
	}
	return order
}
