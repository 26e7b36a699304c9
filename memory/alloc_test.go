package memory

import (
	"sync/atomic"
	"testing"

	"disco/numa"
)

// TestHostHotPathsDoNotAllocate counts what all goroutines allocate meanwhile,
// those that answer faults, too.
func TestHostHotPathsDoNotAllocate(t *testing.T) {
	s := tracked(t, 2, Range{0, 4 * mib})
	var touched atomic.Int64
	s.OnTouch(func(Touch) { touched.Add(1) })
	if err := s.WriteAt(make([]byte, 4*mib), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replicate(512, 512, 1); err != nil {
		t.Fatal(err)
	}
	var (
		dst    = make([][]byte, 0, 1)
		on     [512]numa.Node
		states [512]State
		b      [8]byte
	)
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		act  func()
	}{
		{"Pin", func() {
			_, err := s.Pin(dst, 0, 8*page, Write)
			check(err)
			s.Unpin(0, 8*page, Write)
		}},
		{"Pin of replicas, for reading", func() {
			_, err := s.Pin(dst, 512*page, 8*page, Read)
			check(err)
			s.Unpin(512*page, 8*page, Read)
		}},
		{"WriteAt", func() { check(s.WriteAt(b[:], 5)) }},
		{"ReadAt", func() { check(s.ReadAt(b[:], 5)) }},
		{"Locate", func() { check(s.Locate(on[:], 0)) }},
		{"States", func() { check(s.States(states[:], 0)) }},
		{"Watch and a fault", func() {
			check(s.Watch(7, 1, 1))
			check(guestLoad(s.view[1], b[:], 7*page))
		}},
		{"Guard and a fault", func() {
			check(s.Guard(9, 2))
			check(guestStore(s.view[0], b[:], 9*page))
		}},
		{"a fault of a block", func() {
			check(s.Watch(100, 50, 0))
			check(s.Unwatch(100, 50, 0))
			check(guestLoad(s.view[0], b[:], 100*page))
		}},
		{"Migrate", func() {
			_, err := s.Migrate(20, 1, 1)
			check(err)
		}},
	} {
		c.act()
		if n := testing.AllocsPerRun(100, c.act); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
	if touched.Load() < 300 {
		t.Errorf("only %d faults were reported", touched.Load())
	}
}
