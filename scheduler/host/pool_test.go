package host

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is a host of pretended threads, which run as their levels say.
type world struct {
	clock   int64
	threads []*thread
	s       *Scheduler
	pinned  map[int][]int
	online  []int // CPUs, or nil if that cannot be asked
}

// thread is a vCPU that computes, or halts, as the test likes.
type thread struct {
	tid    int
	used   int64
	mark   int64 // see had
	halted bool
	stuck  bool // neither halted nor runnable
	held   bool
	low    bool

	// work, if not 0, is for how long it computes before it halts for rest.
	work, rest int64
	left, wake int64 // of the work, and when the rest is over
	waits      bool  // it does not halt then, but waits in the monitor
}

func (t *thread) TID() int     { return t.tid }
func (t *thread) Halted() bool { return t.halted }
func (t *thread) Inside() bool { return !t.stuck }
func (t *thread) Hold()        { t.held = true }
func (t *thread) Release()     { t.held = false }
func (t *thread) Lower()       { t.low = true }
func (t *thread) Raise() error { t.low = false; return nil }

// had is what it has used since the last call.
func (t *thread) had() int64 {
	d := t.used - t.mark
	t.mark = t.used
	return d
}

func (t *thread) ready() bool { return t.tid != 0 && !t.halted && !t.stuck && !t.held }

func (w *world) now() int64 { return w.clock }

func (w *world) thread(tid int) *thread { return w.threads[tid-1] }

func (w *world) used(tid int) (int64, bool) { return w.thread(tid).used, true }
func (w *world) runnable(tid int) bool      { return !w.thread(tid).stuck }
func (w *world) there() []int               { return w.online }
func (w *world) spread(int)                 {}
func (w *world) pin(tid int, cpus []int) error {
	w.pinned[tid] = cpus
	return nil
}

func newWorld(t *testing.T, c Config) *world {
	t.Helper()
	w := &world{pinned: map[int][]int{}}
	s, err := build(c, w)
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	return w
}

// guest adds a guest with one vCPU.
func (w *world) guest(t *testing.T, c GuestConfig) (*Guest, *thread) {
	t.Helper()
	g, err := w.s.NewGuest(c)
	if err != nil {
		t.Fatal(err)
	}
	return g, w.vcpu(t, g, 0)
}

func (w *world) vcpu(t *testing.T, g *Guest, pool int) *thread {
	t.Helper()
	x := &thread{tid: len(w.threads) + 1}
	w.threads = append(w.threads, x)
	if _, err := g.Add(len(g.members), x, pool); err != nil {
		t.Fatal(err)
	}
	return x
}

// run lets a pool's time go by, and its threads use it: those raised first, in
// turn, then those lowered.
func (w *world) run(d time.Duration) (naps []nap) {
	p := w.s.pools[0]
	for end := w.clock + int64(d); w.clock < end; {
		n := p.tick(w.clock)
		naps = append(naps, n)
		step := int64(w.s.cfg.Quantum)
		w.clock += step
		free := len(p.cpus)
		for _, low := range []bool{false, true} {
			var on []*thread
			for _, x := range w.threads {
				if x.ready() && x.low == low {
					on = append(on, x)
				}
			}
			if len(on) == 0 {
				continue
			}
			for _, x := range on {
				x.used += step * int64(min(free, len(on))) / int64(len(on))
			}
			free -= min(free, len(on))
		}
	}
	return naps
}

// runFine is run, in which threads halt and wake within a quantum, looked at every
// 0.1 ms.
func (w *world) runFine(d time.Duration) {
	p := w.s.pools[0]
	next := w.clock
	const step = int64(100 * time.Microsecond)
	for end := w.clock + int64(d); w.clock < end; w.clock += step {
		for _, x := range w.threads {
			if (x.halted || x.stuck) && x.work > 0 && w.clock >= x.wake {
				x.halted, x.stuck, x.left = false, false, x.work
			}
		}
		if w.clock >= next {
			next = w.clock + int64(w.s.cfg.Quantum)
			p.tick(w.clock)
		}
		var on []*thread
		low := true
		for _, x := range w.threads {
			if x.ready() && (!x.low || low) {
				if low && !x.low {
					on, low = on[:0], false
				}
				on = append(on, x)
			}
		}
		for _, x := range on {
			n := step / int64(len(on))
			x.used += n
			if x.left -= n; x.work > 0 && x.left <= 0 {
				x.halted, x.stuck, x.wake = !x.waits, x.waits, w.clock+step+x.rest
			}
		}
	}
}

// TestPoolCompensates: one that halts for a moment all the time has its share of the
// CPU, by lottery as by stride.
func TestPoolCompensates(t *testing.T) {
	const ms = int64(time.Millisecond)
	for _, kind := range []Kind{Stride, Lottery} {
		for _, c := range []struct{ work, rest int64 }{{2 * ms, ms / 10}, {3 * ms, ms / 2}} {
			for _, hogs := range []int{1, 3} {
				w := newWorld(t, Config{Kind: kind, Pools: [][]int{{0}}, Seed: 3})
				_, x := w.guest(t, GuestConfig{Tickets: 100})
				x.work, x.rest, x.left = c.work, c.rest, c.work
				for range hogs {
					w.guest(t, GuestConfig{Tickets: 100})
				}
				span, slack := 10*time.Second, 0.01
				if kind == Lottery {
					span, slack = 60*time.Second, 0.08 // three standard deviations
				}
				w.runFine(span)
				var all int64
				for _, o := range w.threads {
					all += o.used
				}
				got, want := float64(x.used)/float64(all), 1/float64(1+hogs)
				if math.Abs(got/want-1) > slack {
					t.Errorf("by %v, with %v of work and %v of rest beside %d it had %.4f, want %.4f", kind, time.Duration(c.work), time.Duration(c.rest), hogs, got, want)
				}
			}
		}
	}
}

// TestPoolLapses: who could not use its share, as it halted or waited in the monitor
// for most of the time, has no right to what it left when it computes.
func TestPoolLapses(t *testing.T) {
	const us = int64(time.Microsecond)
	for _, waits := range []bool{false, true} {
		for _, c := range []struct{ work, rest int64 }{{500 * us, 1500 * us}, {2300 * us, 4100 * us}, {200 * us, 15000 * us}} {
			w := newWorld(t, Config{Pools: [][]int{{0}}})
			_, x := w.guest(t, GuestConfig{Tickets: 100})
			_, y := w.guest(t, GuestConfig{Tickets: 100})
			x.work, x.rest, x.left, x.waits = c.work, c.rest, c.work, waits
			w.runFine(20 * time.Second)
			x.work, x.halted, x.stuck = 0, false, false
			x.had()
			y.had()
			w.runFine(time.Second)
			if more := time.Duration(x.had() - y.had()); more > 6*DefaultQuantum {
				t.Errorf("waits: %v, after %v of work and %v of rest: it had %v more than the other", waits, time.Duration(c.work), time.Duration(c.rest), more)
			}
		}
	}
}

func TestPoolShares(t *testing.T) {
	for _, c := range []struct {
		cpus    int
		tickets []int64
		want    []float64 // of all CPUs
	}{
		{1, []int64{1, 1}, []float64{.5, .5}},
		{1, []int64{3, 2, 1}, []float64{.5, 1. / 3, 1. / 6}},
		{1, []int64{100, 1}, []float64{100. / 101, 1. / 101}},
		{2, []int64{1, 1, 1}, []float64{1. / 3, 1. / 3, 1. / 3}},
		{2, []int64{100, 1, 1}, []float64{.5, .25, .25}},
		{4, []int64{2, 2, 2, 2, 1, 1, 1, 1}, []float64{1. / 6, 1. / 6, 1. / 6, 1. / 6, 1. / 12, 1. / 12, 1. / 12, 1. / 12}},
		{2, []int64{1}, []float64{.5}},
	} {
		for _, kind := range []Kind{Stride, Lottery} {
			if kind == Lottery && c.cpus > 1 {
				continue // not exact: see scheduler.Lottery
			}
			t.Run(fmt.Sprint(c.tickets, " on ", c.cpus, " by ", kind), func(t *testing.T) {
				pool := make([]int, c.cpus)
				for i := range pool {
					pool[i] = i
				}
				w := newWorld(t, Config{Kind: kind, Pools: [][]int{pool}})
				for _, n := range c.tickets {
					w.guest(t, GuestConfig{Tickets: n})
				}
				const span = 40 * time.Second
				w.run(span)
				slack := 0.005
				if kind == Lottery {
					slack = 0.03
				}
				for i, x := range w.threads {
					if got := float64(x.used) / float64(span) / float64(c.cpus); math.Abs(got-c.want[i]) > slack {
						t.Errorf("guest %d had %.4f, want %.4f", i, got, c.want[i])
					}
				}
			})
		}
	}
}

// TestPoolGang: the vCPUs of a gang run at the same time or not at all, also when
// there are too few CPUs for all of them, and shares are what they were.
func TestPoolGang(t *testing.T) {
	for _, c := range []struct {
		cpus, gang, others int
		want               float64 // the gang's part of the CPUs
	}{
		{2, 2, 2, .5},
		{2, 2, 1, .5},
		{4, 2, 4, .5},
		{4, 3, 3, .5},
		{1, 2, 1, .5},
		{2, 3, 2, .5},
	} {
		for _, kind := range []Kind{Stride, Lottery} {
			t.Run(fmt.Sprintf("%+v by %v", c, kind), func(t *testing.T) {
				w := newWorld(t, Config{Kind: kind, Pools: [][]int{[]int{0, 1, 2, 3}[:c.cpus]}})
				g, _ := w.guest(t, GuestConfig{Tickets: 100, Gang: true})
				for range c.gang - 1 {
					w.vcpu(t, g, 0)
				}
				others, _ := w.guest(t, GuestConfig{Tickets: 100})
				for range c.others - 1 {
					w.vcpu(t, others, 0)
				}
				apart := 0
				const quanta = 2000
				for range quanta {
					w.run(DefaultQuantum)
					n := 0
					for _, v := range g.members {
						if v.chosen {
							n++
						}
					}
					if n != 0 && n != c.gang {
						apart++
					}
				}
				if apart > 0 {
					t.Errorf("in %d of %d quanta only a part of the gang was chosen", apart, quanta)
				}
				var had, all int64
				for i, x := range w.threads {
					if all += x.used; i < c.gang {
						had += x.used
					}
				}
				if idle := int64(c.cpus)*quanta*int64(DefaultQuantum) - all; idle > all/100 {
					t.Errorf("CPUs stood still for %v", time.Duration(idle))
				}
				if got := float64(had) / float64(all); kind == Stride && math.Abs(got-c.want) > 0.02 {
					t.Errorf("the gang had %.3f, want %.3f", got, c.want)
				}
			})
		}
	}
}

// TestPoolHalts gives a vCPU that halts every other quantum its share while it
// wants it, and what it leaves to the other.
func TestPoolHalts(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0}}})
	_, a := w.guest(t, GuestConfig{Tickets: 100})
	_, b := w.guest(t, GuestConfig{Tickets: 100})
	for range 1000 {
		a.halted = !a.halted
		w.run(DefaultQuantum)
	}
	all := a.used + b.used
	if idle := int64(1000*DefaultQuantum) - all; idle > int64(5*DefaultQuantum) {
		t.Errorf("the CPU stood still for %v", time.Duration(idle))
	}
	if part := float64(a.used) / float64(all); part < 0.45 || part > 0.51 {
		t.Errorf("who halts every other quantum had %.3f", part)
	}
	a.halted = true
	w.run(time.Second)
	a.halted = false
	a.had()
	b.had()
	w.run(2 * time.Second)
	if d := time.Duration(a.had() - b.had()); d < -3*DefaultQuantum || d > 3*DefaultQuantum {
		t.Errorf("after a long sleep it had %v more than the other", d)
	}
}

// TestPoolRests: nothing is done where nothing competes, and as little as can be
// while somebody might.
func TestPoolRests(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0, 1}}})
	g, a := w.guest(t, GuestConfig{Tickets: 100})
	for range 3 {
		w.vcpu(t, g, 0)
	}
	for _, n := range w.run(time.Second) {
		if !n.idle {
			t.Fatalf("one guest alone is watched: %+v", n)
		}
	}
	_, b := w.guest(t, GuestConfig{Tickets: 100})
	b.halted = true
	naps := w.run(time.Second)
	last := naps[len(naps)-1]
	if last.use != maxQuiet*2*DefaultQuantum {
		t.Errorf("with the other guest asleep it looks again after %+v", last)
	}
	for i, x := range w.threads {
		if x.held || x.low {
			t.Errorf("thread %d is held or low while nothing competes", i)
		}
	}
	b.halted = false
	naps = w.run(time.Second)
	if n := naps[len(naps)-1]; n.at == 0 {
		t.Errorf("five vCPUs on two CPUs are left alone: %+v", n)
	}
	if len(w.pinned) == 0 {
		t.Error("nobody was bound to a CPU")
	}
	_ = a
}

// TestPoolStarved: one that was chosen and got nothing, since others of the host
// had the CPU, is not taken for asleep; one that waits in the monitor is.
func TestPoolStarved(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0}}})
	_, a := w.guest(t, GuestConfig{Tickets: 100})
	_, b := w.guest(t, GuestConfig{Tickets: 100})
	w.run(time.Second)
	for range 100 {
		before := [2]int64{a.used, b.used}
		w.run(DefaultQuantum)
		a.used, b.used = before[0], before[1]
	}
	for _, u := range w.s.Usage() {
		if u.State == Idle {
			t.Errorf("%+v is idle", u)
		}
	}
	a.stuck = true
	b.had()
	w.run(time.Second)
	if had := b.had(); had < int64(980*time.Millisecond) {
		t.Errorf("the other had %v while one waited in the monitor", time.Duration(had))
	}
}

func TestPoolLimit(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0, 1}}})
	g, a := w.guest(t, GuestConfig{Tickets: 100, Limit: 500})
	b := w.vcpu(t, g, 0)
	const span = 20 * time.Second
	w.run(span)
	if got := float64(a.used+b.used) / float64(span); got < 0.48 || got > 0.52 {
		t.Errorf("limited to 0.5 of a CPU it had %.3f", got)
	}
	g.SetLimit(0)
	a.had()
	b.had()
	w.run(span)
	if got := float64(a.had()+b.had()) / float64(span); got < 1.99 {
		t.Errorf("without a limit it had %.3f CPUs", got)
	}
}

func TestPoolGroups(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0}}})
	a, err := w.s.NewGroup("a", nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.s.NewGroup("b", nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	w.guest(t, GuestConfig{Group: a, Tickets: 100})
	inflated, _ := w.guest(t, GuestConfig{Group: a, Tickets: 100})
	_, only := w.guest(t, GuestConfig{Group: b, Tickets: 7})
	for _, n := range []int64{100, 1000} {
		if err := inflated.SetTickets(n); err != nil {
			t.Fatal(err)
		}
		only.had()
		w.run(10 * time.Second)
		if got := float64(only.had()) / 1e10; got < 0.495 || got > 0.505 {
			t.Errorf("the other group had %.4f beside %d tickets", got, n)
		}
	}
	if err := a.Close(); err == nil {
		t.Error("a group with guests was closed")
	}
}

// TestPoolComesAndGoes: whoever is removed, or whose thread ends, leaves nothing
// behind.
func TestPoolComesAndGoes(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0}, {1}}})
	var gs []*Guest
	for range 20 {
		g, _ := w.guest(t, GuestConfig{Tickets: 5})
		gs = append(gs, g)
	}
	w.run(time.Second)
	gs[3].members[0].Move(1)
	w.threads[4].tid = 0
	for i, g := range gs {
		if i > 1 {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for i, x := range w.threads[2:] {
		if x.held || x.low {
			t.Errorf("thread %d was left held or low", i+2)
		}
		x.tid = 0
	}
	w.threads[0].had()
	w.threads[1].had()
	w.run(time.Second)
	for _, x := range w.threads[:2] {
		had := time.Duration(x.had())
		if d := had - time.Second/2; d < -2*DefaultQuantum || d > 2*DefaultQuantum {
			t.Errorf("of the two that are left one had %v", had)
		}
	}
	if n := len(w.s.Usage()); n != 2 {
		t.Errorf("%d vCPUs are accounted for, want 2", n)
	}
}

// TestPoolClockSteps: a clock that stands still or goes back harms nobody.
// TestPoolMoves: a vCPU that moves to another pool runs there at once, even if the one
// it leaves had bound it, and what it has is counted on.
func TestPoolMoves(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0, 1}, {2, 3}}})
	for range 3 {
		w.guest(t, GuestConfig{Tickets: 100})
	}
	w.run(time.Second)
	for i, x := range w.threads {
		before := w.s.Usage()[i].Used
		w.s.guests[i].members[0].Move(1)
		if u := w.s.Usage()[i]; u.Pool != 1 || u.Used != before {
			t.Errorf("a vCPU that moved: %+v, before it had %v", u, before)
		}
		if on := w.pinned[x.tid]; !slices.Equal(on, []int{2, 3}) {
			t.Errorf("thread %d moved to CPUs 2 and 3, and is bound to %v", x.tid, on)
		}
		if x.held || x.low {
			t.Errorf("thread %d moved, and waits still", x.tid)
		}
	}
	if n := len(w.s.pools[0].loose) + len(w.s.pools[0].members); n != 0 {
		t.Errorf("%d are left", n)
	}
}

func TestPoolClockSteps(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0}}})
	_, a := w.guest(t, GuestConfig{Tickets: 100})
	_, b := w.guest(t, GuestConfig{Tickets: 100, Limit: 900})
	for i := range 100 {
		w.run(100 * time.Millisecond)
		if i%10 == 5 {
			w.clock -= int64(time.Hour)
		}
	}
	if d := math.Abs(float64(a.used-b.used)) / float64(a.used+b.used); d > 0.02 {
		t.Errorf("one had %v and the other %v", time.Duration(a.used), time.Duration(b.used))
	}
	for _, u := range w.s.Usage() {
		if u.Waited < 0 || u.Asked < 0 {
			t.Errorf("%+v", u)
		}
	}
}

// TestPoolCPUsGo: vCPUs divide the CPUs that are left when some are taken offline, all
// of a node's even, and those that come back.
func TestPoolCPUsGo(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0, 1, 2}, {3}}, Bound: true})
	for _, n := range []int64{2, 1, 1, 1, 1} {
		w.guest(t, GuestConfig{Tickets: n})
	}
	p := w.s.pools[0]
	for _, c := range []struct {
		online []int
		cpus   int
		want   []float64
	}{
		{nil, 3, []float64{1, .5, .5, .5, .5}}, // not known
		{[]int{0, 1, 2, 3}, 3, []float64{1, .5, .5, .5, .5}},
		{[]int{0, 2, 3}, 2, []float64{2. / 3, 1. / 3, 1. / 3, 1. / 3, 1. / 3}},
		{[]int{2, 3}, 1, []float64{1. / 3, 1. / 6, 1. / 6, 1. / 6, 1. / 6}},
		{[]int{3}, 1, []float64{1. / 3, 1. / 6, 1. / 6, 1. / 6, 1. / 6}},
		{[]int{7, 8}, 2, []float64{2. / 3, 1. / 3, 1. / 3, 1. / 3, 1. / 3}},
		{[]int{0, 1, 2, 3}, 3, []float64{1, .5, .5, .5, .5}},
	} {
		w.online = c.online
		w.run(2 * time.Second) // until it is seen
		if len(p.cpus) != c.cpus {
			t.Fatalf("with %v online the pool has %v", c.online, p.cpus)
		}
		for _, x := range w.threads {
			x.had()
		}
		const span = 20 * time.Second
		w.run(span)
		for i, x := range w.threads {
			if got := float64(x.had()) / float64(span); math.Abs(got-c.want[i]) > 0.01 {
				t.Errorf("with %v online vCPU %d had %.3f CPUs, want %.3f", c.online, i, got, c.want[i])
			}
		}
		for tid, on := range w.pinned {
			if slices.ContainsFunc(on, func(cpu int) bool { return !slices.Contains(p.cpus, cpu) }) {
				t.Errorf("with %v online thread %d is bound to %v", c.online, tid, on)
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, c := range []struct {
		c    Config
		want string
	}{
		{Config{}, "no CPUs"},
		{Config{Pools: [][]int{{}}}, "has no CPU"},
		{Config{Pools: [][]int{{0}, {1, 0}}}, "CPU 0 is named twice"},
		{Config{Pools: [][]int{{0}}, Quantum: time.Second}, "a quantum of 1s: use 1ms to 30ms"},
		{Config{Pools: [][]int{{0}}, Quantum: 1}, "a quantum of 1ns"},
	} {
		if _, err := build(c.c, &world{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.c, err, c.want)
		}
	}
	w := newWorld(t, Config{Pools: [][]int{{0}}})
	for _, n := range []int64{0, -1, 1 << 40} {
		if _, err := w.s.NewGuest(GuestConfig{Tickets: n}); err == nil {
			t.Errorf("a guest has %d tickets", n)
		}
		if _, err := w.s.NewGroup("g", nil, n); err == nil {
			t.Errorf("a group has %d tickets", n)
		}
	}
}

func TestTicksDoNotAllocate(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0}}})
	for range 20 {
		w.guest(t, GuestConfig{Tickets: 100})
	}
	w.run(time.Second)
	p := w.s.pools[0]
	if n := testing.AllocsPerRun(200, func() {
		w.clock += int64(DefaultQuantum)
		for _, x := range w.threads {
			if x.ready() && !x.low {
				x.used += int64(DefaultQuantum)
			}
		}
		p.tick(w.clock)
	}); n != 0 {
		t.Errorf("%v allocations in a tick", n)
	}
}
