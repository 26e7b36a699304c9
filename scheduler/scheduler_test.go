package scheduler

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

const quantum = 10_000_000 // 10 ms

// policies are all there are, by name.
var policies = map[string]func() Policy{
	"stride":       func() Policy { return NewStride(quantum) },
	"spread":       func() Policy { return NewSpreadStride(quantum) },
	"hierarchy":    func() Policy { return NewHierarchy(quantum) },
	"lottery":      func() Policy { return NewLottery(quantum, 1) },
	"lottery list": func() Policy { return NewListLottery(quantum, 1) },
}

// exact are those that promise more than a mean.
func exact(name string) bool { return !strings.HasPrefix(name, "lottery") }

// join makes clients with so many tickets and has them join.
func join(p Policy, tickets ...uint64) []*Client {
	var cs []*Client
	for i, n := range tickets {
		c := NewClient(i, n*One)
		p.Join(c)
		cs = append(cs, c)
	}
	return cs
}

// serve lets the policy choose n times and says how often each was chosen.
func serve(p Policy, clients, n int) []int {
	got := make([]int, clients)
	for range n {
		c := p.Next()
		got[c.ID]++
		p.Done(c, quantum)
	}
	return got
}

func TestCheckTickets(t *testing.T) {
	for n, want := range map[int64]string{
		1: "", 100: "", MaxTickets: "",
		0:              "0 tickets would never be served: use 1 to 1048576",
		-5:             "-5 tickets: use 1 to 1048576",
		MaxTickets + 1: "1048577 tickets: at most 1048576; only the ratio to others' counts",
		math.MaxInt64:  "9223372036854775807 tickets: at most 1048576; only the ratio to others' counts",
	} {
		got := ""
		if err := CheckTickets(n); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// TestShares checks, after every quantum, that what each has had is near its
// share: strides by their bounds, lotteries by 5σ at the end.
func TestShares(t *testing.T) {
	for name, make := range policies {
		for _, tickets := range [][]uint64{{1, 1}, {2, 1}, {3, 2, 1}, {10, 1}, {100, 1}, {7}, {1, 2, 3, 4, 5, 6, 7}} {
			t.Run(fmt.Sprint(name, tickets), func(t *testing.T) {
				p := make()
				join(p, tickets...)
				got := make2(len(tickets))
				var total uint64
				for _, n := range tickets {
					total += n
				}
				const rounds = 20_000
				for round := 1; round <= rounds; round++ {
					c := p.Next()
					got[c.ID]++
					p.Done(c, quantum)
					for i, n := range tickets {
						share := float64(n) / float64(total)
						off := math.Abs(float64(got[i]) - share*float64(round))
						if exact(name) && off > float64(len(tickets)) {
							t.Fatalf("after %d quanta client %d is %.1f off its share", round, i, off)
						}
						if !exact(name) && round == rounds && off > 5*math.Sqrt(rounds*share*(1-share)) {
							t.Errorf("client %d is %.1f off its share", i, off)
						}
					}
				}
			})
		}
	}
}

func make2(n int) []int { return make([]int, n) }

// TestStridePairs is TM-528's bound: of any two clients that wait all the time,
// neither is more than one quantum off its share of what the two had, however
// many others there are.
func TestStridePairs(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 60 {
		p := NewStride(quantum)
		if i%2 == 1 {
			p = NewSpreadStride(quantum)
		}
		tickets := make([]uint64, 2+r.IntN(12))
		for i := range tickets {
			tickets[i] = 1 + r.Uint64N(200)
		}
		join(p, tickets...)
		got := make([]int, len(tickets))
		for range 5000 {
			c := p.Next()
			got[c.ID]++
			p.Done(c, quantum)
			for i := range tickets {
				for j := range i {
					// |got_i - (got_i+got_j)·t_i/(t_i+t_j)| ≤ 1, in integers.
					a, b := int64(got[i])*int64(tickets[j]), int64(got[j])*int64(tickets[i])
					if d := max(a-b, b-a); d > int64(tickets[i]+tickets[j]) {
						t.Fatalf("tickets %v, had %v: clients %d and %d are more than a quantum off", tickets, got, i, j)
					}
				}
			}
		}
	}
}

// worst is the greatest distance of any client from its share, in quanta, after
// any of n.
func worst(p Policy, tickets []uint64, n int) float64 {
	join(p, tickets...)
	var total float64
	for _, x := range tickets {
		total += float64(x)
	}
	got := make([]float64, len(tickets))
	most := 0.0
	for k := 1; k <= n; k++ {
		c := p.Next()
		got[c.ID]++
		p.Done(c, quantum)
		for i, x := range tickets {
			most = max(most, math.Abs(got[i]-float64(k)*float64(x)/total))
		}
	}
	return most
}

// TestSkewed is TM-528's own case, 101 clients at 100:1:…:1: plain stride lets
// the heavy one run 50 quanta ahead, the tree keeps all within 4.5.
func TestSkewed(t *testing.T) {
	tickets := make([]uint64, 101)
	for i := range tickets {
		tickets[i] = 1
	}
	tickets[0] = 100
	plain := worst(NewStride(quantum), tickets, 10_000)
	tree := 0.0
	for i := range tickets {
		// Wherever in the tree the heavy one is.
		tickets[0], tickets[i] = tickets[i], tickets[0]
		tree = max(tree, worst(NewHierarchy(quantum), tickets, 400))
		tickets[0], tickets[i] = tickets[i], tickets[0]
	}
	tree = max(tree, worst(NewHierarchy(quantum), tickets, 20_000))
	spread := 0.0
	for i := range tickets {
		tickets[0], tickets[i] = tickets[i], tickets[0]
		spread = max(spread, worst(NewSpreadStride(quantum), tickets, 400))
		tickets[0], tickets[i] = tickets[i], tickets[0]
	}
	spread = max(spread, worst(NewSpreadStride(quantum), tickets, 20_000))
	t.Logf("stride %.2f quanta, spread %.2f, hierarchical %.2f", plain, spread, tree)
	if spread > 2 {
		t.Errorf("spread stride: %.2f quanta off, want 2", spread)
	}
	if plain < 49 || plain > 51 {
		t.Errorf("stride: %.2f quanta off, TM-528 says 50", plain)
	}
	if tree > 4.5 {
		t.Errorf("hierarchical stride: %.2f quanta off, TM-528 says 4.5", tree)
	}
}

// TestChange changes tickets, joins and leaves in the middle: each span by itself
// is shared as it should be.
func TestChange(t *testing.T) {
	for name, make := range policies {
		t.Run(name, func(t *testing.T) {
			p := make()
			cs := join(p, 1, 1, 1)
			expect := func(what string, n int, want ...int) {
				t.Helper()
				got := serve(p, 3, n)
				for i := range want {
					slack := 1.0
					if !exact(name) {
						slack = 5 * math.Sqrt(float64(n)) / 2
					}
					if math.Abs(float64(got[i]-want[i])) > slack {
						t.Errorf("%s: had %v, want %v", what, got, want)
						return
					}
				}
			}
			expect("1:1:1", 3000, 1000, 1000, 1000)
			p.SetWeight(cs[0], 4*One)
			expect("4:1:1", 3000, 2000, 500, 500)
			p.Leave(cs[1])
			expect("4:1 of two", 3000, 2400, 0, 600)
			p.SetWeight(cs[1], 5*One)
			p.Join(cs[1])
			expect("4:5:1", 3000, 1200, 1500, 300)
			p.Block(cs[0])
			expect("5:1 of two", 3000, 0, 2500, 500)
			p.Join(cs[0])
			expect("4:5:1 again", 3000, 1200, 1500, 300)
			p.SetWeight(cs[2], 95*One)
			p.SetWeight(cs[1], One)
			expect("4:1:95", 3000, 120, 30, 2850)
		})
	}
}

// TestLeaveKeepsRemain: who leaves and comes again at once gains and loses
// nothing, however often and under whatever weight.
func TestLeaveKeepsRemain(t *testing.T) {
	for _, name := range []string{"stride", "hierarchy"} {
		p := policies[name]()
		cs := join(p, 3, 2, 1)
		r := rand.New(rand.NewPCG(2, 2))
		got := make([]int, 3)
		for range 6000 {
			c := cs[r.IntN(3)]
			p.Leave(c)
			p.SetWeight(c, c.Weight()*7)
			p.SetWeight(c, c.Weight()/7)
			p.Join(c)
			c = p.Next()
			got[c.ID]++
			p.Done(c, quantum)
		}
		for i, want := range []int{3000, 2000, 1000} {
			if d := got[i] - want; d < -3 || d > 3 {
				t.Errorf("%s: had %v, want 3000, 2000, 1000", name, got)
				break
			}
		}
	}
}

// TestBlock: one that sleeps for long does not have it all when it wakes, nor does
// it wait for what it had too much before.
func TestBlock(t *testing.T) {
	for _, name := range []string{"stride", "hierarchy"} {
		p := policies[name]()
		cs := join(p, 1, 1)
		serve(p, 2, 10)
		p.Block(cs[0])
		p.Charge(cs[0], 50*quantum)
		serve(p, 2, 1000)
		if !p.Before(cs[0]) {
			t.Errorf("%s: who slept for long is not served first", name)
		}
		p.Join(cs[0])
		if got := serve(p, 2, 100); got[0] < 49 || got[0] > 52 {
			t.Errorf("%s: after a long sleep it had %v of 100", name, got)
		}
	}
}

// TestPartialQuanta: a client that uses a fifth of each quantum is chosen five
// times as often, and so has its share of the time: by its tickets in a lottery,
// by itself in stride.
func TestPartialQuanta(t *testing.T) {
	for name, make := range policies {
		t.Run(name, func(t *testing.T) {
			p := make()
			join(p, 1, 1)
			var used [2]float64
			for range 30_000 {
				c := p.Next()
				n := int64(quantum)
				if c.ID == 0 {
					n = quantum / 5
				}
				used[c.ID] += float64(n)
				p.Done(c, n)
			}
			if ratio := used[0] / used[1]; ratio < 0.98 || ratio > 1.02 {
				t.Errorf("the ratio of times is %.3f, want 1", ratio)
			}
		})
	}
}

// TestLeaks: what clients take without being chosen is made up for.
func TestLeaks(t *testing.T) {
	for name, make := range policies {
		t.Run(name, func(t *testing.T) {
			p := make()
			cs := join(p, 1, 3)
			var used [2]int64
			turns, slack := 4000, 0.01
			if !exact(name) {
				turns, slack = 400_000, 0.03
			}
			for range turns {
				c := p.Next()
				// A twentieth of each quantum goes to whoever has fewer tickets.
				p.Charge(cs[0], quantum/20)
				used[0] += quantum / 20
				used[c.ID] += quantum * 19 / 20
				p.Done(c, quantum*19/20)
			}
			if ratio := float64(used[1]) / float64(used[0]); ratio < 3-slack || ratio > 3+slack {
				t.Errorf("the ratio of times is %.3f, want 3", ratio)
			}
		})
	}
}

// TestLotteryRemainder: one that halts now and then, and whose remainder another has
// at once, by being drawn after it or without being drawn, has its share of the time.
func TestLotteryRemainder(t *testing.T) {
	for _, second := range []bool{false, true} {
		for _, part := range []int64{95, 80, 70} { // of a quantum, in per cent
			p := NewLottery(quantum, 1)
			cs := join(p, 1, 1)
			var used [2]int64
			for range 400_000 {
				c := p.Next()
				n := int64(quantum)
				if c == cs[0] {
					n = quantum * part / 100
					rest := int64(quantum) - n
					used[1] += rest
					if second {
						p.Done(p.Next(), rest)
					} else {
						p.Charge(cs[1], rest)
					}
				}
				used[c.ID] += n
				p.Done(c, n)
			}
			if ratio := float64(used[0]) / float64(used[1]); ratio < 0.98 || ratio > 1.02 {
				t.Errorf("with %d %% of its quanta used (the rest drawn for: %v) the ratio of times is %.3f, want 1", part, second, ratio)
			}
		}
	}
}

// TestSeveralCPUs lets as many run at once as there are CPUs: shares are by
// feasible weights, and nobody has hoarded when things change.
func TestSeveralCPUs(t *testing.T) {
	for _, name := range []string{"stride", "lottery"} {
		t.Run(name, func(t *testing.T) {
			p := policies[name]()
			tickets := []uint64{100, 1, 1, 1, 1}
			var weights []uint64
			for _, n := range tickets {
				weights = append(weights, n*One)
			}
			limit := Feasible(weights, 2)
			if limit != 4*One {
				t.Fatalf("feasible %d, want 4 tickets", limit/One)
			}
			var cs []*Client
			for i, n := range tickets {
				c := NewClient(i, min(n*One, limit))
				cs = append(cs, c)
				p.Join(c)
			}
			pairs := func(n int) []int {
				got := make2(len(tickets))
				for range n {
					a, b := p.Next(), p.Next()
					for _, c := range []*Client{a, b} {
						got[c.ID]++
						p.Done(c, quantum)
					}
				}
				return got
			}
			if got := pairs(4000); exact(name) && (got[0] < 3990 || got[1] < 990 || got[1] > 1010) {
				t.Errorf("had %v, want 4000 and 1000 each", got)
			}
			p.SetWeight(cs[0], One)
			if got := pairs(500); exact(name) && (got[0] < 195 || got[0] > 210) {
				t.Errorf("after the change it had %v, want 200 each", got)
			}
		})
	}
}

func TestFeasible(t *testing.T) {
	for _, c := range []struct {
		weights []uint64
		cpus    int
		want    uint64
	}{
		{nil, 2, MaxWeight},
		{[]uint64{5}, 1, 5},
		{[]uint64{5, 3}, 4, 3},
		{[]uint64{100, 1}, 1, MaxWeight},
		{[]uint64{10, 10, 10}, 2, MaxWeight},
		{[]uint64{100, 4, 4}, 2, 8},
		{[]uint64{100, 50, 3, 3}, 3, 6},
		{[]uint64{9, 9, 2, 2, 2}, 3, 6},
	} {
		if got := Feasible(append([]uint64(nil), c.weights...), c.cpus); got != c.want {
			t.Errorf("%v on %d CPUs: %d, want %d", c.weights, c.cpus, got, c.want)
		}
	}
}

// TestNothing: a policy without clients serves nobody, and what is done twice or
// to strangers changes nothing.
func TestNothing(t *testing.T) {
	for name, make := range policies {
		p := make()
		c := NewClient(0, 0)
		if c.Weight() != MinWeight {
			t.Errorf("a weight of 0 is %d", c.Weight())
		}
		p.Leave(c)
		p.Block(c)
		p.Done(c, 5)
		p.Charge(c, -5)
		p.SetWeight(c, math.MaxUint64)
		if got := p.Next(); got != nil || p.Len() != 0 {
			t.Errorf("%s: nobody has joined, and %v is next of %d", name, got, p.Len())
		}
		p.Join(c)
		p.Join(c)
		if p.Len() != 1 || p.Next() != c || p.Next() != nil {
			t.Errorf("%s: one client is not served once", name)
		}
		p.Leave(c)
		p.Done(c, 5)
		if p.Len() != 0 || p.Next() != nil {
			t.Errorf("%s: one that left while it ran is still served", name)
		}
	}
}

// TestTake: who is taken out of turn has used up its next one.
func TestTake(t *testing.T) {
	for name, make := range policies {
		p := make()
		a, b := NewClient(0, One), NewClient(1, One)
		p.Join(a)
		p.Join(b)
		if !p.Take(b) || p.Take(b) || p.Next() != a || p.Next() != nil {
			t.Errorf("%s: one that was taken is not out of the queue", name)
		}
		p.Done(b, quantum)
		p.Return(a)
		if !strings.HasPrefix(name, "lottery") && p.Next() != a {
			t.Errorf("%s: one that was taken has its turn all the same", name)
		}
	}
}

// TestStorm does random things to a policy: it never loses a client, serves one
// twice at once, or breaks its own order.
func TestStorm(t *testing.T) {
	for name, make := range policies {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 3))
			p := make()
			var cs []*Client
			for i := range 50 {
				cs = append(cs, NewClient(i, (1+r.Uint64N(MaxTickets))*One))
			}
			running := map[*Client]bool{}
			for step := range 40_000 {
				c := cs[r.IntN(len(cs))]
				switch r.IntN(11) {
				case 0, 1:
					p.Join(c)
				case 2:
					p.Leave(c)
					delete(running, c)
				case 3:
					p.Block(c)
					delete(running, c)
				case 4:
					p.SetWeight(c, r.Uint64N(MaxWeight*2))
				case 5, 6:
					waiting := 0
					for _, c := range cs {
						if c.state == waitingState {
							waiting++
						}
					}
					n := p.Next()
					if n == nil != (waiting == 0) {
						t.Fatalf("step %d: %d wait, and %v is next", step, waiting, n)
					}
					if running[n] {
						t.Fatalf("step %d: client %d is chosen while it runs", step, n.ID)
					}
					if n != nil {
						running[n] = true
					}
				case 7:
					p.Done(c, r.Int64N(10*quantum))
					delete(running, c)
				case 8:
					p.Charge(c, r.Int64N(1<<40))
				case 9:
					p.Return(c)
					delete(running, c)
				case 10:
					waits := c.state == waitingState
					if p.Take(c) != waits || waits == running[c] && waits {
						t.Fatalf("step %d: client %d is taken, and waits: %v", step, c.ID, waits)
					}
					if waits {
						running[c] = true
					}
				}
				part := 0
				for _, c := range cs {
					if c.takesPart() {
						part++
					}
				}
				if part != p.Len() {
					t.Fatalf("step %d: %d take part, it says %d", step, part, p.Len())
				}
			}
		})
	}
}

const waitingState = waiting

// TestPassesWrap runs strides past the range of their virtual time.
func TestPassesWrap(t *testing.T) {
	for _, name := range []string{"stride", "hierarchy"} {
		p := policies[name]()
		cs := []*Client{NewClient(0, MinWeight), NewClient(1, 2*MinWeight)}
		p.Join(cs[0])
		p.Join(cs[1])
		var got [2]int
		for range 30_000 {
			c := p.Next()
			got[c.ID]++
			p.Done(c, MaxUse)
		}
		if got[0] < 9_999 || got[0] > 10_001 {
			t.Errorf("%s: had %v, want 10000 and 20000", name, got)
		}
	}
}

func TestPoliciesDoNotAllocate(t *testing.T) {
	for name, make := range policies {
		p := make()
		tickets := make2(100)
		var cs []*Client
		for i := range tickets {
			c := NewClient(i, uint64(1+i)*One)
			cs = append(cs, c)
			p.Join(c)
		}
		n := testing.AllocsPerRun(1000, func() {
			c := p.Next()
			p.Charge(cs[7], 5)
			p.Done(c, quantum/3)
			p.SetWeight(cs[3], c.Weight()+1)
			p.Block(cs[5])
			p.Join(cs[5])
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestLimit(t *testing.T) {
	const ms = 1_000_000
	l := NewLimit(1, 2, 10*ms)
	if w := l.Wait(0); w != 0 {
		t.Errorf("a new limit has to wait %d", w)
	}
	// Running for 10 ms spends the burst less what was earned meanwhile.
	l.Spend(10*ms, 10*ms)
	if w := l.Wait(10 * ms); w > 4 {
		t.Errorf("waits %d with its burst spent", w)
	}
	l.Spend(20*ms, 10*ms)
	if w := l.Wait(20 * ms); w < 10*ms || w > 10*ms+10 {
		t.Errorf("waits %d after 5 ms too many, want 10 ms", w)
	}
	if w := l.Wait(5 * ms); w < 10*ms || w > 10*ms+10 {
		t.Errorf("waits %d when the clock stepped back", w)
	}
	if w := l.Wait(31 * ms); w != 0 {
		t.Errorf("waits %d when it should go on", w)
	}
	// A long rest earns no more than a burst.
	l.Spend(1<<50, 0)
	l.Spend(1<<50, 12*ms)
	if w := l.Wait(1 << 50); w < 4*ms-10 || w > 4*ms+10 {
		t.Errorf("waits %d after a rest and 12 ms, want 4 ms", w)
	}
	// Over a second of running whenever it may, it has its half.
	l = NewLimit(1, 2, ms)
	var now, used int64
	for now < 1000*ms {
		if w := l.Wait(now); w > 0 {
			now += w
			continue
		}
		now += ms
		used += ms
		l.Spend(now, ms)
	}
	if used < 499*ms || used > 502*ms {
		t.Errorf("used %d ms of 500", used/ms)
	}
}

func benchmarkPolicy(b *testing.B, p Policy, n int) {
	r := rand.New(rand.NewPCG(4, 4))
	for i := range n {
		p.Join(NewClient(i, (1+r.Uint64N(1000))*One))
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Done(p.Next(), quantum)
	}
}

func BenchmarkStride(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkPolicy(b, NewStride(quantum), n) })
	}
}

func BenchmarkHierarchy(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkPolicy(b, NewHierarchy(quantum), n) })
	}
}

func BenchmarkLottery(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkPolicy(b, NewLottery(quantum, 1), n) })
	}
}

// BenchmarkDraw is a lottery's draw alone.
func BenchmarkDraw(b *testing.B) {
	l := NewLottery(quantum, 1)
	for i := range 10_000 {
		l.Join(NewClient(i, uint64(1+i%1000)*One))
	}
	b.ReportAllocs()
	for b.Loop() {
		l.draw.find(l.rng.Uint64N(l.draw.total()))
	}
}
