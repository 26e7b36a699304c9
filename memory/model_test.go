package memory

import (
	"bytes"
	"errors"
	"testing"

	"disco/memory/arena"
	"disco/numa"
)

// model does random acts on a Space and on a map of pages, one after another,
// and sees after each that both agree and everything in the Space does.
type model struct {
	t     *testing.T
	rnd   rng
	s     *Space
	want  map[PPN][]byte // absent: zeroes
	pool  *arena.Arena
	pins  []pinned
	first []PPN // of each RAM range
	maps  int   // the kernel's mappings at first
	acts  map[string]int
}

type pinned struct {
	a   GPA
	n   int
	acc Access
	b   [][]byte
	// raced is a page that was shared since: what a device reads there is anything.
	raced bool
}

const (
	modelRange = 700 // pages of each of two RAM ranges, so more than a block
	modelViews = 3
	poolPages  = 64
)

// TestHostModel is 800 random acts for each of some seeds.
func TestHostModel(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		runModel(t, seed, 800, modelViews)
	}
}

// TestHostSharingModel is the same for a Space that can only share.
func TestHostSharingModel(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		runModel(t, seed, 800, 1)
	}
}

// runModel is of a sharing Space if it has one View.
func runModel(t *testing.T, seed uint64, acts, views int) {
	t.Helper()
	pool, err := arena.New("test-pool", poolPages*page, HugeOff)
	if err != nil {
		t.Fatal(err)
	}
	for i := range poolPages {
		copy(pool.Bytes()[i*page:(i+1)*page], bytes.Repeat([]byte{byte(i), 0xd1}, page/2))
	}
	const second = 1024
	topology, nodes := fakeNodes(t, views)
	s, err := Open(Options{
		Name: "test", RAM: []Range{{0, modelRange * page}, {second * page, modelRange * page}},
		Topology: topology, Nodes: nodes, Tracked: views > 1, Sharing: views == 1, Huge: HugeOff,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.poolOf(pool); err != nil { // it has mappings of its own
		t.Fatal(err)
	}
	m := &model{t: t, rnd: rng{seed}, s: s, want: make(map[PPN][]byte), pool: pool, first: []PPN{0, second}, acts: make(map[string]int), maps: mappings(t)}
	for range acts {
		m.act()
		if t.Failed() {
			t.Fatalf("seed %d, after %v", seed, m.acts)
		}
	}
	for len(m.pins) > 0 {
		m.unpin()
	}
	for _, first := range m.first {
		for k := range views {
			m.compare(k, first, modelRange)
		}
	}
	checkInvariants(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for i := range uint64(poolPages) {
		if n := pool.Users(i); n != 0 {
			t.Errorf("page %d of the pool still has %d users", i, n)
		}
	}
	if err := pool.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("seed %d: %v", seed, m.acts)
}

// run picks pages: mostly few, sometimes many, often near others picked before.
func (m *model) run() (PPN, int) {
	off := m.rnd.below(modelRange)
	if m.rnd.below(2) == 0 {
		off = 490 + m.rnd.below(40) // around the edge of a block
	}
	n := 1 + m.rnd.below(8)
	if m.rnd.below(20) == 0 {
		n = modelRange
	}
	return m.first[m.rnd.below(2)] + PPN(off), min(n, modelRange-off)
}

func (m *model) bytes(p PPN) []byte {
	b := m.want[p]
	if b == nil {
		b = make([]byte, page)
		m.want[p] = b
	}
	return b
}

// store is a write of everybody's kind to the model.
func (m *model) store(a GPA, b []byte) {
	for i, c := range b {
		q := a + GPA(i)
		m.bytes(PPN(q / page))[q%page] = c
	}
}

func (m *model) load(a GPA, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		q := a + GPA(i)
		if page := m.want[PPN(q/arena.PageSize)]; page != nil {
			b[i] = page[q%arena.PageSize]
		}
	}
	return b
}

func (m *model) compare(k int, p PPN, n int) {
	m.t.Helper()
	got := make([]byte, n*page)
	if err := guestLoad(m.s.View(k), got, GPA(p)*page); err != nil {
		m.t.Error(err)
		return
	}
	if want := m.load(GPA(p)*page, n*page); !bytes.Equal(got, want) {
		m.t.Errorf("View %d has other bytes in %d pages at %#x", k, n, uint64(p))
	}
}

// where is an address in the run, and a length that stays in it.
func (m *model) where(p PPN, n int) (GPA, int) {
	off := m.rnd.below(n * page)
	return GPA(p)*page + GPA(off), 1 + m.rnd.below(min(n*page-off, 3*page))
}

func (m *model) data(n int) []byte {
	b := bytes.Repeat([]byte{byte(m.rnd.below(256))}, n)
	b[0], b[n-1] = byte(m.rnd.below(256)), byte(m.rnd.below(256))
	return b
}

func (m *model) unpin() {
	i := m.rnd.below(len(m.pins))
	p := m.pins[i]
	if got := bytes.Join(p.b, nil); !p.raced && !bytes.Equal(got, m.load(p.a, p.n)) {
		m.t.Errorf("pinned memory at %#x has other bytes", uint64(p.a))
	}
	m.s.Unpin(p.a, p.n, p.acc)
	m.pins[i] = m.pins[len(m.pins)-1]
	m.pins = m.pins[:len(m.pins)-1]
}

func (m *model) act() {
	p, n := m.run()
	a, size := m.where(p, n)
	on := numa.Node(m.rnd.below(len(m.s.view)))
	kind := m.rnd.below(16)
	if m.s.opt.Sharing && (kind == 8 || kind == 9 || kind == 10 || kind > 11) {
		kind = 15
	}
	var name string
	var err error
	switch kind {
	case 0, 1:
		name = "guest's store"
		b := m.data(size)
		m.store(a, b)
		err = guestStore(m.s.View(int(on)), b, a)
	case 2, 3:
		name = "guest's load"
		m.compare(int(on), p, min(n, 16))
	case 4:
		name = "WriteAt"
		b := m.data(size)
		m.store(a, b)
		err = m.s.WriteAt(b, a)
	case 5:
		name = "ReadAt"
		b := make([]byte, size)
		if err = m.s.ReadAt(b, a); !bytes.Equal(b, m.load(a, size)) {
			m.t.Errorf("other bytes at %#x", uint64(a))
		}
	case 6:
		if len(m.pins) > 5 {
			m.unpin()
			name = "Unpin"
			break
		}
		name = "Pin"
		acc := Access(m.rnd.below(2))
		var b [][]byte
		if b, err = m.s.Pin(nil, a, size, acc); err == nil {
			m.pins = append(m.pins, pinned{a: a, n: size, acc: acc, b: b})
		}
	case 7:
		// A device writes what it has pinned.
		for _, p := range m.pins {
			if p.acc == Write {
				name = "DMA"
				b := m.data(p.n)
				m.store(p.a, b)
				for _, part := range p.b {
					b = b[copy(part, b):]
				}
				break
			}
		}
	case 8, 9:
		name = "Replicate"
		if _, err = m.s.Replicate(p, n, on); errors.Is(err, ErrPinned) {
			err = nil
		}
	case 10:
		name = "Migrate"
		_, err = m.s.Migrate(p, n, on)
	case 11:
		name = "Collapse"
		_, err = m.s.Collapse(p, n)
	case 12:
		name = "Guard"
		err = m.s.Guard(p, n)
	case 13:
		name = "Watch"
		err = m.s.Watch(p, n, on)
	case 14:
		name = "Unguard, Reclaim"
		m.s.Reclaim(m.rnd.below(20))
		err = m.s.Unguard(p, n)
	case 15:
		name = "Share"
		r := Run{m.pool, uint64(m.rnd.below(poolPages)), 0}
		r.N = min(n, 8, poolPages-int(r.Page))
		if err = m.s.Share(p, r); errors.Is(err, ErrPinned) {
			// A part may have been shared. The caller writes all of it, as a device.
			err = m.s.WriteAt(r.Arena.Bytes()[r.Page*page:(r.Page+uint64(r.N))*page], GPA(p)*page)
		}
		for i := range m.pins {
			if pin := &m.pins[i]; pin.a < GPA(p+PPN(r.N))*page && GPA(p)*page < pin.a+GPA(pin.n) {
				pin.raced = true
			}
		}
		m.store(GPA(p)*page, r.Arena.Bytes()[r.Page*page:(r.Page+uint64(r.N))*page])
	}
	if err != nil {
		m.t.Errorf("%s of %d pages at %#x: %v", name, n, uint64(p), err)
	}
	if m.rnd.below(20) == 0 {
		m.s.edges.Lock()
		counted := m.s.vmas
		m.s.edges.Unlock()
		if n := mappings(m.t) - m.maps; int64(n) != counted {
			m.t.Errorf("the kernel has %d mappings more, counted %d", n, counted)
		}
	}
	m.acts[name]++
	m.compare(m.rnd.below(len(m.s.view)), p, 1)
	checkInvariants(m.t, m.s)
}
