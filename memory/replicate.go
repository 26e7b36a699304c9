package memory

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"disco/memory/arena"
	"disco/numa"
)

// Replicate gives the View of node on its own copies of n pages from p, until
// something writes to them. Pages that are not there yet and those that have a
// copy there already are left out, and so are those that devices write: done
// counts the others. It returns ErrPinned if these were all, ErrBudget, or
// ErrNodeFull; done may be more than 0 then.
func (s *Space) Replicate(p PPN, n int, on numa.Node) (done int, err error) {
	v, err := s.viewOn(on)
	if err == nil {
		err = s.run(p, n)
	}
	pinned := 0
	if err == nil {
		err = s.eachBlock(p, n, func(p PPN, n int) error {
			d, held, err := v.replicate(p, n)
			done, pinned = done+d, pinned+held
			return err
		})
	}
	s.counters.replicated.Add(uint64(done))
	if err != nil {
		s.counters.failed.Add(1)
	} else if done == 0 && pinned > 0 {
		err = ErrPinned
	}
	return done, err
}

// replicate does it for pages of one block, which is locked.
func (v *View) replicate(p PPN, n int) (done, pinned int, err error) {
	s := v.space
	var there [blockPages]bool
	if err := s.home.Present(there[:n], uint64(p)); err != nil {
		return 0, 0, err
	}
	for i := 0; i < n && err == nil; {
		first, kind := i, s.word(p+PPN(i))&(stateMask|copyMask)
		for i < n && there[i] && s.word(p+PPN(i))&(stateMask|copyMask) == kind && !kind.has(v) && kind.state() != Shared {
			if kind.state() != Replicated {
				if _, ok := s.claim(p + PPN(i)); !ok {
					pinned++
					break
				}
			}
			i++
		}
		if i == first {
			i++
			continue
		}
		if err = v.copyRun(p+PPN(first), i-first, kind); err == nil {
			done += i - first
		}
	}
	return done, pinned, err
}

// copyRun does it for pages that are alike: claimed, or Replicated elsewhere.
func (v *View) copyRun(p PPN, n int, kind word) error {
	s := v.space
	// On failure they are what they were, or Private with protections left over.
	undo := kind
	defer func() { s.settle(p, n, undo) }()
	if !arena.VMAs.Reserve(2) {
		return ErrBudget
	}
	if kind.state() == Private {
		if err := s.protect(p, n, v); err != nil {
			arena.VMAs.Add(-2)
			return err
		}
	}
	copy(at(v.copies.Bytes(), p, n), at(s.home.Bytes(), p, n))
	err := v.local(p, n)
	if err == nil {
		err = v.install(at(v.spare, p, n), p)
	}
	if err != nil {
		arena.VMAs.Add(-2)
		return errors.Join(err, v.copies.Punch(uint64(p), n))
	}
	s.remapped(p, n, 2, func(q PPN) { v.away[q/64] |= 1 << (q % 64) })
	undo = kind&^stateMask | word(Replicated) | 1<<copyShift<<v.index
	b := s.block(p)
	b.copies.Add(int32(n))
	b.copied.Add(uint64(n))
	v.copied.Add(int64(n))
	b.stamp.Store(s.stamp.Add(1))
	s.counters.copied.Add(uint64(n) * arena.PageSize)
	return nil
}

// local returns ErrNodeFull if the kernel had to make a copy on another node.
func (v *View) local(p PPN, n int) error {
	if !v.space.opt.Topology.Real() {
		return nil
	}
	var on [blockPages]int
	v.mu.Lock() // copies' batch
	err := v.copies.Locate(on[:n], uint64(p))
	v.mu.Unlock()
	for _, k := range on[:n] {
		if err == nil && k != int(v.node) {
			err = fmt.Errorf("memory: copy to node %d: %w", v.node, ErrNodeFull)
		}
	}
	return err
}

// Collapse makes the Replicated and Shared among n pages from p Private; done
// counts them.
func (s *Space) Collapse(p PPN, n int) (done int, err error) {
	if s.words == nil {
		return 0, ErrNotTracked
	}
	if err := s.run(p, n); err != nil {
		return 0, err
	}
	err = s.eachBlock(p, n, func(p PPN, n int) error {
		d, err := s.collapse(p, n)
		done += d
		return err
	})
	return done, err
}

// collapse does it for pages of one block, which is locked. Pages out of the
// middle of a run cost mappings, and there is no refusing a store: over the
// budget the whole block is collapsed.
func (s *Space) collapse(p PPN, n int) (done int, err error) {
	if arena.VMAs.Over() {
		p -= p % blockPages
		n = min(blockPages, len(s.words)-int(p))
	}
	for q, end := p, p+PPN(n); q < end && err == nil; {
		first, kind := q, s.word(q)&(stateMask|copyMask)
		for q < end && s.word(q)&(stateMask|copyMask) == kind {
			q++
		}
		switch kind.state() {
		case Replicated:
			err = s.dissolve(first, int(q-first), kind)
		case Shared:
			err = s.unshare(first, int(q-first))
		default:
			continue
		}
		if err == nil {
			err = s.release(first, int(q-first))
			done += int(q - first)
		}
	}
	s.counters.collapsed.Add(uint64(done))
	return done, err
}

// dissolve makes pages Private that are Replicated on the same nodes. No store
// gets through anywhere before every View has the canonical copy: what faults
// meanwhile waits for the block.
func (s *Space) dissolve(p PPN, n int, w word) error {
	for _, v := range s.view {
		if !w.has(v) {
			continue
		}
		if err := v.restore(p, n); err != nil {
			return err
		}
		s.remapped(p, n, 0, func(q PPN) { v.away[q/64] &^= 1 << (q % 64) })
		w &^= 1 << copyShift << v.index
		s.settle(p, n, w)
		s.block(p).copies.Add(-int32(n))
		v.copied.Add(-int64(n))
		if err := v.copies.Punch(uint64(p), n); err != nil {
			return err
		}
	}
	return nil
}

// release lets stores through to pages that every View has the canonical copy
// of.
func (s *Space) release(p PPN, n int) error {
	s.settle(p, n, word(Private))
	if s.opt.Sharing {
		return nil
	}
	for _, v := range s.view {
		// The next access or store would do it, at the price of a fault. Of the two
		// one does nothing.
		v.mu.Lock()
		_, err := v.uf.Continue(at(v.window, p, n))
		if e := v.uf.Unprotect(at(v.window, p, n)); err == nil {
			err = e
		}
		v.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// relieve takes all replicas back when so many have been broken up that the
// process is short of mappings. No lock is held.
func (s *Space) relieve() {
	if arena.VMAs.Crowded() {
		s.log.Warn("all replicas are given up for want of memory mappings: raise sysctl vm.max_map_count")
		s.Reclaim(math.MaxInt)
	}
}

// Reclaim gives back the memory of replicas, of the blocks first where none was
// made for the longest time, until it has pages of them or there are no more.
// It returns how many it has given back.
func (s *Space) Reclaim(pages int) int {
	type candidate struct {
		block int
		stamp uint64
	}
	var list []candidate
	for i := range s.blocks {
		if s.blocks[i].copies.Load() > 0 {
			list = append(list, candidate{i, s.blocks[i].stamp.Load()})
		}
	}
	slices.SortFunc(list, func(a, b candidate) int { return cmp.Compare(a.stamp, b.stamp) })
	freed := 0
	for _, c := range list {
		if freed >= pages {
			break
		}
		p := PPN(c.block) * blockPages
		b := &s.blocks[c.block]
		b.mu.Lock()
		before := int(b.copies.Load())
		_, err := s.collapse(p, chunk(p, len(s.words)-int(p)))
		freed += before - int(b.copies.Load())
		s.unlock(p)
		if err != nil {
			s.log.Error("replicas can not be given back", "page", uint64(p), "err", err)
			break
		}
	}
	return freed
}
