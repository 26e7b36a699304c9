package host

import (
	"math"
	"runtime"
	"sync"
	"testing"
	"time"
)

// flood is a thread that has a worker use so many ns for every ns of its own, wherever
// that runs.
func (w *world) flood(d time.Duration, g *Guest, x *thread, worker float64) {
	for end := w.clock + int64(d); w.clock < end; {
		x.had()
		w.runFine(DefaultQuantum)
		g.owe(int64(float64(x.had()) * worker))
	}
}

// TestPoolWorkers: what workers use counts as the guest's own, with a vCPU that waits
// for them as with one that does not, alone or among many, by either policy.
func TestPoolWorkers(t *testing.T) {
	const ms = int64(time.Millisecond)
	for _, kind := range []Kind{Stride, Lottery} {
		for _, c := range []struct {
			worker     float64
			work, rest int64
			hogs       int
		}{
			{1, 0, 0, 1}, {0.2, 0, 0, 3}, {5, 0, 0, 1}, {0.5, 2 * ms, ms / 10, 1}, {4, ms / 5, ms / 2, 1}, {4, ms / 5, ms / 2, 6}, {100, ms / 10, 30 * ms, 6},
		} {
			w := newWorld(t, Config{Kind: kind, Pools: [][]int{{0}}, Seed: 5})
			g, x := w.guest(t, GuestConfig{Tickets: 100})
			x.work, x.rest, x.left = c.work, c.rest, c.work
			for range c.hogs {
				w.guest(t, GuestConfig{Tickets: 100})
			}
			had := func() (mine, others float64) {
				for _, o := range w.threads[1:] {
					others += float64(o.used)
				}
				return float64(x.used) + float64(g.Worked()), others / float64(c.hogs)
			}
			span, slack := 10*time.Second, 0.02
			if kind == Lottery {
				span, slack = 60*time.Second, 0.15 // three standard deviations of lumps of work
			}
			w.flood(time.Second, g, x, c.worker)
			m, o := had()
			w.flood(span, g, x, c.worker)
			mine, others := had()
			got := (mine - m) / (others - o)
			if math.Abs(got-1) > slack {
				t.Errorf("by %v, %+v: with its workers it had %.3f of what each other had", kind, c, got)
			}
		}
	}
}

// TestHostWorkers: the CPU time of goroutines between Begin and End, and no other, is
// the guest's, however many there are, and nothing is allocated for it.
func TestHostWorkers(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0}}})
	g, _ := w.guest(t, GuestConfig{Tickets: 100})
	h, _ := w.guest(t, GuestConfig{Tickets: 100})
	if n := testing.AllocsPerRun(100, func() { g.End(g.Lap(g.Begin())) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	before := g.Worked()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				mark := g.Begin()
				began := threadTime()
				for threadTime()-began < int64(100*time.Microsecond) {
				}
				mark = g.Lap(mark)
				runtime.Gosched()
				g.End(mark)
			}
		})
		all.Go(func() {
			for range 100 {
				w.s.mu.Lock()
				w.s.collect(0)
				w.s.mu.Unlock()
				runtime.Gosched()
			}
		})
	}
	all.Wait()
	w.s.mu.Lock()
	w.s.collect(0)
	w.s.mu.Unlock()
	if d := g.Worked() - before; d < 40*time.Millisecond {
		t.Errorf("400 times 0.1 ms of work are %v", d)
	}
	if d := h.Worked(); d != 0 {
		t.Errorf("who had nothing done pays for %v", d)
	}
	if n := g.worked.unpaid.Load(); n != 0 || w.s.owing.Load() != nil {
		t.Errorf("%d ns are not paid for", n)
	}
}

// BenchmarkWorker is what a batch of requests pays for paying.
func BenchmarkWorker(b *testing.B) {
	s, err := build(Config{Pools: [][]int{{0}}}, linux{})
	if err != nil {
		b.Fatal(err)
	}
	g, err := s.NewGuest(GuestConfig{Tickets: 100})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		g.End(g.Begin())
	}
}

// TestWorkersLimit: what workers use counts for a guest's limit.
func TestWorkersLimit(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0}}})
	g, x := w.guest(t, GuestConfig{Tickets: 100, Limit: 300})
	w.guest(t, GuestConfig{Tickets: 1})
	const span = 20 * time.Second
	w.flood(span, g, x, 2)
	if got := (float64(x.used) + float64(g.Worked())) / float64(span); got < 0.28 || got > 0.33 {
		t.Errorf("limited to 0.3 of a CPU it had %.3f with its workers", got)
	}
}

// TestWorkersFree: where nobody goes without, nobody has to make up for what workers
// used; and of a guest that is gone nobody pays.
func TestWorkersFree(t *testing.T) {
	w := newWorld(t, Config{Pools: [][]int{{0, 1}}})
	g, x := w.guest(t, GuestConfig{Tickets: 100})
	h, y := w.guest(t, GuestConfig{Tickets: 100})
	w.flood(20*time.Second, g, x, 1)
	_, z := w.guest(t, GuestConfig{Tickets: 100})
	for _, o := range w.threads {
		o.had()
	}
	w.run(3 * time.Second)
	for i, o := range []*thread{x, y, z} {
		if had := time.Duration(o.had()); had < 1900*time.Millisecond || had > 2100*time.Millisecond {
			t.Errorf("guest %d had %v of 6 s of three", i, had)
		}
	}
	if u := w.s.Usage(); u[0].Workers != g.Worked() || u[1].Workers != 0 {
		t.Errorf("workers used %v and %v, want %v and none", u[0].Workers, u[1].Workers, g.Worked())
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h.owe(1e9)
	w.run(time.Second)
}
