package sample

import (
	"errors"
	"testing"
	"time"

	"disco/memory"
	"disco/numa"
)

// still is memory in which nothing happens but what the test does.
type still struct {
	ram     []memory.Range
	home    map[memory.PPN]numa.Node // 0 unless it says otherwise
	absent  bool
	broken  bool
	state   map[memory.PPN]memory.State
	watched []memory.PPN
	on      []numa.Node
}

func (m *still) RAM() []memory.Range { return m.ram }

func (m *still) Locate(dst []numa.Node, p memory.PPN) error {
	if m.broken {
		return errors.New("broken")
	}
	for i := range dst {
		dst[i] = m.home[p+memory.PPN(i)]
		if m.absent {
			dst[i] = -1
		}
	}
	return nil
}

func (m *still) States(dst []memory.State, p memory.PPN) error {
	for i := range dst {
		dst[i] = m.state[p+memory.PPN(i)]
	}
	return nil
}

func (m *still) Replicas(memory.PPN) uint32 { return 0 }

func (m *still) Watch(p memory.PPN, n int, on numa.Node) error {
	for i := range n {
		m.watched = append(m.watched, p+memory.PPN(i))
		m.on = append(m.on, on)
	}
	return nil
}

func (m *still) Unwatch(memory.PPN, int, numa.Node) error { return nil }

func (m *still) Guard(p memory.PPN, n int) error {
	for i := range n {
		m.state[p+memory.PPN(i)] = memory.Guarded
	}
	return nil
}

func (m *still) Unguard(p memory.PPN, n int) error {
	for i := range n {
		m.state[p+memory.PPN(i)] = memory.Private
	}
	return nil
}

var config = Config{
	Window: 200 * time.Millisecond, MaxWindow: 4 * time.Second, GuardWindow: 500 * time.Millisecond,
	Hold: time.Second, MaxHold: 16 * time.Second, Decay: 20 * time.Second,
	FaultRate: 40, Share: 1, Guard: true,
}

// sampler is one for a guest on n nodes, and a function that lets time go by.
func sampler(n int, m *still) (*Sampler, func(time.Duration)) {
	if m.home == nil {
		m.home = map[memory.PPN]numa.Node{}
	}
	m.state = map[memory.PPN]memory.State{}
	var nodes []numa.Node
	for i := range n {
		nodes = append(nodes, numa.Node(i))
	}
	var now time.Duration
	clock := func() time.Duration { return now }
	s := New(config, m, nodes, clock, clock, func() {})
	return s, func(d time.Duration) {
		for end := now + d; now < end; {
			now += 100 * time.Millisecond
			s.Step()
		}
	}
}

// touchAll touches what is watched from the given nodes.
func (m *still) touchAll(s *Sampler, write bool, nodes ...numa.Node) {
	watched, on := m.watched, m.on
	m.watched, m.on = nil, nil
	for i, p := range watched {
		for _, n := range nodes {
			if on[i] == n {
				s.Touched(memory.Touch{PPN: p, Node: n, Write: write, Known: true})
			}
		}
	}
}

const mib = 1 << 20

// TestQuietGuest is watched from afar, and left alone.
func TestQuietGuest(t *testing.T) {
	m := &still{ram: []memory.Range{{Size: 8 * mib}}, home: map[memory.PPN]numa.Node{}}
	for p := range memory.PPN(512) {
		m.home[p] = 1
	}
	s, pass := sampler(3, m)
	pass(6 * time.Second)
	seen := map[memory.PPN]int{}
	for i, p := range m.watched {
		if m.on[i] == m.home[p] {
			t.Errorf("page %d is watched at home", p)
		}
		seen[p/BlockPages]++
	}
	for b := range memory.PPN(4) {
		if seen[b] != 2*Probes {
			t.Errorf("block %d is watched %d times, want %d", b, seen[b], 2*Probes)
		}
	}
	before := len(m.watched)
	pass(2 * time.Minute)
	if n := len(m.watched) - before; n > 0 {
		t.Errorf("watched again %d times in two minutes", n)
	}
	if st := s.Stats(); st.Looks != 0 || st.LocalShare != 1 {
		t.Errorf("%+v", st)
	}
}

// TestVerdicts has a block used in one way each.
func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		name   string
		nodes  []numa.Node
		write  bool
		users  Mask
		writes Writes
	}{
		{"one from afar", []numa.Node{1}, false, 0b010, Unknown},
		{"one from afar writes", []numa.Node{2}, true, 0b100, Unknown},
		{"two read", []numa.Node{0, 1}, false, 0b011, Unwritten},
		{"two write", []numa.Node{0, 1}, true, 0b011, Written},
		{"all read", []numa.Node{0, 1, 2}, false, 0b111, Unwritten},
	} {
		m := &still{ram: []memory.Range{{Size: 2 * mib}}}
		s, pass := sampler(3, m)
		var got []Heat
		for range 100 {
			pass(100 * time.Millisecond)
			m.touchAll(s, c.write, c.nodes...)
			if got = s.Heats(); len(got) > 0 {
				break
			}
		}
		if len(got) != 1 {
			t.Errorf("%s: %d heats", c.name, len(got))
			continue
		}
		h := got[0]
		pages := BlockPages
		if c.writes == Unwritten && c.users != 0b111 {
			pages-- // by which others would be seen
		}
		if h.First != 0 || h.Pages != pages || h.Home != 0 || h.Users != c.users || h.Writes != c.writes {
			t.Errorf("%s: %+v", c.name, h)
		}
		for v := range 3 {
			if want := c.users.Has(v); (h.Use[v] > 0) != want || want && h.Use[v] != Probes {
				t.Errorf("%s: node %d is seen %d times", c.name, v, h.Use[v])
			}
		}
		s.Finish(0, Outcome{Moved: 512})
		s.Finish(0, Outcome{Moved: 512}) // once more than there is to finish
	}
}

// TestUnevenBlock has halves of a block used differently: each is one run.
func TestUnevenBlock(t *testing.T) {
	m := &still{ram: []memory.Range{{Size: 2 * mib}}}
	s, pass := sampler(2, m)
	var got []Heat
	for range 100 {
		pass(100 * time.Millisecond)
		watched, on := m.watched, m.on
		m.watched, m.on = nil, nil
		for i, p := range watched {
			if (p < 256) == (on[i] == 1) {
				s.Touched(memory.Touch{PPN: p, Node: on[i], Known: true})
			}
		}
		if got = s.Heats(); len(got) > 0 {
			break
		}
	}
	if len(got) != 1 || got[0].First != 0 || got[0].Pages != 256 || got[0].Users != 0b10 || got[0].Use[1] != 256 {
		t.Errorf("%+v", got)
	}
	if st := s.Stats(); st.Fine != 1 || st.Faults[0] > 8 || st.Faults[1] > 300 {
		t.Errorf("%+v", st)
	}
}

// TestHoles has RAM in pieces, the last block of which is not whole.
func TestHoles(t *testing.T) {
	m := &still{ram: []memory.Range{{Size: 4 * mib}, {Start: 8 * mib, Size: mib}}}
	s, pass := sampler(2, m)
	pass(6 * time.Second)
	for _, p := range m.watched {
		if p >= 1024 && p < 2048 || p >= 2048+256 {
			t.Errorf("page %d is not RAM, and watched", p)
		}
	}
	for _, p := range []memory.PPN{1500, 2048 + 300, 1 << 40, 1<<64 - 1} {
		s.Touched(memory.Touch{PPN: p, Node: 1})
	}
	s.Touched(memory.Touch{PPN: 3, Node: 77})
	s.Touched(memory.Touch{PPN: 3, Node: -1})
	pass(time.Second)
}

// TestAbsentMemory has no pages, and memory that answers nothing.
func TestAbsentMemory(t *testing.T) {
	for _, m := range []*still{{absent: true}, {broken: true}} {
		m.ram = []memory.Range{{Size: 4 * mib}}
		s, pass := sampler(2, m)
		pass(10 * time.Second)
		s.Touched(memory.Touch{PPN: 5, Node: 1})
		pass(10 * time.Second)
		if len(m.watched) > 0 || len(s.Heats()) > 0 {
			t.Errorf("%d pages are watched", len(m.watched))
		}
	}
}

// TestPlacesOfTouches has every node and stratum in its own bit.
func TestPlacesOfTouches(t *testing.T) {
	m := &still{ram: []memory.Range{{Size: 2 * mib}}}
	s, _ := sampler(MaxNodes, m)
	for v := range MaxNodes {
		for k := range Probes {
			s.blocks[0].clear()
			s.Touched(memory.Touch{PPN: memory.PPN(k*stratum + 7), Node: numa.Node(v)})
			for j := range Probes {
				if got, want := s.blocks[0].users(j), only(v); j == k && got != want || j != k && got != 0 {
					t.Fatalf("node %d, stratum %d: stratum %d has %b", v, k, j, got)
				}
			}
		}
	}
}

// TestCreditEnds has a guest whose pages are used from everywhere and of which
// none can be helped: faults are kept to the rate.
func TestCreditEnds(t *testing.T) {
	m := &still{ram: []memory.Range{{Size: 512 * mib}}}
	s, pass := sampler(2, m)
	work := func(d time.Duration) (faults uint64) {
		before := s.Stats()
		for range d / (100 * time.Millisecond) {
			pass(100 * time.Millisecond)
			m.touchAll(s, true, 0, 1)
			for _, h := range s.Heats() {
				s.Finish(h.First, Outcome{Bad: true})
			}
		}
		after := s.Stats()
		return after.Faults[0] + after.Faults[1] - before.Faults[0] - before.Faults[1]
	}
	work(time.Minute)
	if n := float64(work(time.Minute)) / 60 / 2; n > 50 {
		t.Errorf("%.1f faults per second and node", n)
	}
}

func TestTouchedAllocates(t *testing.T) {
	m := &still{ram: []memory.Range{{Size: 2 * mib}}}
	s, _ := sampler(2, m)
	touch := memory.Touch{PPN: 100, Node: 1, Write: true, Known: true}
	if n := testing.AllocsPerRun(100, func() { s.Touched(touch) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTouched(b *testing.B) {
	m := &still{ram: []memory.Range{{Size: 2 * mib}}}
	s, _ := sampler(2, m)
	for i := range b.N {
		s.Touched(memory.Touch{PPN: memory.PPN(i % 512), Node: 1})
	}
}

// BenchmarkStep is a tick of a guest of 64 GiB in which nothing happens.
func BenchmarkStep(b *testing.B) {
	m := &still{ram: []memory.Range{{Size: 64 << 30}}}
	s, pass := sampler(2, m)
	pass(4 * time.Minute)
	for b.Loop() {
		s.Step()
	}
}
