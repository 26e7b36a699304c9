package memory

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"disco/memory/arena"
)

// sharing is a Space of the kind that guests on one node have.
func sharing(t testing.TB, ram ...Range) *Space {
	t.Helper()
	return opened(t, Options{Name: "test", RAM: ram, Sharing: true, Huge: HugeOff})
}

// cached is an arena with n pages, each of its own bytes.
func cached(t testing.TB, n int) *arena.Arena {
	t.Helper()
	a, err := arena.New("test-cached", uint64(n)*page, HugeOff)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		copy(a.Bytes()[i*page:(i+1)*page], bytes.Repeat([]byte{byte(i), byte(i >> 8), 0xca}, page/3+1))
	}
	t.Cleanup(func() { // after the Spaces, which were made later
		for i := range uint64(n) {
			if a.Users(i) != 0 {
				t.Errorf("page %d still has %d users", i, a.Users(i))
				break
			}
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// resident is how many pages Home has.
func resident(t testing.TB, s *Space) int {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(s.home.FD(), &st); err != nil {
		t.Fatal(err)
	}
	return int(st.Blocks * 512 / page)
}

// TestHostSharedByTwo is two guests with the same pages: one machine page each,
// until a guest, or a device, writes one.
func TestHostSharedByTwo(t *testing.T) {
	const n = 64
	a := cached(t, n)
	one, two := sharing(t, Range{0, 4 * mib}), sharing(t, Range{0, 4 * mib})
	want := a.Bytes()[:n*page]
	before := mappings(t)
	for i, s := range []*Space{one, two} {
		// What was there is freed.
		if err := s.WriteAt(bytes.Repeat([]byte{1}, n*page), 100*page); err != nil {
			t.Fatal(err)
		}
		if err := s.Share(100, Run{a, 0, n}); err != nil {
			t.Fatal(err)
		}
		if r := resident(t, s); r != 0 {
			t.Errorf("guest %d has %d pages of its own", i, r)
		}
		got := make([]byte, n*page)
		if err := guestLoad(s.View(0), got, 100*page); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("guest %d sees other bytes (%v)", i, err)
		}
		if err := s.ReadAt(got, 100*page); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the monitor sees other bytes of guest %d (%v)", i, err)
		}
	}
	if a.Users(5) != 2 {
		t.Errorf("%d users", a.Users(5))
	}

	mustStore(t, one.View(0), 105*page+10, "guest")
	if err := two.WriteAt([]byte("device"), 110*page+10); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		s    *Space
		p    PPN
		text string
	}{{one, 105, "guest"}, {two, 110, "device"}} {
		own := bytes.Clone(want)
		copy(own[(c.p-100)*page+10:], c.text)
		got := make([]byte, n*page)
		if err := guestLoad(c.s.View(0), got, 100*page); err != nil || !bytes.Equal(got, own) {
			t.Errorf("guest %d does not see what it wrote (%v)", i, err)
		}
		wantState(t, c.s, c.p, Private)
		wantState(t, c.s, c.p-1, Shared)
		wantState(t, c.s, c.p+1, Shared)
		if r := resident(t, c.s); r != 1 {
			t.Errorf("guest %d has %d pages of its own, not 1", i, r)
		}
		if st := c.s.Stats(); st.Unshared != 1 || st.SharedPages != n-1 || st.BytesCopied != page || c.s.Broken(c.p) != 1 {
			t.Errorf("guest %d: %+v", i, st)
		}
	}
	if !bytes.Equal(a.Bytes()[:n*page], want) || a.Users(5) != 1 || a.Users(10) != 1 || a.Users(11) != 2 {
		t.Error("the shared pages were changed, or their users are miscounted")
	}
	if st := one.Stats(); st.Faults() != 1 {
		t.Errorf("%+v for one store", st)
	}
	for i, s := range []*Space{one, two} {
		if _, err := s.Collapse(100, n); err != nil {
			t.Fatal(err)
		}
		if v := s.Stats().VMAs; i == 1 && v != 0 {
			t.Errorf("%d mappings are still counted", v)
		}
		checkInvariants(t, s)
	}
	if n := mappings(t) - before; n != 2 { // each has one of the cache
		t.Errorf("%d mappings more than before", n)
	}
}

// TestHostNothingSharedNoFaults is what a guest pays that could share and does
// not.
func TestHostNothingSharedNoFaults(t *testing.T) {
	s := sharing(t, Range{0, 8 * mib})
	before := mappings(t)
	if err := s.WriteAt(bytes.Repeat([]byte{5}, 4*mib), 0); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8*mib)
	if err := guestLoad(s.View(0), b, 0); err != nil || b[0] != 5 || b[5*mib] != 0 {
		t.Fatal(err)
	}
	if err := guestStore(s.View(0), b, 0); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Faults() != 0 || st.VMAs != 0 || mappings(t) != before {
		t.Errorf("%+v, %d mappings more", st, mappings(t)-before)
	}
	for name, err := range map[string]error{
		"Guard": s.Guard(0, 1), "Unguard": s.Unguard(0, 1), "Watch": s.Watch(0, 1, 0),
		"Replicate": func() error { _, err := s.Replicate(0, 1, 0); return err }(),
	} {
		if !errors.Is(err, ErrNotTracked) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostPinsOfSharedPages has devices read and write them.
func TestHostPinsOfSharedPages(t *testing.T) {
	a, s := cached(t, 16), sharing(t, Range{0, 4 * mib})
	if err := s.Share(510, Run{a, 4, 8}); err != nil { // over the edge of a block
		t.Fatal(err)
	}
	want := bytes.Clone(a.Bytes()[4*page : 12*page])
	before := mappings(t)
	b, err := s.Pin(nil, 510*page, 8*page, Read)
	if err != nil || len(b) != 1 || !bytes.Equal(b[0], want) {
		t.Fatalf("pinned %d pieces with other bytes, %v", len(b), err)
	}
	if n := mappings(t) - before; n != 2 {
		t.Errorf("%d mappings more for one piece", n)
	}
	if st := s.Stats(); st.Unshared != 0 || st.SharedPages != 8 {
		t.Errorf("%+v", st)
	}
	checkInvariants(t, s)
	// The address stays while the guest writes, and another page comes.
	mustStore(t, s.View(0), 512*page, "guest")
	if string(b[0][2*page:2*page+5]) != "guest" || a.Bytes()[6*page] != want[2*page] {
		t.Error("the pinned bytes are not the guest's")
	}
	if err := s.Share(511, Run{a, 0, 1}); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, s.View(0), 511*page, string(a.Bytes()[:page]))
	checkInvariants(t, s)
	s.Unpin(510*page, 8*page, Read)

	w, err := s.Pin(nil, 514*page+5, 10, Write)
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, s, 514, Private)
	copy(w[0], "written   ")
	if err := s.Share(513, Run{a, 0, 2}); !errors.Is(err, ErrPinned) {
		t.Errorf("shared what a device writes: %v", err)
	}
	mustLoad(t, s.View(0), 514*page+5, "written")
	if a.Bytes()[8*page+5] != want[4*page+5] {
		t.Error("a device wrote to the shared page")
	}
	s.Unpin(514*page+5, 10, Write)
	if _, err := s.Collapse(510, 8); err != nil {
		t.Fatal(err)
	}
	if n := mappings(t) - before; n != -2 {
		t.Errorf("%d mappings more than when the pages were shared", n)
	}
	checkInvariants(t, s)
}

func TestHostShareRefuses(t *testing.T) {
	a, s := cached(t, 8), sharing(t, Range{0, 4 * mib})
	take := arena.VMAs.Limit() - arena.VMAs.Used()
	arena.VMAs.Add(take)
	err := s.Share(1, Run{a, 0, 1})
	arena.VMAs.Add(-take)
	if !errors.Is(err, ErrBudget) {
		t.Errorf("over the budget: %v", err)
	}
	for name, c := range map[string]struct {
		p PPN
		r Run
	}{
		"beyond RAM":       {1023, Run{a, 0, 2}},
		"no pages":         {0, Run{a, 0, 0}},
		"beyond the arena": {0, Run{a, 7, 2}},
		"wraps":            {0, Run{a, ^uint64(0), 1}},
	} {
		if err := s.Share(c.p, c.r); err == nil {
			t.Errorf("%s: shared", name)
		}
	}
	// A page that the arena does not have, after one that it has.
	if err := a.Punch(3, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Share(600, Run{a, 2, 2}); err == nil {
		t.Error("shared a page that is not there")
	}
	wantState(t, s, 600, Private)
	mustStore(t, s.View(0), 600*page, "x")
	checkInvariants(t, s)
	thin := holed(t)
	if err := thin.Share(0, Run{a, 0, 1}); !errors.Is(err, ErrNotTracked) {
		t.Errorf("a thin Space shared: %v", err)
	}
}

// TestHostSharedAgain shares over what is shared: nothing is copied.
// TestHostHolesStay: what was freed because it is shared is not given to the guest once
// more by who makes huge pages, as the kernel does in the background.
func TestHostHolesStay(t *testing.T) {
	a := cached(t, blockPages)
	s := opened(t, Options{Name: "test", RAM: []Range{{0, 2 * mib}}, Sharing: true})
	if err := s.WriteAt([]byte("its own"), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Share(1, Run{Arena: a, Page: 1, N: blockPages - 1}); err != nil {
		t.Fatal(err)
	}
	err := unix.Madvise(s.home.Bytes(), unix.MADV_COLLAPSE)
	if n := resident(t, s); n != 1 {
		t.Errorf("%d pages of the guest's own, want 1 (%v)", n, err)
	}
}

func TestHostSharedAgain(t *testing.T) {
	a, s := cached(t, 32), sharing(t, Range{0, 4 * mib})
	for i := range uint64(20) {
		if err := s.Share(40, Run{a, i, 8}); err != nil {
			t.Fatal(err)
		}
		mustLoad(t, s.View(0), 40*page, string(a.Bytes()[i*page:(i+8)*page]))
		checkInvariants(t, s)
	}
	if st := s.Stats(); st.BytesCopied != 0 || st.Unshared != 0 || st.Faults() != 0 || st.Shared != 160 || st.SharedPages != 8 {
		t.Errorf("%+v", st)
	}
	if r := resident(t, s); r != 0 {
		t.Errorf("%d own pages", r)
	}
}

func TestHostShareDoesNotAllocate(t *testing.T) {
	a, s := cached(t, 64), sharing(t, Range{0, 4 * mib})
	b := make([]byte, 64)
	act := func() {
		if err := s.Share(500, Run{a, 0, 32}); err != nil {
			t.Fatal(err)
		}
		if err := s.ReadAt(b, 501*page); err != nil {
			t.Fatal(err)
		}
		if err := s.WriteAt(b, 505*page); err != nil {
			t.Fatal(err)
		}
		if err := guestStore(s.View(0), b, 510*page); err != nil {
			t.Fatal(err)
		}
	}
	act()
	if n := testing.AllocsPerRun(50, act); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHostShare(b *testing.B) {
	for _, n := range []int{1, 8, 32, 256} {
		b.Run(fmt.Sprintf("share/%d", n), func(b *testing.B) {
			a, s := cached(b, 512), sharing(b, Range{0, 4 * mib})
			for i := 0; b.Loop(); i++ {
				if err := s.Share(PPN(512+i%2*n), Run{a, uint64(i%2) * uint64(n), n}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("copy/%d", n), func(b *testing.B) {
			a, s := cached(b, 512), sharing(b, Range{0, 4 * mib})
			for i := 0; b.Loop(); i++ {
				at := uint64(i%2) * uint64(n) * page
				if err := s.WriteAt(a.Bytes()[at:at+uint64(n)*page], 512*page+GPA(at)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("store", func(b *testing.B) {
		a, s := cached(b, 512), sharing(b, Range{0, 4 * mib})
		x := []byte{1}
		for i := 0; b.Loop(); i++ {
			if i%512 == 0 {
				if err := s.Share(512, Run{a, 0, 511}); err != nil {
					b.Fatal(err)
				}
			}
			if err := guestStore(s.View(0), x, GPA(512+i%511)*page); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestHostSharesSideBySide has several who each read into, load from and store to
// pages of their own, next to one another, at once.
func TestHostSharesSideBySide(t *testing.T) {
	const workers, poolN = 4, 64
	a := cached(t, poolN)
	s := sharing(t, Range{0, 4 * mib})
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rnd := rng{uint64(w) + 1}
			want := map[PPN][]byte{}
			got := make([]byte, page)
			for i := range 400 {
				// Pieces of 8 pages in turn belong to one each.
				piece := rnd.below(1024/8/workers)*workers + w
				p := PPN(piece*8 + rnd.below(8))
				n := 1 + rnd.below(8-int(p)%8)
				switch rnd.below(4) {
				case 0, 1:
					from := uint64(rnd.below(poolN - n))
					if err := s.Share(p, Run{a, from, n}); err != nil {
						t.Error(err)
						return
					}
					for j := range PPN(n) {
						want[p+j] = bytes.Clone(a.Bytes()[(from+uint64(j))*page:][:page])
					}
				case 2:
					b := []byte{byte(i), byte(w)}
					off := rnd.below(page - 2)
					if err := guestStore(s.View(0), b, GPA(p)*page+GPA(off)); err != nil {
						t.Error(err)
						return
					}
					if want[p] == nil {
						want[p] = make([]byte, page)
					}
					copy(want[p][off:], b)
				default:
					b := []byte{byte(i), byte(w), 7}
					if err := s.WriteAt(b, GPA(p)*page+99); err != nil {
						t.Error(err)
						return
					}
					if want[p] == nil {
						want[p] = make([]byte, page)
					}
					copy(want[p][99:], b)
				}
				for q, b := range want {
					if err := guestLoad(s.View(0), got, GPA(q)*page); err != nil || !bytes.Equal(got, b) {
						t.Errorf("worker %d, act %d: other bytes in page %#x (%v)", w, i, uint64(q), err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	checkInvariants(t, s)
}
