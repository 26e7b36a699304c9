package memory

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"disco/memory/arena"
	"disco/memory/uffd"
	"disco/numa"
)

// View is the window through which one KVM VM sees the guest's RAM: GPA a is
// at host-virtual address Base()+a. The monitor itself never touches it.
type View struct {
	window []byte

	// The rest is for a tracked Space only.
	space *Space
	index int
	node  numa.Node
	uf    *uffd.FD
	// What is put into the window comes from mappings of the same files, all of
	// which only this View's userfaultfd and nobody else knows: a part of one is
	// filled and protected there, and lent to the window in one step.
	home   []byte // of Home
	spare  []byte // of copies
	copies *arena.Arena
	slow   chan PPN // faults for the second goroutine
	quit   chan struct{}
	copied atomic.Int64 // pages away from Home now
	mu     sync.Mutex
	// watched is a bit per page.
	watched []atomic.Uint64
	// away is a bit per page that is mapped from copies; under Space.edges.
	away []uint64
}

// NewView maps a further window on the RAM of a Space that is not tracked. It
// lives until the Space is closed, and is that of the node of its number in
// Options.Nodes, if there is one. NewView is for one goroutine, while the guest
// is built.
func (s *Space) NewView() (*View, error) {
	if s.words != nil {
		return nil, errors.New("memory: a tracked Space has the Views of its nodes")
	}
	b, err := s.home.Map()
	if err != nil {
		return nil, err
	}
	v := &View{window: b, space: s, index: len(s.view), node: -1}
	if v.index < len(s.opt.Nodes) {
		v.node = s.opt.Nodes[v.index]
	}
	s.view = append(s.view, v)
	return v, nil
}

// View is the i-th View: for a tracked Space that of Options.Nodes[i].
func (s *Space) View(i int) *View { return s.view[i] }

// Bytes is the window, for KVM_SET_USER_MEMORY_REGION only: reading or writing
// it from Go can hang the process (see package arena).
func (v *View) Bytes() []byte { return v.window }

// track makes the tables and Views of a tracked Space and begins to answer
// faults.
//
// In a sharing Space what the window shows of Home is not registered: all that
// is comes from pools.
func (s *Space) track() error {
	n := s.home.Size() / arena.PageSize
	nodes := s.opt.Nodes
	if s.opt.Sharing {
		nodes = []numa.Node{-1}
		if len(s.opt.Nodes) > 0 {
			nodes[0] = s.opt.Nodes[0]
		}
	}
	s.words = make([]atomic.Uint64, n)
	s.blocks = make([]block, (n+blockPages-1)/blockPages)
	if err := s.budget(len(nodes)); err != nil {
		return err
	}
	// A thread that waits in KVM, or for a mapping to move, keeps a processor of
	// Go's until that notices, some 20 µs to 10 ms later. Somebody must have one
	// meanwhile to answer faults with.
	if n := runtime.NumCPU() + 3*len(nodes); runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
	for i, node := range nodes {
		v := &View{space: s, index: i, node: node, slow: make(chan PPN, 1024), quit: make(chan struct{})}
		if !s.opt.Sharing {
			v.watched = make([]atomic.Uint64, (n+63)/64)
			v.away = make([]uint64, (n+63)/64)
		}
		s.view = append(s.view, v)
		if err := v.open(); err != nil {
			return fmt.Errorf("memory: the View of node %d: %w", node, err)
		}
		s.readers.Add(1)
		s.workers.Add(1)
		go v.read()
		go v.work()
	}
	return nil
}

func (v *View) open() (err error) {
	s := v.space
	if v.uf, err = uffd.Open(); err != nil {
		return err
	}
	if s.opt.Sharing {
		if v.window, err = s.home.Map(); err == nil {
			v.home, err = s.home.Map()
		}
		return err
	}
	// Replicas are mapped by small pages: there may be one of a block or all.
	if v.copies, err = arena.New(s.opt.Name+"-copies", s.home.Size(), arena.HugeOff); err != nil {
		return err
	}
	if backing, ok := s.opt.Topology.Backing(v.node); ok {
		if err := v.copies.Place(arena.Preferred, int(backing)); err != nil {
			return err
		}
	}
	for _, m := range []struct {
		b *[]byte
		a *arena.Arena
	}{{&v.window, s.home}, {&v.home, s.home}, {&v.spare, v.copies}} {
		if *m.b, err = m.a.Map(); err != nil {
			return err
		}
		if err := v.uf.Register(*m.b); err != nil {
			return err
		}
	}
	return nil
}

func (v *View) stop() error {
	if v.uf == nil {
		return nil
	}
	return v.uf.Stop()
}

func (v *View) close() error {
	var errs []error
	for _, b := range [][]byte{v.window, v.home, v.spare} {
		if b != nil {
			errs = append(errs, arena.Unmap(b))
		}
	}
	if v.copies != nil {
		errs = append(errs, v.copies.Close())
	}
	if v.uf != nil {
		errs = append(errs, v.uf.Close())
	}
	return errors.Join(errs...)
}

// at is the part of a mapping that has n pages from p.
func at(b []byte, p PPN, n int) []byte {
	return b[uint64(p)*arena.PageSize : (uint64(p)+uint64(n))*arena.PageSize]
}

// page is the PPN of an address of the window.
func (v *View) page(addr uintptr) (PPN, bool) {
	off := addr - uintptr(unsafe.Pointer(unsafe.SliceData(v.window)))
	return PPN(off / arena.PageSize), off < uintptr(len(v.window))
}

// wake lets threads that wait for the pages try again.
func (v *View) wake(p PPN, n int) {
	n = min(n, int(uint64(len(v.window))/arena.PageSize-uint64(p)))
	if err := v.uf.Wake(at(v.window, p, n)); err != nil {
		// The kernel knows no reason to refuse this.
		panic(fmt.Sprintf("memory: wake page %#x: %v", uint64(p), err))
	}
}

// install maps part, of one of the View's own mappings, in the window from p on:
// present, write-protected, all at once. Every page of it must be in the file.
func (v *View) install(part []byte, p PPN) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for done := 0; done < len(part); {
		m, err := v.uf.Continue(part[done:])
		if err == nil && m == 0 {
			err = fmt.Errorf("memory: the page for %#x is not there", uint64(p)+uint64(done)/arena.PageSize)
		}
		if err != nil {
			return errors.Join(err, arena.Drop(part))
		}
		done += m
	}
	err := v.uf.Protect(part)
	if err == nil {
		err = arena.Lend(at(v.window, p, len(part)/arena.PageSize), part)
	}
	if err != nil {
		return errors.Join(err, arena.Drop(part))
	}
	return nil
}

// restore maps Home in the window again, with no page present.
func (v *View) restore(p PPN, n int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return arena.Duplicate(at(v.window, p, n), at(v.home, p, n))
}

func (v *View) protect(p PPN, n int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.uf.Protect(at(v.window, p, n))
}

func (v *View) unprotect(p PPN, n int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.uf.Unprotect(at(v.window, p, n))
}
