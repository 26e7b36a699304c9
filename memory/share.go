package memory

import (
	"errors"

	"disco/memory/arena"
)

// Run is pages of an arena, one after another.
type Run struct {
	Arena *arena.Arena
	Page  uint64
	N     int
}

// frame is a page that is shared with a guest.
type frame struct {
	arena *arena.Arena
	page  uint64
}

// Share makes the pages of r, which their arena must have, guest memory from p
// on: every View and the monitor map them, for reading only, and Home's own
// pages are freed. What was there is lost, as if a device had written r's bytes.
// The first to write a page gets a Private one with the same bytes. Until then
// the arena counts a user for it.
//
// It returns ErrPinned if a device writes one of the pages, or ErrBudget. The
// caller then writes the bytes, to all of r's pages again.
func (s *Space) Share(p PPN, r Run) error {
	if err := s.tracked(p, r.N); err != nil {
		return err
	}
	if r.Page+uint64(r.N) > r.Arena.Size()/arena.PageSize {
		return errors.New("memory: share: pages beyond the end of their arena")
	}
	for r.N > 0 {
		m := chunk(p, r.N)
		s.block(p).mu.Lock()
		err := s.share(p, Run{r.Arena, r.Page, m})
		s.unlock(p)
		if err != nil {
			return err
		}
		s.counters.shared.Add(uint64(m))
		p, r.Page, r.N = p+PPN(m), r.Page+uint64(m), r.N-m
	}
	return nil
}

// share does it for pages of one block, which is locked.
func (s *Space) share(p PPN, r Run) (err error) {
	if _, err := s.collapse(p, r.N); err != nil {
		return err
	}
	claimed := 0
	defer func() {
		if err != nil {
			s.settle(p, claimed, word(Private))
		}
	}()
	for ; claimed < r.N; claimed++ {
		if _, ok := s.claim(p + PPN(claimed)); !ok {
			return ErrPinned
		}
	}
	// The monitor's mapping takes as many as a View's, and no two need be
	// neighbours in their file.
	reserve := int64(2 * (len(s.view) + 1))
	if !arena.VMAs.Reserve(reserve) {
		return ErrBudget
	}
	defer arena.VMAs.Add(-reserve)
	for i, v := range s.view {
		if err := v.graft(p, r); err != nil {
			return errors.Join(err, s.ungraft(p, r.N, s.view[:i+1]))
		}
	}
	if err := s.home.Graft(uint64(p), r.Arena, r.Page, r.N); err != nil {
		return errors.Join(err, s.home.Prune(uint64(p), r.N), s.ungraft(p, r.N, s.view))
	}
	if err := s.home.Punch(uint64(p), r.N); err != nil {
		return errors.Join(err, s.home.Prune(uint64(p), r.N), s.ungraft(p, r.N, s.view))
	}
	s.edges.Lock()
	if s.frames == nil {
		s.frames = make(map[PPN]frame)
	}
	s.edges.Unlock()
	r.Arena.Hold(r.Page, r.N)
	s.remapped(p, r.N, 0, func(q PPN) { s.frames[q] = frame{r.Arena, r.Page + uint64(q-p)} })
	s.settle(p, r.N, word(Shared))
	return nil
}

// graft maps the pages of r in the window, present and write-protected.
func (v *View) graft(p PPN, r Run) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	b, err := r.Arena.Stage(r.Page, r.N)
	if err != nil {
		return err
	}
	err = v.uf.Register(b)
	for done := 0; done < len(b) && err == nil; {
		var n int
		if n, err = v.uf.Continue(b[done:]); n == 0 && err == nil {
			err = errors.New("memory: share: pages that their arena does not have")
		}
		done += n
	}
	if err == nil {
		err = v.uf.Protect(b)
	}
	if err == nil {
		err = arena.Give(at(v.window, p, r.N), b)
	}
	if err != nil {
		return errors.Join(err, arena.Unmap(b))
	}
	return nil
}

// ungraft maps Home in Views again.
func (s *Space) ungraft(p PPN, n int, views []*View) error {
	var errs []error
	for _, v := range views {
		errs = append(errs, v.restore(p, n))
	}
	return errors.Join(errs...)
}

// unshare makes Shared pages of one block Private; it is locked.
func (s *Space) unshare(p PPN, n int) error {
	if err := s.home.Fill(uint64(p), at(s.home.Bytes(), p, n)); err != nil {
		return err
	}
	if err := s.home.Prune(uint64(p), n); err != nil {
		return err
	}
	if err := s.ungraft(p, n, s.view); err != nil {
		return err
	}
	s.remapped(p, n, 0, func(q PPN) {
		f := s.frames[q]
		f.arena.Release(f.page)
		delete(s.frames, q)
	})
	s.counters.copied.Add(uint64(n) * arena.PageSize)
	return nil
}

// unhold forgets what is shared, when the Space is closed.
func (s *Space) unhold() {
	for _, f := range s.frames {
		f.arena.Release(f.page)
	}
	s.frames = nil
}
