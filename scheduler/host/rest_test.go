package host

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// burner is a thread of this process that computes when it is told to.
type burner struct {
	thread
	burns chan bool // whether it is to, or its end
}

func newBurner(t *testing.T) *burner {
	w := &burner{burns: make(chan bool)}
	tid, done := make(chan int), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		for on := range w.burns {
			for open := true; on && open; {
				select {
				case on, open = <-w.burns:
				default:
				}
			}
		}
	}()
	w.tid = <-tid
	t.Cleanup(func() {
		close(w.burns)
		<-done
	})
	return w
}

// processTime is the CPU time of this process.
func processTime() time.Duration {
	var at unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &at)
	return time.Duration(at.Nano())
}

// TestHostRest: a pool in which one computes is at rest for as long as it was told,
// and no longer once something has happened.
func TestHostRest(t *testing.T) {
	s, err := build(Config{Pools: [][]int{{0}}}, linux{})
	if err != nil {
		t.Fatal(err)
	}
	p := s.pools[0]
	var guests []*Guest
	var burners []*burner
	for range 2 {
		g, err := s.NewGuest(GuestConfig{Tickets: 100})
		if err != nil {
			t.Fatal(err)
		}
		w := newBurner(t)
		w.halted = len(burners) > 0
		if _, err := g.Add(0, w, 0); err != nil {
			t.Fatal(err)
		}
		guests, burners = append(guests, g), append(burners, w)
	}
	burners[0].burns <- true
	const use, many = 2 * time.Millisecond, 1000
	look := func() (n nap) {
		t.Helper()
		p.stirred = 0
		for range 3 * maxQuiet {
			n = p.tick(s.sys.now())
		}
		if n.use == 0 {
			t.Fatalf("a pool in which one computes is not at rest: %+v", n)
		}
		return n
	}
	rest := func(glances int) time.Duration {
		before := processTime()
		p.rest(use, glances)
		return processTime() - before
	}

	if n := look(); n.glances != maxGlances-1 || len(p.glances) != 1 {
		t.Errorf("%d glances at %v, want %d at one", n.glances, p.glances, maxGlances-1)
	}
	if d := rest(4); d < 5*use {
		t.Errorf("it rested for %v of CPU time, want five times %v", d, use)
	}
	if n := testing.AllocsPerRun(5, func() {
		p.glimpse()
		p.rest(use, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}

	look()
	p.nudge()
	if d := rest(many); d >= many*use/2 {
		t.Errorf("a nudge is seen after %v of CPU time", d)
	}
	look()
	guests[1].owe(1)
	if d := rest(many); d >= many*use/2 {
		t.Errorf("that workers have used something is seen after %v of CPU time", d)
	}
	look()
	p.glances[0].clock = threadClock(1 << 23) // beyond the largest
	if d := rest(many); d >= many*use/2 {
		t.Errorf("that a thread has ended is seen after %v of CPU time", d)
	}
	look()
	burners[1].burns <- true
	if d := rest(many); d >= many*use/2 {
		t.Errorf("that one who slept computes is seen after %v of CPU time", d)
	}
}

// TestPoolGlancesCount: one that uses a little between glances is not taken for one that
// wants to run, however long it was only glanced at; and one that uses more is.
func TestPoolGlancesCount(t *testing.T) {
	const little = int64(DefaultQuantum) / littleUse
	w := newWorld(t, Config{Pools: [][]int{{0}}})
	w.guest(t, GuestConfig{Tickets: 100})
	_, x := w.guest(t, GuestConfig{Tickets: 100})
	x.halted = true
	w.run(time.Second)
	p := w.s.pools[0]
	rest := func(use int64) nap {
		t.Helper()
		if len(p.glances) != 1 {
			t.Fatalf("glances at %v", p.glances)
		}
		for range maxGlances - 1 {
			x.used += little / 2
			p.glances[0].used = x.used
		}
		x.used += use
		w.clock += int64(time.Second)
		return p.tick(w.clock)
	}
	for range 3 {
		if n := rest(little / 2); n.use == 0 {
			t.Fatalf("it is taken for one that wants to run: %+v", n)
		}
	}
	if n := rest(2 * little); n.use != 0 {
		t.Errorf("it is taken for asleep: %+v", n)
	}
}

// TestPoolGlances: a glance is no look at threads that come, at limits, or at more
// than a look would look at.
func TestPoolGlances(t *testing.T) {
	var w *world
	var g *Guest
	var x *thread
	begin := func() {
		w = newWorld(t, Config{Pools: [][]int{{0}}})
		w.guest(t, GuestConfig{Tickets: 100})
		g, x = w.guest(t, GuestConfig{Tickets: 100})
		x.halted = true
	}
	last := func() nap {
		naps := w.run(time.Second)
		return naps[len(naps)-1]
	}
	begin()
	if n := last(); n.glances != maxGlances-1 {
		t.Errorf("with one asleep: %+v", n)
	}
	x.tid = 0
	if n := last(); n.glances != 0 {
		t.Errorf("with one that has not begun: %+v", n)
	}
	begin()
	g.SetLimit(500)
	if n := last(); n.glances != 0 {
		t.Errorf("with a limit: %+v", n)
	}
	begin()
	for range sleepers {
		_, x := w.guest(t, GuestConfig{Tickets: 100})
		x.halted = true
	}
	if n := last(); n.glances != 0 {
		t.Errorf("with %d asleep: %+v", sleepers+1, n)
	}
}
