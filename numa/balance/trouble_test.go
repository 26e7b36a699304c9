package balance

import (
	"math/rand/v2"
	"testing"
	"time"

	"disco/memory"
	"disco/numa"
)

// alternating is two threads of which one at a time uses all memory.
func alternating(period time.Duration) pattern {
	return func(r *rand.Rand, v int, at time.Duration) (memory.PPN, bool) {
		if int(at/period)%2 == v {
			return own(r, 0), true
		}
		return memory.PPN(each), true // its own stack, so to say
	}
}

// TestNothingPingPongs has pages used from two nodes by turns, at every pace:
// moves stay few, and the guest is not worse off by them.
func TestNothingPingPongs(t *testing.T) {
	for _, period := range []time.Duration{200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 3 * time.Second, 5 * time.Second, 10 * time.Second} {
		t.Run(period.String(), func(t *testing.T) {
			t.Parallel()
			local := func(p Policy) (share float64, g *guest) {
				g = newGuest(t, newModel(2, each+512), Config{Policy: p})
				g.next = alternating(period)
				g.fill(0)
				g.run(30 * time.Second)
				return g.run(4 * time.Minute), g
			}
			off, _ := local(Off)
			full, g := local(Full)
			t.Logf("local %.3f, with off %.3f; moves of a page %.1f, faults %d", full, off, float64(g.migrated)/each, g.allFaults())
			if full < off-0.01 {
				t.Errorf("%.3f of accesses are local, with off %.3f", full, off)
			}
			d := Default()
			if most := float64(d.MaxMoves) * (1 + g.clock.Seconds()/d.Decay.Seconds()/2); float64(g.migrated)/each > most {
				t.Errorf("a page moved %.1f times in %v, want at most %.1f", float64(g.migrated)/each, g.clock, most)
			}
		})
	}
}

// far is a thread on node 1 whose memory is on node 0, and one that idles.
func far(pages int) pattern {
	return func(r *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) {
		if v == 0 {
			return memory.PPN(pages), true
		}
		return memory.PPN(r.IntN(pages)), r.IntN(2) == 0
	}
}

// TestStuckPages has pages that cannot be moved: the others are, and those are
// tried ever more seldom.
func TestStuckPages(t *testing.T) {
	m := newModel(2, each+512)
	m.stuck = func(p memory.PPN) bool { return p%10 == 0 || p < 512 }
	g := newGuest(t, m, Config{Policy: Full})
	g.next = far(each)
	g.fill(0)
	g.run(settle)
	if got, want := g.migrated, (each-512)*9/10; got < want-8 {
		t.Errorf("%d pages migrated, want %d", got, want)
	}
	g.run(settle)
	faults, failed := g.allFaults(), g.d.Stats().Failed
	g.run(settle)
	if n := g.allFaults() - faults; n > 50*20 {
		t.Errorf("%d faults in 20 s", n)
	}
	if n := g.d.Stats().Failed - failed; n > 20 {
		t.Errorf("%d attempts in 20 s", n)
	}
}

// TestNodeFull has a node without room for what its thread uses: it gets what
// fits, less what is to stay free, and the guest goes on.
func TestNodeFull(t *testing.T) {
	for _, stale := range []bool{false, true} {
		m := newModel(2, each+512)
		m.limit[1] = 600
		g := newGuest(t, m, Config{Policy: Full})
		if stale { // the daemon believes that there is room
			free := g.d.free
			g.d.free = func(n numa.Node) (numa.Memory, error) {
				f, err := free(n)
				f.Available = 1 << 30
				return f, err
			}
		}
		g.next = far(each)
		g.fill(0)
		g.run(settle)
		s := g.d.Stats()
		t.Logf("%d pages on node 1; %+v", m.size[1], s)
		switch {
		case stale && (m.size[1] > 600 || s.Failed == 0 || s.Failed > 100):
			t.Errorf("%d pages on a node for 600, %d failed", m.size[1], s.Failed)
		case !stale && (m.size[1] > 600*95/100+1 || m.size[1] < 512 || s.Failed > 0):
			t.Errorf("%d pages on a node for 600 of which 5 %% stay free, %d failed", m.size[1], s.Failed)
		}
	}
}

// reading is threads that read one table.
func reading(pages int) pattern {
	return func(r *rand.Rand, _ int, _ time.Duration) (memory.PPN, bool) { return memory.PPN(r.IntN(pages)), false }
}

// TestPressure has a node that something else fills up: copies are given back.
func TestPressure(t *testing.T) {
	m := newModel(2, each)
	m.limit[1] = 4 * each
	g := newGuest(t, m, Config{Policy: Full})
	g.next = reading(each)
	g.fill(0)
	g.run(settle)
	if m.size[1] != each {
		t.Fatalf("%d copies, want %d", m.size[1], each)
	}
	m.limit[1] = each
	g.run(settle)
	if s := g.d.Stats(); m.size[1] > each*95/100+1 || s.Reclaimed == 0 || int(s.Reclaimed) != m.reclaimed {
		t.Errorf("%d copies on a node for %d; %d reclaimed", m.size[1], each, s.Reclaimed)
	}
	replicated := m.replicated
	g.run(settle)
	if n := m.replicated - replicated; n > each/10 {
		t.Errorf("%d pages were copied to the full node again", n)
	}
}

// TestMappingsUsedUp has no mappings left for copies: the daemon tries seldom.
func TestMappingsUsedUp(t *testing.T) {
	m := newModel(2, each)
	m.runs = 1
	g := newGuest(t, m, Config{Policy: Full})
	g.next = reading(each)
	g.fill(0)
	g.run(settle)
	g.run(settle)
	if s := g.d.Stats(); m.replicated != 512 || s.Failed == 0 || s.Failed > 10 {
		t.Errorf("%d copies, %d failures", m.replicated, s.Failed)
	}
}

// TestCopiesUsedAnew has a table that is written after it was replicated, as
// when a guest uses the pages for something else: a few stores of each block
// fault, not one for each page.
func TestCopiesUsedAnew(t *testing.T) {
	m := newModel(2, each)
	g := newGuest(t, m, Config{Policy: Full})
	g.next = reading(each)
	g.fill(0)
	g.run(settle)
	if m.replicated != each {
		t.Fatalf("%d copies, want %d", m.replicated, each)
	}
	writes := m.writes
	p := memory.PPN(0)
	g.next = func(_ *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) {
		if v == 0 {
			p = (p + 1) % each
		}
		return p, v == 0
	}
	g.run(5 * time.Second)
	if n := m.writes - writes; n > each/512*40 {
		t.Errorf("%d faults for stores to %d blocks", n, each/512)
	}
	if m.size[1] != 0 {
		t.Errorf("%d copies are left", m.size[1])
	}
	// And what is done with it now is found out.
	g.next = far(each - 512)
	g.run(settle)
	if s := g.run(after); s < 0.97 {
		t.Errorf("%.3f of accesses are local after another use", s)
	}
}

// TestSlowReaders has pages that are each used once in two seconds.
func TestSlowReaders(t *testing.T) {
	for name, next := range map[string]pattern{"readshared": reading(each), "private": far(each)} {
		g := newGuest(t, newModel(2, each+512), Config{Policy: Full})
		g.next, g.rate = next, 50
		g.fill(0)
		g.run(2 * settle)
		if s := g.run(after); s < 0.97 {
			t.Errorf("%s: %.3f of accesses are local", name, s)
		}
	}
}

// TestLateReader has a node that begins to read a table when the others have
// copies of it.
func TestLateReader(t *testing.T) {
	g := newGuest(t, newModel(4, each+512), Config{Policy: Full})
	g.next = func(r *rand.Rand, v int, at time.Duration) (memory.PPN, bool) {
		if v == 3 && at < settle {
			return each, false
		}
		return memory.PPN(r.IntN(each)), false
	}
	g.fill(0)
	g.run(settle)
	if g.replicated < 2*(each-each/512) {
		t.Errorf("%d copies for two nodes", g.replicated)
	}
	g.run(settle)
	if s := g.run(after); s < 0.97 {
		t.Errorf("%.3f of accesses are local", s)
	}
	if s := g.d.Stats(); s.Collapsed > 0 || g.allFaults() > 500 {
		t.Errorf("%d faults; %+v", g.allFaults(), s)
	}
}

// TestHugePages has memory that moves by 2 MiB only, and arrays that begin and
// end within them: what most of one is used by has it, and it stays there.
func TestHugePages(t *testing.T) {
	m := newModel(2, 2*each+1024)
	m.huge = true
	g := newGuest(t, m, Config{Policy: Full})
	g.next = func(r *rand.Rand, v int, _ time.Duration) (memory.PPN, bool) {
		return 100 + own(r, v), true // each has a part of the block in the middle
	}
	g.fill(0)
	g.run(settle)
	if s := g.run(after); s < 0.94 {
		t.Errorf("%.3f of accesses are local", s)
	}
	moved, faults := m.migrated, g.allFaults()
	g.run(settle)
	if n := m.migrated - moved; n > 512 {
		t.Errorf("%d pages moved when settled", n)
	}
	if n := float64(g.allFaults()-faults) / settle.Seconds() / 2; n > 50 {
		t.Errorf("%.1f faults per second and node", n)
	}
}

// TestSettlesInTime has 1 GiB in the wrong place, on a machine with the costs
// measured on a common one; and 128 MiB on one that is sixty times slower.
func TestSettlesInTime(t *testing.T) {
	for _, c := range []struct {
		pages int
		scale time.Duration
		want  time.Duration
	}{{1 << 18, 1, 10 * time.Second}, {1 << 15, 60, 10 * time.Second}} {
		m := newModel(2, c.pages+512)
		m.scale = c.scale
		g := newGuest(t, m, Config{Policy: Full})
		m.spend = func(d time.Duration) { g.clock += d / 4 } // the guest goes on while the daemon acts
		g.next, g.rate = far(c.pages), 40000
		g.fill(0)
		g.run(15 * time.Second)
		s := g.d.Stats()
		t.Logf("%d pages at %dx: the last of %d moved after %v; faults %d; %+v", c.pages, c.scale, g.moved(), g.still, g.allFaults(), s)
		if g.migrated < c.pages || g.still > c.want {
			t.Errorf("%d of %d pages were moved after %v, want all after %v", g.migrated, c.pages, g.still, c.want)
		}
	}
}
