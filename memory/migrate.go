package memory

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/memory/arena"
	"disco/numa"
)

// Placement says where the kernel makes pages that are touched for the first
// time. It holds for guest, devices and monitor alike.
type Placement int

const (
	// FirstTouch is the node of the CPU that touches a page first.
	FirstTouch Placement = iota
	// Bound is one node, the first of Options.Nodes, and others when it is full: a
	// guest is never killed for want of memory on one node.
	Bound
	// Interleaved takes the nodes in turn.
	Interleaved
)

// backing is the kernel's node behind n; false if it has none.
func (s *Space) backing(n numa.Node) (int, bool) {
	b, ok := s.opt.Topology.Backing(n)
	return int(b), ok
}

// place tells the kernel where to make pages.
func (s *Space) place() error {
	if s.opt.Topology == nil || len(s.opt.Nodes) == 0 {
		return nil
	}
	s.node.Store(int64(s.opt.Nodes[0]))
	if !s.opt.Topology.Real() {
		s.where = make([]int8, s.home.Size()/arena.PageSize)
	}
	var nodes []int
	for _, n := range s.opt.Nodes {
		b, ok := s.backing(n)
		if !ok {
			return nil // no NUMA, nothing to choose
		}
		nodes = append(nodes, b)
	}
	switch {
	case s.opt.HostBalancing:
		return s.home.Place(arena.Balanced, nodes...)
	case s.opt.Place == Bound:
		return s.home.Place(arena.Preferred, nodes[0])
	case s.opt.Place == Interleaved:
		return s.home.Place(arena.Interleave, nodes...)
	}
	return nil
}

// SetNode makes the pages of a Bound guest on another node from now on. Those
// that are there stay until they are migrated. Otherwise placed guests are not
// concerned.
func (s *Space) SetNode(to numa.Node) error {
	if s.opt.Topology == nil || !s.opt.Topology.Has(to) {
		return fmt.Errorf("memory: no node %d", to)
	}
	if s.opt.Place != Bound {
		return nil
	}
	// Where pages of fake nodes are must be known before it would be supposed
	// otherwise.
	if s.where != nil {
		if _, err := s.PagesOn(); err != nil {
			return err
		}
	}
	if b, ok := s.backing(to); ok {
		if err := s.home.Place(arena.Preferred, b); err != nil {
			return err
		}
	}
	s.node.Store(int64(to))
	return nil
}

// Migrate moves the canonical copies of n pages from p to a node, in any state,
// pinned or not, in a thin Space too. Huge pages move whole. done counts the
// pages that were elsewhere and are there now. It returns ErrNodeFull when the
// node has no more memory, and ErrBusy if the kernel could move none just now;
// done may be more than 0 with the first. It does not allocate.
func (s *Space) Migrate(p PPN, n int, to numa.Node) (done int, err error) {
	if s.opt.Topology == nil || !s.opt.Topology.Has(to) {
		return 0, fmt.Errorf("memory: no node %d", to)
	}
	if err := s.run(p, n); err != nil {
		return 0, err
	}
	stuck := 0
	for n > 0 && err == nil {
		m := min(chunk(p, n), arena.Batch)
		s.kernel.Lock()
		var d, left int
		d, left, err = s.migrate(p, m, to)
		s.kernel.Unlock()
		if s.words != nil {
			s.block(p).moved.Add(uint64(d))
		}
		done, stuck = done+d, stuck+left
		p, n = p+PPN(m), n-m
	}
	s.counters.migrated.Add(uint64(done))
	s.counters.copied.Add(uint64(done) * arena.PageSize)
	switch {
	case err != nil:
		s.counters.failed.Add(1)
	case stuck > 0:
		s.counters.failed.Add(1)
		if done == 0 {
			err = ErrBusy
		}
	}
	return done, err
}

// migrate does it for a batch; s.kernel is held.
func (s *Space) migrate(p PPN, n int, to numa.Node) (done, stuck int, err error) {
	status := s.places[:n]
	b, ok := s.backing(to)
	if !ok {
		b = 0
	}
	moved := 0
	// A page that something holds for a moment, and one of a huge page that had to
	// be split for it, often moves when asked again.
	for try := 0; try < 3 && err == nil; try++ {
		var d int
		d, err = s.home.Move(status, uint64(p), b)
		if err != nil {
			return done, 0, err
		}
		moved, stuck = moved+d, 0
		for _, st := range status {
			switch {
			case st == -int(unix.ENOMEM):
				err = fmt.Errorf("memory: move to node %d: %w", to, ErrNodeFull)
			case st < -1:
				stuck++
			}
		}
		if stuck == 0 {
			break
		}
	}
	if s.where == nil {
		return moved, stuck, err
	}
	// The kernel's answer is that they are all there, of course.
	if err := s.fakePlaces(p, n); err != nil {
		return 0, 0, err
	}
	for i, at := range s.places[:n] {
		if at >= 0 && at != int(to) {
			done++
			s.where[p+PPN(i)] = int8(to) + 1
		}
	}
	return done, 0, nil
}

// Locate fills dst with the node of the canonical copy of each page from p on,
// -1 where there is no page yet. The kernel tells it. Of fake nodes it is
// bookkeeping: where the page was migrated to, or would have been placed, or the
// first node that was found to have it mapped. It does not allocate.
func (s *Space) Locate(dst []numa.Node, p PPN) error {
	if err := s.run(p, len(dst)); err != nil {
		return err
	}
	for len(dst) > 0 {
		n := min(len(dst), arena.Batch)
		if err := s.locate(dst[:n], p); err != nil {
			return err
		}
		dst, p = dst[n:], p+PPN(n)
	}
	return nil
}

func (s *Space) locate(dst []numa.Node, p PPN) error {
	s.kernel.Lock()
	defer s.kernel.Unlock()
	var err error
	if s.where != nil {
		err = s.fakePlaces(p, len(dst))
	} else {
		err = s.home.Locate(s.places[:len(dst)], uint64(p))
	}
	for i := range dst {
		dst[i] = numa.Node(s.places[i])
	}
	return err
}

// fakePlaces fills s.places with where pages are supposed to be.
func (s *Space) fakePlaces(p PPN, n int) error {
	if err := s.home.Present(s.there[:n], uint64(p)); err != nil {
		return err
	}
	for i := range PPN(n) {
		s.places[i] = -1
		if !s.there[i] {
			continue
		}
		if s.where[p+i] == 0 {
			k, err := s.firstPlace(p + i)
			if err != nil {
				return err
			}
			s.where[p+i] = int8(k) + 1
		}
		s.places[i] = int(s.where[p+i]) - 1
	}
	return nil
}

// firstPlace is where a page would have been made if the nodes were real.
func (s *Space) firstPlace(p PPN) (numa.Node, error) {
	switch {
	case s.opt.Place == Bound:
		return numa.Node(s.node.Load()), nil
	case s.opt.Place == Interleaved:
		return s.opt.Nodes[uint64(p)%uint64(len(s.opt.Nodes))], nil
	case len(s.view) < 2:
		return s.opt.Nodes[0], nil
	}
	for _, v := range s.view {
		if v.node < 0 {
			continue
		}
		mapped, err := s.mapped(v, p)
		if err != nil || mapped {
			return v.node, err
		}
	}
	return s.opt.Nodes[0], nil // the monitor's
}

// mapped says whether a View has a page mapped (Linux
// Documentation/admin-guide/mm/pagemap.rst).
func (s *Space) mapped(v *View, p PPN) (bool, error) {
	if s.pagemap == nil {
		f, err := os.Open("/proc/self/pagemap")
		if err != nil {
			return false, err
		}
		s.pagemap = f
	}
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(v.window))) + uintptr(p)*arena.PageSize
	if _, err := s.pagemap.ReadAt(s.entry[:], int64(addr/arena.PageSize*8)); err != nil {
		return false, fmt.Errorf("memory: pagemap: %w", err)
	}
	return binary.NativeEndian.Uint64(s.entry[:])>>63 != 0, nil
}
