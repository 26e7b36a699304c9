package memory

import "disco/memory/arena"

// remapped notes by change, which is called with s.edges held, that n pages from
// p are mapped from elsewhere than before, and takes from the budget, or gives
// back, the mappings that this made or saved; reserved is what had been taken
// for it.
func (s *Space) remapped(p PPN, n int, reserved int64, change func(q PPN)) {
	s.edges.Lock()
	delta := -s.seams(p, n)
	for q := p; q < p+PPN(n); q++ {
		change(q)
	}
	delta += s.seams(p, n)
	s.vmas += delta
	s.edges.Unlock()
	arena.VMAs.Add(delta - reserved)
}

// seams counts, among the pages and with those around them, the neighbours that
// are not so in their files, in all Views and the monitor's mapping: so many
// mappings there are more than at first.
func (s *Space) seams(p PPN, n int) (seams int64) {
	for q := max(p, 1); q <= min(p+PPN(n), PPN(len(s.words))-1); q++ {
		a, b := s.frame(q-1), s.frame(q)
		if a != 0 || b != 0 {
			neighbours := a != 0 && b == a+1
			if !neighbours {
				seams += int64(len(s.view))
			}
			if shown, also := s.isShown(q-1), s.isShown(q); shown != also || shown && !neighbours {
				seams++
			}
			continue
		}
		for _, v := range s.view {
			if v.isAway(q) != v.isAway(q-1) {
				seams++
			}
		}
	}
	return seams
}

func (v *View) isAway(p PPN) bool { return v.away != nil && v.away[p/64]>>(p%64)&1 != 0 }
