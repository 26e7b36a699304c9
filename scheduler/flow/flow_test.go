package flow

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// device takes so many requests at once and each for so long; time is a bubble's.
type device struct {
	slots chan struct{}
	took  time.Duration
}

func newDevice(parallel int, took time.Duration) *device {
	return &device{make(chan struct{}, parallel), took}
}

func (d *device) serve() {
	d.slots <- struct{}{}
	time.Sleep(d.took)
	<-d.slots
}

// user is a guest: workers that each have their next request so long after the last.
type user struct {
	weight  uint64
	workers int
	think   time.Duration
}

// served is how many requests each of the users had done in a time.
func served(g *Gate, d *device, span time.Duration, users ...user) []int {
	n := make([]atomic.Int64, len(users))
	var all sync.WaitGroup
	end := time.Now().Add(span)
	for i, u := range users {
		f := g.NewFlow(u.weight)
		for range u.workers {
			all.Go(func() {
				for time.Now().Before(end) {
					p := f.Enter(1)
					d.serve()
					f.Done(p)
					n[i].Add(1)
					time.Sleep(u.think)
				}
			})
		}
	}
	all.Wait()
	var sums []int
	for i := range n {
		sums = append(sums, int(n[i].Load()))
	}
	return sums
}

// TestShares: what is full is divided by weights, however many requests a guest has
// at once, and nobody waits for one that has none.
func TestShares(t *testing.T) {
	const us = time.Microsecond
	for _, c := range []struct {
		name     string
		depth    int
		parallel int
		took     time.Duration
		users    []user
		want     []float64 // requests a ms
		within   float64
	}{
		{"one at a time, many waiting", 1, 1, time.Millisecond, []user{{3, 4, us}, {1, 4, us}}, []float64{0.75, 0.25}, 0.01},
		{"one worker each", 1, 1, time.Millisecond, []user{{3, 1, us}, {1, 1, us}}, []float64{0.75, 0.25}, 0.02},
		{"found out: one at a time", 0, 1, time.Millisecond, []user{{3, 1, us}, {1, 1, us}}, []float64{0.75, 0.25}, 0.06},
		{"found out: many waiting", 0, 1, time.Millisecond, []user{{3, 4, us}, {1, 4, us}}, []float64{0.75, 0.25}, 0.06},
		{"ten to one", 0, 1, time.Millisecond, []user{{10, 1, us}, {1, 1, us}}, []float64{10. / 11, 1. / 11}, 0.1},
		{"three", 0, 1, time.Millisecond, []user{{3, 2, us}, {2, 2, us}, {1, 2, us}}, []float64{0.5, 1. / 3, 1. / 6}, 0.08},
		{"four at a time", 0, 4, time.Millisecond, []user{{3, 8, us}, {1, 8, us}}, []float64{3, 1}, 0.13},
		{"room for all", 0, 16, time.Millisecond, []user{{100, 1, us}, {1, 1, us}}, []float64{1, 1}, 0.02},
		{"one thinks for long: the other has the rest", 0, 1, time.Millisecond, []user{{3, 1, 9 * time.Millisecond}, {1, 2, us}}, []float64{0.09, 0.9}, 0.12},
		{"short ones", 0, 1, 20 * us, []user{{100, 1, us}, {1, 1, us}}, []float64{25, 25}, 0.02},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				span := 10_000 * c.took
				n := served(New(Config{Depth: c.depth}), newDevice(c.parallel, c.took), span, c.users...)
				for i, want := range c.want {
					if got := float64(n[i]) / span.Seconds() / 1e3; math.Abs(got/want-1) > c.within {
						t.Errorf("user %d had %.3f requests a ms, want %.3f; all had %v", i, got, want, n)
					}
				}
			})
		})
	}
}

// TestCosts: cost is divided, not requests.
func TestCosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Depth: 1})
		var had [2]atomic.Int64
		var all sync.WaitGroup
		end := time.Now().Add(10 * time.Second)
		for i, cost := range []int64{4096, 65536} {
			f := g.NewFlow(1 << 20)
			for range 2 {
				all.Go(func() {
					for time.Now().Before(end) {
						p := f.Enter(cost)
						time.Sleep(time.Duration(cost) * 10)
						had[i].Add(cost)
						f.Done(p)
					}
				})
			}
		}
		all.Wait()
		if r := float64(had[0].Load()) / float64(had[1].Load()); r < 0.98 || r > 1.02 {
			t.Errorf("1:1 of the bytes were divided %.2f:1", r)
		}
	})
}

// TestWeight: a weight that changes counts from the next request on, and a flow that
// comes late is owed nothing.
func TestWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, d := New(Config{Depth: 1}), newDevice(1, time.Millisecond)
		a, b := g.NewFlow(1), g.NewFlow(1)
		var had [2]atomic.Int64
		var stop atomic.Bool
		var all sync.WaitGroup
		run := func(i int, f *Flow) {
			all.Go(func() {
				for !stop.Load() {
					p := f.Enter(1)
					d.serve()
					had[i].Add(1)
					f.Done(p)
				}
			})
		}
		run(0, a)
		run(0, a)
		time.Sleep(time.Second)
		start := had[0].Load()
		run(1, b)
		run(1, b)
		time.Sleep(time.Second)
		if x, y := had[0].Load()-start, had[1].Load(); x < 495 || y < 495 {
			t.Errorf("1:1, and one came late: %d and %d", x, y)
		}
		b.SetWeight(4)
		start = had[1].Load()
		time.Sleep(time.Second)
		if n := had[1].Load() - start; n < 795 || n > 805 {
			t.Errorf("1:4: %d of 1000", n)
		}
		stop.Store(true)
		all.Wait()
	})
}

// TestRate: what a Gate with a rate lets through in a second is that, divided by
// weights, and all of it goes to who is alone.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Rate: 10_000_000})
		var had [2]atomic.Int64
		var stop [2]atomic.Bool
		var all sync.WaitGroup
		for i, weight := range []uint64{3, 1} {
			f := g.NewFlow(weight)
			cost := int64(1500 + 30_000*i) // bytes count, not frames
			all.Go(func() {
				for !stop[i].Load() {
					p := f.Enter(cost)
					time.Sleep(f.Owing(cost))
					f.Done(p)
					had[i].Add(cost)
				}
			})
		}
		time.Sleep(10 * time.Second)
		x, y := had[0].Load(), had[1].Load()
		if r := float64(x) / float64(y); r < 2.9 || r > 3.1 || x+y < 99e6 || x+y > 101e6 {
			t.Errorf("3:1 of 100 MB: %d and %d", x, y)
		}
		stop[0].Store(true)
		time.Sleep(time.Second)
		y = had[1].Load()
		time.Sleep(time.Second)
		if n := had[1].Load() - y; n < 99e5 || n > 101e5 {
			t.Errorf("alone it has %d of 10 MB", n)
		}
		stop[1].Store(true)
		all.Wait()
	})
}

// TestHurry: a flow that is in a hurry does not wait.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Depth: 1})
		a, b := g.NewFlow(1), g.NewFlow(1)
		p := a.Enter(1) // and never done
		var in atomic.Int64
		for range 3 {
			go func() { b.Enter(1); in.Add(1) }()
		}
		synctest.Wait()
		if n := in.Load(); n != 0 {
			t.Fatalf("%d requests got through what is full", n)
		}
		b.Hurry(true)
		synctest.Wait()
		b.Enter(1)
		if n := in.Load(); n != 3 {
			t.Errorf("%d of 3 requests in a hurry got through", n)
		}
		for range 4 {
			b.Done(Pass{})
		}
		b.Hurry(false)
		go func() { b.Enter(1); in.Add(1) }()
		synctest.Wait()
		if in.Load() != 3 {
			t.Error("it is in a hurry still")
		}
		a.Done(p)
		time.Sleep(patience) // a might return
		synctest.Wait()
		if in.Load() != 4 {
			t.Error("nobody is let through when there is room")
		}
		b.Done(Pass{})
	})
}

// TestPatienceEnds for a flow that does not return, when the timer comes at the very
// moment that it is set for, odd or even.
func TestPatienceEnds(t *testing.T) {
	for moment := range time.Duration(2) {
		for service := range int64(4) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(moment)
				g := New(Config{})
				g.knee.depth, g.knee.service = 1, 2*int64(Short)+service
				a, b := g.NewFlow(1), g.NewFlow(1)
				b.end = 1 // so that a would be next
				p := a.Enter(1)
				var in atomic.Bool
				go func() { b.Enter(1); in.Store(true) }()
				synctest.Wait()
				a.Done(p)
				synctest.Wait()
				if in.Load() {
					t.Error("room is not kept for a flow that would be next")
				}
				time.Sleep(patience)
				synctest.Wait()
				if !in.Load() {
					t.Error("room is kept for a flow that does not return")
				}
				a.Hurry(true)
				b.Hurry(true) // whatever went wrong, nobody is left behind
			})
		}
	}
}

// TestNonsense: costs and weights out of bounds are served, too.
func TestNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Depth: 1})
		var all sync.WaitGroup
		for _, c := range []struct {
			weight uint64
			cost   int64
		}{{0, 0}, {0, math.MaxInt64}, {math.MaxUint64, -1}, {1, math.MinInt64}} {
			f := g.NewFlow(c.weight)
			for range 4 {
				all.Go(func() {
					for range 100 {
						f.Done(f.Enter(c.cost))
					}
				})
			}
		}
		all.Wait() // a bubble's time, and with it the Gate's patience, ends with this function
	})
}

// TestEnterDoesNotAllocate, neither alone nor when others are there, and costs two
// atomic additions alone.
func TestEnterDoesNotAllocate(t *testing.T) {
	g := New(Config{})
	a := g.NewFlow(1)
	if n := testing.AllocsPerRun(1000, func() { a.Done(a.Enter(1)) }); n != 0 {
		t.Errorf("alone: %v allocations", n)
	}
	beside := New(Config{Depth: 2})
	a, b := beside.NewFlow(1), beside.NewFlow(1)
	p := b.Enter(1)
	if n := testing.AllocsPerRun(1000, func() { a.Done(a.Enter(1)) }); n != 0 {
		t.Errorf("beside another: %v allocations", n)
	}
	b.Done(p)
	full := New(Config{Depth: 1})
	a, b = full.NewFlow(1), full.NewFlow(1)
	done := make(chan bool)
	turn := make(chan Pass)
	go func() {
		for p := range turn {
			for { // until the other waits
				full.mu.Lock()
				n := full.waiting
				full.mu.Unlock()
				if n > 0 {
					break
				}
			}
			b.Done(p)
		}
		close(done)
	}()
	if n := testing.AllocsPerRun(100, func() {
		turn <- b.Enter(1)
		a.Done(a.Enter(1))
	}); n != 0 {
		t.Errorf("when full: %v allocations", n)
	}
	close(turn)
	<-done
}

// TestKnee: the fewest requests at once that do nearly all there is to be done.
func TestKnee(t *testing.T) {
	for _, c := range []struct {
		parallel int64
		want     int64
	}{{1, 1}, {2, 2}, {4, 4}, {8, 8}, {100, 15}} {
		t.Run(fmt.Sprint(c.parallel, " at once"), func(t *testing.T) {
			k := &knee{}
			const ms = int64(time.Millisecond)
			for range 1000 {
				for n := range int64(window) {
					level := min(n+1, k.room()) // it fills as far as it may
					k.learn(level, level, ms*max(level, c.parallel)/c.parallel, 1)
				}
			}
			if got := k.depth; got != c.want {
				t.Errorf("%d, want %d: %v", got, c.want, k.took)
			}
		})
	}
}

func BenchmarkAlone(b *testing.B) {
	f := New(Config{}).NewFlow(1)
	for b.Loop() {
		f.Done(f.Enter(1))
	}
}

func BenchmarkBeside(b *testing.B) {
	g := New(Config{Depth: 2})
	g.NewFlow(1).Enter(1)
	f := g.NewFlow(1)
	for b.Loop() {
		f.Done(f.Enter(1))
	}
}
