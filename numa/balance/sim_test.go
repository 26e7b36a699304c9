package balance

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"disco/memory"
)

const each = 8192 // pages of a thread's array: 32 MiB

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
		return func(r *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) { return own(r, 0), false }
	}, 0.97},
	{"writeshared", one, func(int) pattern {
		return func(r *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) { return own(r, 0), r.IntN(2) == 0 }
	}, 0},
	// 70 of 100 accesses are to the thread's own pages, 25 to a table that is only
	// read, 5 to counters.
	{"mixed", func(n int) int { return (n+1)*each + 1024 }, func(n int) pattern {
		return func(r *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) {
			switch k := r.IntN(100); {
			case k < 70:
				return own(r, v), r.IntN(2) == 0
			case k < 95:
				return own(r, n), false
			default:
				return memory.PPN((n+1)*each + r.IntN(1024)), true
			}
		}
	}, 0.90},
	{"phase", all, func(n int) pattern {
		return func(r *rand.Rand, v int, at time.Duration) (memory.PPN, bool) {
			return own(r, (v+int(at/(40*time.Second)))%n), r.IntN(2) == 0
		}
	}, 0.97},
}

func TestWorkloadsSettle(t *testing.T) {
	for _, n := range []int{2, 4, 8} {
		for _, known := range []bool{true, false} {
			for _, w := range workloads {
				t.Run(fmt.Sprintf("%s on %d nodes, known %v", w.name, n, known), func(t *testing.T) {
					for _, p := range []Policy{Off, Migrate, Replicate, Full} {
						m := newModel(n, w.pages(n))
						m.known = known
						g := newGuest(t, m, Config{Policy: p})
						g.next = w.next(n)
						for i := range m.page { // all first touched by vCPU 0
							g.access(memory.PPN(i), 0, true)
						}
						a := g.run(10 * time.Second)
						b := g.run(25 * time.Second)
						f, mv := g.allFaults(), g.moved()
						c := g.run(5 * time.Second)
						e := g.run(40 * time.Second)
						t.Logf("%-10v local %.3f %.3f %.3f %.3f migrated %d replicated %d collapsed %d faults %d then %.1f/s, moved then %d, per page %.2f", p, a, b, c, e, g.migrated, g.replicated, g.collapsed, g.allFaults(), float64(g.allFaults()-f)/45, g.moved()-mv, float64(g.allFaults())/float64(max(1, g.moved())))
						if g.d != nil {
							s := g.d.Stats()
							t.Logf("   share %.2f looks %d fine %d guarded %d strays %d holds %d late %d left %v", s.LocalShare, s.Looks, s.Fine, s.Guarded, s.Strays, s.Holds, s.Late, s.Left)
						}
					}
				})
			}
		}
	}
}
