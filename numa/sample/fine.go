package sample

import (
	"math/bits"
	"sync/atomic"
	"time"

	"disco/memory"
	"disco/numa"
)

const (
	tableWritten = 1 << 16 // stored to, for sure
	tableAsked   = 1 << 17 // watched at home too
)

// table is who touched each page of a block that is looked at finely: a Mask and
// the bits above.
type table [BlockPages]entry

type entry struct{ atomic.Uint32 }

func (e *entry) users() Mask { return Mask(e.Load()) }

// release gives back the table of b, if it has one.
func (s *Sampler) release(b *block) {
	if n := b.table.Swap(0); n != 0 {
		s.spare = append(s.spare, uint8(n-1))
	}
}

func (s *Sampler) tableOf(b *block) *table { return &s.tables[b.table.Load()-1] }

// beginFine watches each page of the block from afar.
func (s *Sampler) beginFine(l *inquiry, now time.Duration) {
	b := &s.blocks[l.block]
	if len(s.spare) == 0 || !s.solvent() {
		if now-l.start >= 2*s.cfg.MaxWindow {
			s.stray(l, now)
		}
		return // asked again in the next Step
	}
	if !s.locate(l.block) {
		s.stray(l, s.at)
		return
	}
	n := s.spare[len(s.spare)-1]
	s.spare = s.spare[:len(s.spare)-1]
	t := &s.tables[n]
	for i := range t {
		t[i].Store(0)
	}
	b.clear()
	b.table.Store(uint32(n) + 1)
	for v := range s.nodes {
		s.watchRuns(l.block, v, func(page int) bool {
			return s.usable(page) && s.states[page] == memory.Private && s.place(s.homes[page]) != v
		})
	}
	s.stats.Fine++
	b.phase = fine
	l.start, l.last, l.count = now, now, 0
}

// watchRuns watches in one View the pages of block i that are wanted.
func (s *Sampler) watchRuns(i, v int, want func(page int) bool) {
	for page := 0; page < int(s.blocks[i].pages); {
		n := 0
		for page+n < int(s.blocks[i].pages) && want(page+n) {
			n++
		}
		if n > 0 {
			_ = s.mem.Watch(first(i)+memory.PPN(page), n, s.nodes[v]) // not watched is not touched
		}
		page += n + 1
	}
}

// advanceFine sees how far a fine look has come.
func (s *Sampler) advanceFine(l *inquiry, now time.Duration) {
	b := &s.blocks[l.block]
	t := s.tableOf(b)
	if b.phase == fineGuard {
		if now-l.start >= s.window(l) && s.room() {
			s.sort(l, now)
		}
		return
	}
	count := 0
	for i := range t {
		count += bits.OnesCount16(uint16(t[i].Load()))
	}
	if !s.quiet(l, count, l.start, now) {
		return
	}
	if b.phase == fine {
		s.fineHome(l, now)
		return
	}
	if now-l.start < min(2*l.span, s.cfg.MaxWindow) || !s.room() {
		return
	}
	if s.cfg.Guard && s.fineGuard(l, now) {
		return
	}
	s.sort(l, now)
}

// fineHome watches at home what was touched from afar.
func (s *Sampler) fineHome(l *inquiry, now time.Duration) {
	b := &s.blocks[l.block]
	if !s.locate(l.block) {
		s.stray(l, s.at)
		return
	}
	t := s.tableOf(b)
	for i := range t {
		if t[i].Load() != 0 {
			t[i].Or(tableAsked)
		}
	}
	for v := range s.nodes {
		s.watchRuns(l.block, v, func(page int) bool {
			return t[page].Load()&tableAsked != 0 && s.usable(page) && s.states[page] == memory.Private && s.place(s.homes[page]) == v
		})
	}
	b.phase = fineHome
	l.span = l.last - l.start
	l.start, l.last, l.count = now, now, 0
}

// fineGuard guards the pages of several nodes; false if there are none to speak
// of. Runs that are too short to be copied are not worth it.
func (s *Sampler) fineGuard(l *inquiry, now time.Duration) bool {
	b := &s.blocks[l.block]
	t := s.tableOf(b)
	l.asked = 0
	for page := 0; page < int(b.pages); {
		n := 0
		for page+n < int(b.pages) && s.matters(t[page+n].Load()) {
			n++
		}
		if n >= MinRun {
			s.guard(l.block, page, n)
			l.asked += n
		}
		page += n + 1
	}
	if l.asked == 0 {
		return false
	}
	s.stats.Guarded++
	b.phase = fineGuard
	l.start = now
	return true
}

// matters says whether it matters if a page with this entry is written.
func (s *Sampler) matters(e uint32) bool {
	return e&(tableAsked|tableWritten) == tableAsked && (Mask(e).Count() > 1 || s.cfg.GuardSole)
}

// sort hands out runs of pages that are on one node and used alike.
func (s *Sampler) sort(l *inquiry, now time.Duration) {
	b := &s.blocks[l.block]
	if !s.locate(l.block) {
		s.stray(l, s.at)
		return
	}
	t := s.tableOf(b)
	type kind struct {
		home   numa.Node
		sole   Mask // its one user; 0 if several
		writes Writes
		copies Mask
	}
	of := func(page int) (k kind, ok bool) {
		e := t[page].Load()
		if e&tableAsked == 0 || !s.usable(page) {
			return k, false
		}
		k = kind{home: s.homes[page], copies: s.copies(l.block, page)}
		if Mask(e).Count() == 1 {
			k.sole = Mask(e)
		}
		switch {
		case s.unwritten(page):
			k.writes = Unwritten
		case e&tableWritten != 0, s.matters(e) && s.cfg.Guard:
			k.writes = Written
		}
		return k, true
	}
	l.parts, l.before = true, s.count()
	handed, written, hopeless := 0, 0, 0
	for page := 0; page < int(b.pages); {
		k, ok := of(page)
		if !ok {
			page++
			continue
		}
		h := Heat{First: first(l.block) + memory.PPN(page), Home: k.home, Copies: k.copies, Writes: k.writes, Moves: b.count()}
		for page < int(b.pages) {
			if next, ok := of(page); !ok || next != k {
				break
			}
			h.Pages++
			u := t[page].users()
			h.Users |= u
			for v := range s.nodes {
				if u.Has(v) {
					h.Use[v]++
				}
			}
			page++
		}
		s.heats = append(s.heats, h)
		handed++
		if k.writes == Written && (k.sole == 0 || s.cfg.GuardSole) {
			written += h.Pages
			hopeless++
		}
	}
	if handed == 0 {
		s.stray(l, now)
		return
	}
	s.release(b)
	l.bad = written > 0
	b.stuck = hopeless == handed || written > BlockPages/2
	b.phase = judged
}
