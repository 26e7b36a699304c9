package memory

import (
	"fmt"

	"disco/memory/arena"
	"disco/numa"
)

// viewOn is the View of a node.
func (s *Space) viewOn(n numa.Node) (*View, error) {
	if s.words == nil || s.opt.Sharing {
		return nil, ErrNotTracked
	}
	for _, v := range s.view {
		if v.node == n {
			return v, nil
		}
	}
	return nil, fmt.Errorf("memory: the guest has no View on node %d", n)
}

// tracked checks a run of pages of a tracked Space.
func (s *Space) tracked(p PPN, n int) error {
	if s.words == nil || s.opt.Sharing {
		return ErrNotTracked
	}
	return s.run(p, n)
}

// Watch makes the next access from node on to each of n pages from p a [Touch].
// The pages stay where they are. Those that are not Private are left out, as
// they could not be mapped again as they were. It does not allocate.
func (s *Space) Watch(p PPN, n int, on numa.Node) error {
	v, err := s.viewOn(on)
	if err == nil {
		err = s.run(p, n)
	}
	if err != nil {
		return err
	}
	return s.eachBlock(p, n, v.watch)
}

func (v *View) watch(p PPN, n int) error {
	s := v.space
	for q, end := p, p+PPN(n); q < end; {
		first := q
		for q < end && s.word(q).state() == Private {
			v.watched[q/64].Or(1 << (q % 64))
			q++
		}
		if q == first {
			q++
			continue
		}
		if err := arena.Drop(at(v.window, first, int(q-first))); err != nil {
			return err
		}
	}
	return nil
}

// Unwatch ends Watch for the pages that have not been touched: they are mapped
// again at the next access, with those around them, and not reported.
func (s *Space) Unwatch(p PPN, n int, on numa.Node) error {
	v, err := s.viewOn(on)
	if err == nil {
		err = s.run(p, n)
	}
	if err != nil {
		return err
	}
	for q := p; q < p+PPN(n); q++ {
		v.watched[q/64].And(^(uint64(1) << (q % 64)))
	}
	return nil
}

// Guard makes the next store from any node to each of n pages from p a [Touch].
// Pages that are not there yet, that devices write, or that are mapped away from
// Home are left out.
func (s *Space) Guard(p PPN, n int) error {
	err := s.tracked(p, n)
	if err != nil {
		return err
	}
	return s.eachBlock(p, n, s.guard)
}

func (s *Space) guard(p PPN, n int) error {
	var there [blockPages]bool
	if err := s.home.Present(there[:n], uint64(p)); err != nil {
		return err
	}
	for i := 0; i < n; {
		first := i
		for i < n && there[i] && s.word(p+PPN(i)).state() == Private {
			if _, ok := s.claim(p + PPN(i)); !ok {
				break
			}
			i++
		}
		if i == first {
			i++
			continue
		}
		err := s.protect(p+PPN(first), i-first, nil)
		state := word(Guarded)
		if err != nil {
			state = word(Private)
		}
		s.settle(p+PPN(first), i-first, state)
		if err != nil {
			return err
		}
	}
	return nil
}

// protect maps the canonical copy of claimed pages in every View, present and
// write-protected: a present page never faults when it is read. In the View
// except, what is there is only protected, as something else will be put there.
func (s *Space) protect(p PPN, n int, except *View) error {
	for _, v := range s.view {
		var err error
		if v == except {
			err = v.protect(p, n)
		} else {
			err = v.install(at(v.home, p, n), p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Unguard makes the Guarded among n pages from p Private.
func (s *Space) Unguard(p PPN, n int) error {
	err := s.tracked(p, n)
	if err != nil {
		return err
	}
	return s.eachBlock(p, n, s.unguardRun)
}

func (s *Space) unguardRun(p PPN, n int) error {
	for q, end := p, p+PPN(n); q < end; {
		first := q
		for q < end && s.word(q).state() == Guarded {
			s.unguard(q)
			q++
		}
		if q == first {
			q++
			continue
		}
		for _, v := range s.view {
			if err := v.unprotect(first, int(q-first)); err != nil {
				return err
			}
		}
	}
	return nil
}
