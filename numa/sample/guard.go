package sample

import (
	"time"

	"disco/memory"
)

// guardSome guards probes in the strata that were used: other pages than were
// watched, most likely, which KVM has mapped since long.
func (s *Sampler) guardSome(l *inquiry, now time.Duration) {
	b := &s.blocks[l.block]
	if o := &l.said; o.stored*2 > o.touched {
		l.bad = true
		s.whole(l, Written)
		return
	}
	var used [Probes]bool
	for k := range used {
		used[k] = l.probe[k] >= 0 && b.users(k) != 0
	}
	home := l.home // as it is said of those that were watched
	s.choose(l)
	l.home = home
	l.asked = 0
	for k, page := range l.probe {
		switch {
		case page < 0:
		case !used[k]:
			l.probe[k] = -1
		default:
			l.asked++
			s.guard(l.block, int(page), 1)
		}
	}
	s.stats.Guarded++
	b.phase = guard
	l.start = now
}

// guard guards a run of pages. What is not Private, or cannot be guarded, stays
// what it is: Private pages then pass for written.
func (s *Sampler) guard(i, page, n int) {
	_ = s.mem.Guard(first(i)+memory.PPN(page), n)
}

// unguard gives up what is still guarded of a block.
func (s *Sampler) unguard(i int) {
	b := &s.blocks[i]
	s.inspect(i)
	for page := 0; page < int(b.pages); {
		n := 0
		for page+n < int(b.pages) && s.states[page+n] == memory.Guarded {
			n++
		}
		if n > 0 {
			_ = s.mem.Unguard(first(i)+memory.PPN(page), n) // a guard that stays costs a fault, no more
		}
		page += n + 1
	}
}

// window is how long pages must stay unwritten: long enough for their users to
// come back some times, and the longer the more often that was believed wrongly.
func (s *Sampler) window(l *inquiry) time.Duration {
	b := &s.blocks[l.block]
	w := max(s.cfg.GuardWindow, 2*l.span)
	if b.phase == guard { // only to spare the guest the faults of guarding all
		w /= 2
	}
	return min(w, s.cfg.MaxWindow) << b.wrong
}

// guarded sees what has been written of what was guarded.
func (s *Sampler) guarded(l *inquiry, now time.Duration) {
	b := &s.blocks[l.block]
	s.inspect(l.block)
	unwritten := 0
	if b.phase == guard {
		for _, page := range l.probe {
			if page >= 0 && s.states[page] != memory.Private {
				unwritten++
			}
		}
	} else {
		for _, st := range s.states[:b.pages] {
			if st == memory.Guarded || st == memory.Replicated {
				unwritten++
			}
		}
	}
	written := l.asked - unwritten
	over := now-l.start >= s.window(l)
	switch {
	case written*2 > l.asked && !l.narrow && !s.coarse && !l.said.everyone && l.said.apart()*4 >= l.said.touched:
		// Not all of it is hopeless.
		s.unguard(l.block)
		s.beginFine(l, now)
	case written*2 > l.asked || l.narrow && written > 0 || l.asked == 0:
		if s.room() {
			s.unguard(l.block)
			l.bad = true
			s.whole(l, Written)
		}
	case !over:
	case l.narrow:
		s.unguard(l.block)
		s.widen(l, now)
	case b.phase == guard:
		s.guardAll(l, now)
	case s.room():
		s.runs(l)
	}
}

// guardAll guards every page of the block.
func (s *Sampler) guardAll(l *inquiry, now time.Duration) {
	b := &s.blocks[l.block]
	s.guard(l.block, 0, int(b.pages))
	s.inspect(l.block)
	l.asked = 0
	for _, st := range s.states[:b.pages] {
		if st == memory.Guarded || st == memory.Replicated {
			l.asked++
		}
	}
	b.phase = guardAll
	l.start = now
}

// runs hands out what stayed unwritten of a block, in runs of pages that are on
// one node and have the same copies. If there are nodes that do not use it, a page
// is left out: the others can not be watched, and who comes to use the block later
// would not be seen.
func (s *Sampler) runs(l *inquiry) {
	b := &s.blocks[l.block]
	if !s.locate(l.block) {
		s.stray(l, s.at)
		return
	}
	if s.others(l) {
		for page := int(b.pages) - 1; page >= 0; page-- {
			if s.homes[page] >= 0 && s.states[page] == memory.Guarded {
				s.states[page] = memory.Private
				break
			}
		}
	}
	kept := 0
	for page := 0; page < int(b.pages); {
		if !s.unwritten(page) {
			page++
			continue
		}
		home, copies := s.homes[page], s.copies(l.block, page)
		n := 1
		for page+n < int(b.pages) && s.unwritten(page+n) && s.homes[page+n] == home && s.copies(l.block, page+n) == copies {
			n++
		}
		s.heats = append(s.heats, Heat{
			First: first(l.block) + memory.PPN(page), Pages: n, Home: home,
			Users: l.said.users, Use: l.said.use, Copies: copies, Writes: Unwritten, Moves: b.count(),
			Joins: page > 0 && s.states[page-1] == memory.Replicated || page+n < int(b.pages) && s.states[page+n] == memory.Replicated,
		})
		kept += n
		page += n
	}
	b.phase = judged
	if kept < l.asked-1 {
		l.bad = true
		b.stuck = true
	}
}

// others says whether there are nodes that neither use the block nor have it.
func (s *Sampler) others(l *inquiry) bool {
	have := l.said.users
	for _, home := range l.home {
		have |= only(int(home))
	}
	return have.Count() < len(s.nodes)
}

// unwritten says of a page of the block just located whether it is there and
// was not written since it was guarded or copied.
func (s *Sampler) unwritten(page int) bool {
	return s.homes[page] >= 0 && (s.states[page] == memory.Guarded || s.states[page] == memory.Replicated)
}

// copies is the Views with copies of a page of the block just located.
func (s *Sampler) copies(i, page int) Mask {
	if s.states[page] != memory.Replicated {
		return 0
	}
	return Mask(s.mem.Replicas(first(i) + memory.PPN(page)))
}
