package blk

import (
	"sync"
	"time"

	"disco/memory"
	"disco/memory/arena"
	"disco/virtio"
)

// Lender is a Backend that has bytes of the disk in pages of memory that guests
// may map: it need not be copied what such a guest reads. off and n are multiples
// of the page size, within the disk.
type Lender interface {
	// Lend finds the pages of the n bytes at off: r.N of r.Arena's, one after
	// another, that stay as they are until Return. They may be fewer than n stands
	// for. If they are none, the next skip bytes, more than 0, are to be read.
	Lend(off, n int64) (r memory.Run, skip int64)
	// Return ends a Lend. mapped is how many of the pages the guest maps now.
	Return(r memory.Run, mapped int)
}

// Share says which reads are answered by mapping pages of a Lender.
type Share int

const (
	// ShareAuto is those for which it will pay: while there are few mappings left
	// for the process only long runs, and none for a while where the guest soon
	// writes to what it reads.
	ShareAuto Share = iota
	// ShareAlways is all for which it can be done.
	ShareAlways
	// ShareNever is none.
	ShareNever
)

const pageSize = arena.PageSize

// What ShareAuto goes by.
const (
	regionPages = 512 // the guest's memory is judged by pieces of 2 MiB

	// Counts are halved so often. So pages that live longer than a few times this
	// do not count as written to soon.
	halfLife = 2 * time.Second
	// A region is left alone when half of what was shared there lately, and some
	// pages at least, have been written to: at first for shortPause, and for twice
	// as long each time that this is so again, up to longPause.
	enoughPages = 64
	shortPause  = time.Second
	longPause   = 64 * time.Second
)

// policy decides for one disk of a guest. It is for one Start of the device.
type policy struct {
	mu      sync.Mutex
	regions []region
	broken  func(memory.PPN) uint32 // Space.Broken
	crowded func() (used, limit int64)
}

type region struct {
	stamp  time.Duration // of the last halving
	until  time.Duration // left alone so long
	pause  time.Duration // the last
	shared uint32        // lately
	bad    uint32        // of them, written to
	seen   uint32        // what broken said last
}

func newPolicy(s *memory.Space) *policy {
	ram := s.RAM()
	pages := uint64(ram[len(ram)-1].End()) / pageSize
	return &policy{
		regions: make([]region, pages/regionPages+1), broken: s.Broken,
		crowded: func() (int64, int64) { return arena.VMAs.Used(), arena.VMAs.Limit() },
	}
}

// worth says whether to share n pages at p, at a time since some start, and
// counts them if so.
func (y *policy) worth(p memory.PPN, n int, now time.Duration) bool {
	used, limit := y.crowded()
	switch {
	case used > limit/4*3 && n < 16, used > limit/2 && n < 4:
		return false
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	g := &y.regions[p/regionPages]
	if periods := (now - g.stamp) / halfLife; periods > 0 {
		g.stamp = now
		shift := min(periods, 31)
		g.shared, g.bad = g.shared>>shift, g.bad>>shift
		if now > g.until+4*g.pause {
			g.pause = 0
		}
	}
	// What was shared long ago may go.
	total := y.broken(p)
	g.bad = min(g.bad+total-g.seen, g.shared)
	g.seen = total
	if now < g.until {
		return false
	}
	if g.bad >= enoughPages && g.bad > g.shared/2 {
		g.pause = min(max(2*g.pause, shortPause), longPause)
		g.until = now + g.pause
		g.shared, g.bad = 0, 0
		return false
	}
	g.shared += uint32(n)
	return true
}

// read answers a read at off into the room of a chain: by pages of the Lender
// where that is worth it, and by copying the rest. The guest sees the same.
func (w *worker) read(c *virtio.Chain, off int64) error {
	now := time.Since(w.d.born)
	for room := c.Room; len(room) > 0; {
		// A driver gives neighbouring pages one by one if it likes.
		b := room[0]
		for room = room[1:]; len(room) > 0 && room[0].Addr == b.Addr+memory.GPA(b.Len); room = room[1:] {
			b.Len += room[0].Len
		}
		for b.Len > 0 {
			done, err := w.readPart(c, b, off, now)
			if err != nil {
				return err
			}
			b.Addr, b.Len, off = b.Addr+memory.GPA(done), b.Len-done, off+int64(done)
		}
	}
	return w.copyClaimed()
}

// readPart answers the beginning of a read into b, and says how much: by pages,
// or by claiming memory that is copied to later, with what comes after it.
func (w *worker) readPart(c *virtio.Chain, b virtio.Buffer, off int64, now time.Duration) (done int, err error) {
	done = b.Len
	if n := b.Len &^ (pageSize - 1); n > 0 && b.Addr%pageSize == 0 && off%pageSize == 0 {
		r, skip := w.lender.Lend(off, int64(n))
		if done = int(skip); r.N > 0 {
			done = r.N * pageSize
			if w.share(memory.PPN(b.Addr/pageSize), r, now) {
				return done, w.copyClaimed()
			}
		}
	}
	if len(w.claimed) == 0 {
		w.claimedAt = off
	}
	w.claimed, err = c.Claim(w.claimed, virtio.Buffer{Addr: b.Addr, Len: done})
	return done, err
}

// share maps lent pages, if that is worth it and can be done, and returns them.
func (w *worker) share(p memory.PPN, r memory.Run, now time.Duration) bool {
	mapped := 0
	if (w.policy == nil || w.policy.worth(p, r.N, now)) && w.q.Space().Share(p, r) == nil {
		mapped = r.N
	}
	w.lender.Return(r, mapped)
	w.d.mapped.Add(uint64(mapped) * pageSize)
	return mapped > 0
}

// copyClaimed reads into what was claimed since it was last called.
func (w *worker) copyClaimed() error {
	if len(w.claimed) == 0 {
		return nil
	}
	err := w.d.backend.ReadV(w.claimed, w.claimedAt)
	if err == nil {
		w.d.copied.Add(uint64(virtio.Len(w.claimed)))
	}
	w.claimed = w.claimed[:0]
	return err
}
