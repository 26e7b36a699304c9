package balance

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"disco/memory"
)

const (
	each   = 1024 // pages of a thread's array
	settle = 20 * time.Second
	after  = 5 * time.Second // in which the share is measured
)

// workload is what the threads of a guest on n nodes do.
type workload struct {
	name  string
	pages func(n int) int
	next  func(n int) pattern
	local float64 // the least share after settling, with Full
}

func own(r *rand.Rand, v int) memory.PPN { return memory.PPN(v*each + r.IntN(each)) }

func one(int) int   { return each }
func all(n int) int { return n * each }

var workloads = []workload{
	{"private", all, func(int) pattern {
		return func(r *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) { return own(r, v), r.IntN(2) == 0 }
	}, 0.97},
	{"readshared", one, func(int) pattern {
		return func(r *rand.Rand, _ int, _ time.Duration) (memory.PPN, bool) { return own(r, 0), false }
	}, 0.97},
	{"writeshared", one, func(int) pattern {
		return func(r *rand.Rand, _ int, _ time.Duration) (memory.PPN, bool) { return own(r, 0), true }
	}, 0},
	// 70 of 100 accesses are to the thread's own pages, 25 to a table that is only
	// read, 5 to counters.
	{"mixed", func(n int) int { return (n+1)*each + 512 }, func(n int) pattern {
		return func(r *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) {
			switch k := r.IntN(100); {
			case k < 70:
				return own(r, v), r.IntN(2) == 0
			case k < 95:
				return own(r, n), false
			default:
				return memory.PPN((n+1)*each + r.IntN(512)), true
			}
		}
	}, 0.90},
	{"phase", all, func(n int) pattern {
		return func(r *rand.Rand, v int, at time.Duration) (memory.PPN, bool) {
			return own(r, (v+int(at/(settle+after)))%n), r.IntN(2) == 0
		}
	}, 0.97},
	// The threads go through arrays in order, some of them once in a second.
	{"sweep", func(n int) int { return (n + 1) * each }, func(n int) pattern {
		at := make([]int, n)
		return func(_ *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) {
			at[v]++
			k := at[v] / 10 % (2 * each)
			if k < each {
				return memory.PPN(v*each + k), true
			}
			return memory.PPN(n*each + (k+v*each/n)%each), false
		}
	}, 0.95},
	// Pages of two threads alternate: nothing can be said of a block as a whole.
	{"interlaced", all, func(n int) pattern {
		return func(r *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) {
			return memory.PPN(r.IntN(each)*n + v), r.IntN(2) == 0
		}
	}, 0.97},
}

// outcome is how a workload went.
type outcome struct {
	share     [2]float64 // local, after settling; and again, after a phase
	perMove   float64    // faults for a page moved
	steady    float64    // faults per second and node, when settled
	late      int        // pages replicated after settling
	moved     int
	collapsed int
}

func simulate(t *testing.T, w workload, n int, p Policy, known bool) (o outcome) {
	m := newModel(n, w.pages(n))
	m.known = known
	g := newGuest(t, m, Config{Policy: p})
	g.next = w.next(n)
	g.fill(0)
	g.run(settle)
	before := g.allFaults()
	o.share[0] = g.run(after)
	o.steady = float64(g.allFaults()-before) / after.Seconds() / float64(n)
	g.run(settle)
	copied := g.replicated
	before = g.allFaults()
	o.share[1] = g.run(after)
	o.steady = max(o.steady, float64(g.allFaults()-before)/after.Seconds()/float64(n))
	o.late = g.replicated - copied
	o.moved = g.moved()
	o.collapsed = g.collapsed
	o.perMove = float64(g.allFaults()) / float64(max(1, o.moved))
	return o
}

// TestWorkloadsSettle shows the numbers that are promised of the policy, as far
// as they do not depend on a machine.
func TestWorkloadsSettle(t *testing.T) {
	for _, n := range []int{2, 4, 8} {
		for _, w := range workloads {
			t.Run(fmt.Sprintf("%s on %d nodes", w.name, n), func(t *testing.T) {
				t.Parallel()
				off := simulate(t, w, n, Off, true)
				for _, p := range []Policy{Migrate, Replicate, Full} {
					if n == 8 && p != Full {
						continue
					}
					// Half of the policies know a read from a store, half do not.
					o := simulate(t, w, n, p, (n+int(p))%2 == 0)
					t.Logf("%-9v %+v", p, o)
					for i, s := range o.share {
						if s < off.share[i]-0.01 {
							t.Errorf("%v: %.3f of accesses are local, with off %.3f", p, s, off.share[i])
						}
						if p == Full && s < w.local {
							t.Errorf("%v: %.3f of accesses are local, want %.2f", p, s, w.local)
						}
					}
					if o.steady > 50 {
						t.Errorf("%v: %.1f faults per second and node when settled", p, o.steady)
					}
					if o.moved > 500 && o.perMove > 2 {
						t.Errorf("%v: %.2f faults per page moved", p, o.perMove)
					}
					if w.name == "writeshared" && o.late+o.collapsed > 0 {
						t.Errorf("%v: %d pages replicated when settled, %d collapsed", p, o.late, o.collapsed)
					}
					if o.moved > 2*n*w.pages(n) {
						t.Errorf("%v: %d moves of %d pages", p, o.moved, w.pages(n))
					}
				}
			})
		}
	}
}
