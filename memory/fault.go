package memory

import (
	"errors"
	"fmt"
	"slices"

	"disco/memory/arena"
	"disco/memory/uffd"
	"disco/numa"
)

// Touch is an access of a guest to a page that was watched or that its View had
// not mapped yet, or a store to one that was guarded or replicated.
type Touch struct {
	PPN  PPN
	Node numa.Node // of the View, so of the CPU
	// Watched is false for a page that was only not mapped yet, which stands for
	// all after it in its block; they were mapped with it.
	Watched bool
	// Write is whether the page was to be written, if Known.
	Write bool
	// Known is false where KVM's helper thread had the fault for a vCPU: it asks
	// to write in any case.
	Known bool
}

// OnTouch sets the function that gets every Touch. It is called on the
// goroutines that answer faults, with a block's lock held: it must not call the
// Space, block or allocate. It is set before the guest runs.
func (s *Space) OnTouch(f func(Touch)) { s.onTouch.Store(&f) }

type thread struct {
	id   int32
	node numa.Node
}

// Threads names the threads that run vCPUs on a node, in place of those named
// before. What other threads do to pages is not known to be a read or a write.
func (s *Space) Threads(node numa.Node, tids ...int) {
	for {
		old := s.threads.Load()
		var list []thread
		if old != nil {
			list = slices.DeleteFunc(slices.Clone(*old), func(t thread) bool { return t.node == node })
		}
		for _, id := range tids {
			list = append(list, thread{int32(id), node})
		}
		if s.threads.CompareAndSwap(old, &list) {
			return
		}
	}
}

func (s *Space) isVCPU(id int32) bool {
	list := s.threads.Load()
	if list == nil {
		return false
	}
	for i := range *list {
		if (*list)[i].id == id {
			return true
		}
	}
	return false
}

// read answers faults until the userfaultfd is closed. It waits for nothing but
// the next, because others wait until it has read.
func (v *View) read() {
	defer v.space.readers.Done()
	var events [uffd.MaxEvents]uffd.Event
	for {
		n, err := v.uf.Read(events[:])
		if err != nil {
			if !errors.Is(err, uffd.ErrStopped) {
				panic(fmt.Sprintf("memory: read a userfaultfd: %v", err))
			}
			return
		}
		for i := range n {
			v.answer(&events[i])
		}
	}
}

func (v *View) answer(e *uffd.Event) {
	s := v.space
	p, ok := v.page(e.Addr)
	if !ok {
		panic(fmt.Sprintf("memory: a fault at %#x, where nobody goes", e.Addr))
	}
	if !s.tryLock(p, v) {
		return
	}
	defer s.unlock(p)
	var err error
	if e.Protect {
		err = v.answerStore(p)
	} else {
		err = v.answerMinor(p, e)
	}
	if err != nil {
		if !errors.Is(err, uffd.ErrChanging) {
			s.counters.failed.Add(1)
			s.log.Error("a guest's page fault can not be answered", "page", uint64(p), "err", err)
		}
		v.wake(p, 1) // it comes again, after what is to be read first
	}
}

// answerStore lets a store to a write-protected page through.
func (v *View) answerStore(p PPN) error {
	s := v.space
	switch w := s.word(p); w.state() {
	case Private:
		s.counters.leftoverFaults.Add(1)
		if s.opt.Sharing {
			v.wake(p, 1) // Home is mapped there by now
			return nil
		}
		return v.uf.Unprotect(at(v.window, p, 1))
	case Guarded:
		s.counters.guardFaults.Add(1)
		v.touch(Touch{p, v.node, false, true, true})
		s.unguard(p)
		return v.uf.Unprotect(at(v.window, p, 1))
	default:
		s.counters.collapseFaults.Add(1)
		v.touch(Touch{p, v.node, false, true, true})
		v.hand(p)
		return nil
	}
}

// answerMinor maps a page that this View had not mapped.
func (v *View) answerMinor(p PPN, e *uffd.Event) error {
	s := v.space
	bit := uint64(1) << (p % 64)
	watched := v.watched[p/64].Load()&bit != 0
	if watched {
		v.watched[p/64].And(^bit)
		s.counters.sampleFaults.Add(1)
	} else {
		s.counters.aroundFaults.Add(1)
	}
	v.touch(Touch{p, v.node, watched, e.Write, s.isVCPU(e.Thread)})
	switch s.word(p).state() {
	case Private:
		if !watched {
			return v.mapAround(p)
		}
	case Guarded:
		// The kernel unmapped it, as when it splits a huge page: the protection here
		// is lost with that.
		s.unguard(p)
	default:
		// As above. What is mapped must be protected in the same step, and even then
		// KVM's helper thread would ask to write: it is not worth more than this.
		v.hand(p)
		return nil
	}
	m, err := v.uf.Continue(at(v.window, p, 1))
	if err == nil && m == 0 {
		v.wake(p, 1) // somebody else mapped it
	}
	return err
}

// mapAround maps a page and those after it in its block, but for watched ones and
// those that are not Private, up to one that is mapped or not there.
func (v *View) mapAround(p PPN) error {
	end := min(p-p%blockPages+blockPages, PPN(len(v.space.words)))
	for q := p; q < end; {
		if q > p && !v.plain(q) {
			q++
			continue
		}
		n := 1
		for q+PPN(n) < end && v.plain(q+PPN(n)) {
			n++
		}
		m, err := v.uf.Continue(at(v.window, q, n))
		if q == p && (err != nil || m == 0) {
			v.wake(p, 1) // somebody else mapped it, or a mapping is being moved
			return err
		}
		if err != nil || m < n*arena.PageSize {
			return nil // the rest has its own faults
		}
		q += PPN(n)
	}
	return nil
}

// plain says whether a page is Private, not busy and not watched.
func (v *View) plain(p PPN) bool {
	return v.space.word(p)&(stateMask|busy) == 0 && v.watched[p/64].Load()>>(p%64)&1 == 0
}

func (v *View) touch(t Touch) {
	if f := v.space.onTouch.Load(); f != nil {
		(*f)(t)
	}
}

// unguard makes a Guarded page Private; its block is locked. Protections stay
// behind in the Views: stores lift them.
func (s *Space) unguard(p PPN) {
	for {
		w := s.word(p)
		if w.state() != Guarded || s.words[p].CompareAndSwap(uint64(w), uint64(w&^stateMask)) {
			return
		}
	}
}

// hand gives a fault to the second goroutine.
func (v *View) hand(p PPN) {
	select {
	case v.slow <- p:
	default:
		v.wake(p, 1) // it will fault again; there may be room then
	}
}

// work collapses the pages of faults.
func (v *View) work() {
	s := v.space
	defer s.workers.Done()
	for {
		var p PPN
		select {
		case p = <-v.slow:
		case <-v.quit:
			return
		}
		b := s.block(p)
		b.mu.Lock()
		if s.word(p).state() > Guarded {
			if _, err := s.collapse(p, 1); err != nil {
				s.log.Error("a guest's store waits for a page that can not be collapsed", "page", uint64(p), "err", err)
			}
		}
		b.waiting.Or(1 << v.index)
		s.unlock(p)
		s.relieve()
	}
}
