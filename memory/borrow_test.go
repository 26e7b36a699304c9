package memory

import (
	"bytes"
	"errors"
	"testing"
)

// join is what loans hold.
func join(loans []Loan) (b []byte) {
	for _, l := range loans {
		b = append(b, l.Bytes...)
	}
	return b
}

// TestHostBorrow lends pages of all kinds, and looks at what becomes of them.
func TestHostBorrow(t *testing.T) {
	a := cached(t, 16)
	s := sharing(t, Range{0, 4 * mib})
	if err := s.WriteAt(bytes.Repeat([]byte{7}, 20*page), 100*page); err != nil {
		t.Fatal(err)
	}
	// Own pages, two runs of shared ones, own ones.
	if err := errors.Join(s.Share(104, Run{a, 2, 4}), s.Share(108, Run{a, 9, 2})); err != nil {
		t.Fatal(err)
	}
	const from, n = 100*page + 50, 12 * page
	want := make([]byte, n)
	if err := s.ReadAt(want, from); err != nil {
		t.Fatal(err)
	}
	loans, err := s.Borrow(nil, from, n)
	if err != nil || !bytes.Equal(join(loans), want) {
		t.Fatalf("%d pieces, other bytes (%v)", len(loans), err)
	}
	for i, w := range []struct {
		run         Run
		offset, len int
	}{{Run{}, 50, 4*page - 50}, {Run{a, 2, 4}, 0, 4 * page}, {Run{a, 9, 2}, 0, 2 * page}, {Run{}, 0, 2*page + 50}} {
		if l := loans[i]; l.Run != w.run || l.Offset != w.offset || len(l.Bytes) != w.len {
			t.Errorf("piece %d: %+v, offset %d, %d bytes", i, l.Run, l.Offset, len(l.Bytes))
		}
	}
	if len(loans) != 4 || s.Pins() != 4 || a.Users(3) != 2 || a.Users(9) != 2 || a.Users(6) != 0 || s.Stats().VMAs != 3 {
		t.Errorf("%d pieces, %d pins, %d and %d users; %+v", len(loans), s.Pins(), a.Users(3), a.Users(9), s.Stats())
	}
	// What is lent stays, though the guest writes to it.
	mustStore(t, s.View(0), 105*page, "guest")
	if _, err := s.Collapse(108, 2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(join(loans), want) {
		t.Error("what is lent has changed")
	}
	for _, l := range loans {
		s.Return(l)
	}
	if s.Pins() != 0 || a.Users(3) != 0 || a.Users(2) != 1 || a.Users(9) != 0 {
		t.Errorf("%d pins, users %d, %d, %d", s.Pins(), a.Users(3), a.Users(2), a.Users(9))
	}
	if got, err := s.Borrow(loans[:1], 4*mib-10, 11); !errors.Is(err, ErrNotRAM) || len(got) != 1 {
		t.Errorf("beyond the end of RAM: %v", err)
	}
	loans = loans[:0]
	if n := testing.AllocsPerRun(100, func() {
		loans, _ = s.Borrow(loans[:0], from, n)
		for _, l := range loans {
			s.Return(l)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	thin := opened(t, Options{Name: "test", RAM: []Range{{0, mib}}, Huge: HugeOff})
	loans, err = thin.Borrow(nil, 10, 3*page)
	if err != nil || len(loans) != 1 || loans[0].Offset != 10 || len(loans[0].Bytes) != 3*page {
		t.Errorf("of a thin Space: %d pieces, %v", len(loans), err)
	}
	thin.Return(loans[0])
}

// TestHostOverwrite has a device write to shared pages of which nothing is needed.
func TestHostOverwrite(t *testing.T) {
	a := cached(t, 16)
	s := sharing(t, Range{0, 4 * mib})
	if err := s.Receive(100, Run{a, 0, 8}); err != nil {
		t.Fatal(err)
	}
	const from, n = 100*page + 100, 4 * page
	b, err := s.Pin(nil, from, n, Overwrite)
	if err != nil || len(b) != 1 {
		t.Fatal(err)
	}
	copy(b[0][:10], "0123456789")
	if err := s.Share(102, Run{a, 0, 1}); !errors.Is(err, ErrPinned) {
		t.Errorf("shared what a device writes: %v", err)
	}
	s.Unpin(from, n, Overwrite)
	want := append(bytes.Clone(a.Bytes()[:page]), make([]byte, 3*page)...)
	want = append(want, a.Bytes()[4*page:8*page]...)
	copy(want[100:], "0123456789")
	got := make([]byte, 8*page)
	if err := guestLoad(s.View(0), got, 100*page); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the guest sees other bytes (%v)", err)
	}
	// Two pages in part, which were copied; three whole, which were not.
	if st := s.Stats(); st.BytesCopied != 2*page || st.Received != 8 || st.ReceivedCopied != 2 || st.SharedPages != 3 || s.ReceivedCopied() != 2 {
		t.Errorf("%+v", st)
	}
	for i, want := range []State{Private, Private, Private, Private, Private, Shared, Shared, Shared} {
		wantState(t, s, PPN(100+i), want)
	}
	if a.Users(2) != 0 || a.Users(5) != 1 {
		t.Errorf("%d and %d users", a.Users(2), a.Users(5))
	}
	// A page that was shared otherwise is not one that was received.
	if err := s.Share(106, Run{a, 0, 1}); err != nil {
		t.Fatal(err)
	}
	mustStore(t, s.View(0), 106*page, "x")
	if n := s.ReceivedCopied(); n != 2 {
		t.Errorf("%d pages that were received were copied", n)
	}
	// One that the monitor's mapping shows still is.
	b, err = s.Pin(b[:0], 107*page, 10, Read)
	if err != nil || !bytes.Equal(b[0], a.Bytes()[7*page:7*page+10]) {
		t.Fatal(err)
	}
	s.Unpin(107*page, 10, Read)
	mustStore(t, s.View(0), 107*page, "x")
	if n := s.ReceivedCopied(); n != 3 {
		t.Errorf("%d pages that were received were copied", n)
	}
	if _, err := s.Collapse(100, 8); err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, s)
}
