package memory

import (
	"bytes"
	"errors"
	"testing"
)

const mib = 1 << 20

// holed is a Space with a hole between its ranges, as around PCI.
func holed(t testing.TB) *Space {
	t.Helper()
	s, err := New("test", []Range{{0, mib}, {4 * mib, mib}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, s) })
	return s
}

// closes takes a Space down, with which nothing may be pinned.
func closes(t testing.TB, s *Space) {
	t.Helper()
	if n := s.Pins(); n != 0 {
		t.Errorf("%d pins are left", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

var ranges = []struct {
	name string
	a    GPA
	n    int
	ok   bool
}{
	{"start", 0, 1, true},
	{"all of the first range", 0, mib, true},
	{"nothing", 10, 0, true},
	{"last byte", mib - 1, 1, true},
	{"over the end", mib - 1, 2, false},
	{"the end", mib, 1, false},
	{"in the hole", 2 * mib, 1, false},
	{"from range to range", 0, 5 * mib, false},
	{"second range", 4 * mib, mib, true},
	{"past all", 5 * mib, 1, false},
	{"wraps", ^GPA(0), 2, false},
	{"wraps far", ^GPA(0) - 5, 1 << 40, false},
	{"negative", 0, -1, false},
}

func TestPinChecksEveryAddress(t *testing.T) {
	s := holed(t)
	for _, c := range ranges {
		got, err := s.Pin(nil, c.a, c.n, Write)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrNotRAM) {
			t.Errorf("%s: error %v, want ok %v", c.name, err, c.ok)
		}
		if err != nil {
			if got != nil {
				t.Errorf("%s: an error came with bytes", c.name)
			}
			continue
		}
		if len(got) != 1 || len(got[0]) != c.n || cap(got[0]) != c.n {
			t.Errorf("%s: pinned %d pieces", c.name, len(got))
		}
		s.Unpin(c.a, c.n, Write)
	}
}

func TestReadAndWrite(t *testing.T) {
	s := holed(t)
	if err := s.WriteAt([]byte("disco"), 4*mib+100); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if err := s.ReadAt(got, 4*mib+100); err != nil || string(got) != "disco" {
		t.Errorf("read %q, %v", got, err)
	}
	for _, c := range ranges {
		if c.n <= 0 || c.n > 8*mib {
			continue
		}
		p := make([]byte, c.n)
		if err := s.ReadAt(p, c.a); (err == nil) != c.ok {
			t.Errorf("read %s: %v", c.name, err)
		}
		if err := s.WriteAt(p, c.a); (err == nil) != c.ok {
			t.Errorf("write %s: %v", c.name, err)
		}
	}
}

func TestViewShowsWhatTheMonitorWrites(t *testing.T) {
	s := holed(t)
	v, err := s.NewView()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteAt([]byte("seen"), 4*mib); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(v.Bytes()[4*mib:4*mib+4], []byte("seen")) {
		t.Error("a View has other bytes")
	}
}

func TestNewRefusesBadRanges(t *testing.T) {
	for name, ram := range map[string][]Range{
		"none":         nil,
		"empty":        {{0, 0}},
		"unaligned":    {{1, mib}},
		"odd size":     {{0, 100}},
		"overlapping":  {{0, mib}, {mib - 4096, mib}},
		"out of order": {{mib, mib}, {0, mib}},
		"wrapping":     {{^GPA(0) - 4095, 8192}},
	} {
		if s, err := New("test", ram); err == nil {
			s.Close()
			t.Errorf("%s: taken", name)
		}
	}
}

func TestUnpinWithoutPinIsOurBug(t *testing.T) {
	s := holed(t)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
		s.pins.Store(0)
	}()
	s.Unpin(0, 1, Read)
}

func TestPinDoesNotAllocate(t *testing.T) {
	s := holed(t)
	dst := make([][]byte, 0, 1)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := s.Pin(dst, 4*mib, 4096, Read); err != nil {
			t.Fatal(err)
		}
		s.Unpin(4*mib, 4096, Read)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
