package memory

import (
	"errors"
	"fmt"

	"disco/memory/arena"
)

// Run is pages of an arena, one after another.
type Run struct {
	Arena *arena.Arena
	Page  uint64
	N     int
}

// pool is an arena that pages are shared from.
type pool struct {
	arena *arena.Arena
	// windows are mappings of it, by View, that only the View's userfaultfd knows.
	windows [][]byte
}

// A page's frame is the number of its pool plus 1, and the page of the pool's
// arena; 0 for a page that is not Shared.
const (
	frameBits = 28
	maxPools  = 1<<(32-frameBits) - 1
)

// frames are those of a block.
type frames struct {
	of    [blockPages]uint32
	shown [blockPages / 64]uint64 // a bit for each that is grafted
}

// frame is that of p; edges is held, or p's block locked.
func (s *Space) frame(p PPN) uint32 {
	if f := s.block(p).frames; f != nil {
		return f.of[p%blockPages]
	}
	return 0
}

func (s *Space) isShown(p PPN) bool {
	f := s.block(p).frames
	return f != nil && f.shown[p%blockPages/64]>>(p%64)&1 != 0
}

// setFrame takes and gives back users; edges is held.
func (s *Space) setFrame(p PPN, frame uint32) {
	f := s.block(p).frames
	i := p % blockPages
	if old := f.of[i]; old != 0 {
		a, page := s.machine(old)
		a.Release(page, 1)
		s.counters.sharedNow.Add(-1)
	}
	f.of[i] = frame
	f.shown[i/64] &^= 1 << (i % 64)
	if frame != 0 {
		a, page := s.machine(frame)
		a.Hold(page, 1)
		s.counters.sharedNow.Add(1)
	}
}

// machine is the page that a frame stands for.
func (s *Space) machine(frame uint32) (*arena.Arena, uint64) {
	return (*s.pools.Load())[frame>>frameBits-1].arena, uint64(frame & (1<<frameBits - 1))
}

// sharedBytes are n pages from p, whose frames follow one another.
func (s *Space) sharedBytes(p PPN, n int) []byte {
	a, page := s.machine(s.frame(p))
	return a.Bytes()[page*arena.PageSize:][:uint64(n)*arena.PageSize]
}

// alike is how many of n pages from p have frames that follow one another.
func (s *Space) alike(p PPN, n int) int {
	first := s.frame(p)
	for i := 1; i < n; i++ {
		if s.frame(p+PPN(i)) != first+uint32(i) {
			return i
		}
	}
	return n
}

// poolOf is the number of an arena's pool, which is made if it is new.
func (s *Space) poolOf(a *arena.Arena) (int, error) {
	if list := s.pools.Load(); list != nil {
		for i, p := range *list {
			if p.arena == a {
				return i, nil
			}
		}
	}
	s.pooling.Lock()
	defer s.pooling.Unlock()
	var list []*pool
	if old := s.pools.Load(); old != nil {
		list = *old
	}
	for i, p := range list {
		if p.arena == a {
			return i, nil
		}
	}
	if len(list) == maxPools {
		return 0, fmt.Errorf("memory: share: more than %d arenas", maxPools)
	}
	p := &pool{arena: a}
	err := s.openPool(p)
	list = append(list[:len(list):len(list)], p)
	if err != nil {
		return 0, errors.Join(err, p.close())
	}
	s.pools.Store(&list)
	return len(list) - 1, nil
}

func (s *Space) openPool(p *pool) error {
	for _, v := range s.view {
		b, err := p.arena.Map()
		if err != nil {
			return err
		}
		p.windows = append(p.windows, b)
		// The kernel maps a page of a sharing Space again by itself, protected as it
		// was.
		if s.opt.Sharing {
			err = v.uf.RegisterStores(b)
		} else {
			err = v.uf.Register(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *pool) close() error {
	var errs []error
	for _, b := range p.windows {
		errs = append(errs, arena.Unmap(b))
	}
	return errors.Join(errs...)
}

// CanShare says whether this Space has what Share needs.
func (s *Space) CanShare() bool { return s.words != nil }

// Share makes the pages of r, which their arena must have, guest memory from p
// on: every View maps them, for reading only, and Home's own pages are freed.
// What was there is lost, as if a device had written r's bytes. The first to
// write a page gets a Private one with the same bytes. Until then the arena
// counts a user for it. It allocates only the first time in 2 MiB of RAM.
//
// It returns ErrPinned if a device writes one of the pages, or ErrBudget, and
// other errors when the host refuses. In any case the caller then writes the
// bytes, to all of r's pages again.
func (s *Space) Share(p PPN, r Run) error { return s.shareAs(word(Shared), p, r) }

// Receive is Share for what comes from another guest: of Stats it counts in those
// of received pages, too.
func (s *Space) Receive(p PPN, r Run) error {
	if err := s.shareAs(word(Shared)|received, p, r); err != nil {
		return err
	}
	s.counters.received.Add(uint64(r.N))
	return nil
}

// ReceivedCopied is how many pages that Receive shared had to be copied, because
// the guest or a device wrote to them, since the Space was made.
func (s *Space) ReceivedCopied() uint64 { return s.counters.receivedCopied.Load() }

func (s *Space) shareAs(w word, p PPN, r Run) error {
	if s.words == nil {
		return ErrNotTracked
	}
	if err := s.run(p, r.N); err != nil {
		return err
	}
	most := min(r.Arena.Size()/arena.PageSize, 1<<frameBits-1)
	if r.Page > most || uint64(r.N) > most-r.Page {
		return errors.New("memory: share: pages beyond the end of their arena, or of what can be shared")
	}
	k, err := s.poolOf(r.Arena)
	if err != nil {
		return err
	}
	first := uint32(k+1)<<frameBits | uint32(r.Page)
	return s.eachBlock(p, r.N, func(q PPN, n int) error {
		if err := s.share(q, first+uint32(q-p), n, w); err != nil {
			return err
		}
		s.counters.shared.Add(uint64(n))
		s.counters.runs.Add(1)
		return nil
	})
}

// share does it for pages of one block, which is locked.
func (s *Space) share(p PPN, frame uint32, n int, w word) error {
	private, err := s.claimAll(p, n)
	if err != nil {
		return err
	}
	// No two need be neighbours in their file.
	reserve := int64(2 * len(s.view))
	if !arena.VMAs.Reserve(reserve) {
		s.disclaim(p, n)
		return ErrBudget
	}
	defer arena.VMAs.Add(-reserve)
	pool := (*s.pools.Load())[frame>>frameBits-1]
	for i, v := range s.view {
		part := at(pool.windows[i], PPN(frame&(1<<frameBits-1)), n)
		if err := v.install(part, p); err != nil {
			return errors.Join(err, s.abandon(p, n))
		}
	}
	if private {
		if err := s.home.Punch(uint64(p), n); err != nil {
			return errors.Join(err, s.abandon(p, n))
		}
	}
	if err := s.hide(p, n); err != nil {
		return errors.Join(err, s.abandon(p, n))
	}
	s.remapped(p, n, 0, func(q PPN) {
		if b := s.block(q); b.frames == nil {
			b.frames = new(frames)
		}
		s.setFrame(q, frame+uint32(q-p))
	})
	s.settle(p, n, w)
	return nil
}

// claimAll claims the pages that are not Shared, and says whether there are any.
func (s *Space) claimAll(p PPN, n int) (some bool, err error) {
	for q := p; q < p+PPN(n); q++ {
		switch s.word(q).state() {
		case Shared:
			continue
		case Replicated:
			if _, err := s.collapse(q, 1); err != nil {
				s.disclaim(p, int(q-p))
				return false, err
			}
		}
		if _, ok := s.claim(q); !ok {
			s.disclaim(p, int(q-p))
			return false, ErrPinned
		}
		some = true
	}
	return some, nil
}

// disclaim ends claimAll. Protections may be left over.
func (s *Space) disclaim(p PPN, n int) {
	for q := p; q < p+PPN(n); q++ {
		if s.word(q)&busy != 0 {
			s.settle(q, 1, word(Private))
		}
	}
}

// abandon makes claimed and Shared pages Private, whatever they hold, when
// sharing has failed halfway.
func (s *Space) abandon(p PPN, n int) error {
	err := errors.Join(s.hide(p, n), s.ungraft(p, n))
	s.remapped(p, n, 0, func(q PPN) {
		if s.frame(q) != 0 {
			s.setFrame(q, 0)
		}
	})
	return errors.Join(err, s.release(p, n))
}

// ungraft maps Home in all Views again.
func (s *Space) ungraft(p PPN, n int) error {
	var err error
	for _, v := range s.view {
		if e := v.restore(p, n); err == nil {
			err = e
		}
	}
	return err
}

// unshare makes Shared pages of one block Private; it is locked.
func (s *Space) unshare(p PPN, n int) error {
	for i := 0; i < n; {
		q := p + PPN(i)
		m := s.alike(q, n-i)
		if err := s.home.Fill(uint64(q), s.sharedBytes(q, m)); err != nil {
			return err
		}
		i += m
	}
	if err := s.unmapShared(p, n); err != nil {
		return err
	}
	for q := p; q < p+PPN(n); q++ {
		if s.word(q)&received != 0 {
			s.counters.receivedCopied.Add(1)
		}
	}
	s.block(p).broken.Add(uint32(n))
	s.counters.unshared.Add(uint64(n))
	s.counters.copied.Add(uint64(n) * arena.PageSize)
	return nil
}

// unmapShared maps Home where Shared pages of one block were; it is locked.
func (s *Space) unmapShared(p PPN, n int) error {
	if err := s.hide(p, n); err != nil {
		return err
	}
	if err := s.ungraft(p, n); err != nil {
		return err
	}
	s.remapped(p, n, 0, func(q PPN) { s.setFrame(q, 0) })
	return nil
}

// Discard says that nobody needs what is in the n bytes at a: of a Space that only
// shares, the Shared pages that lie wholly there become Private and empty. A pin to
// Overwrite does that for its own pages; who will pin many that are neighbours says so
// of all first, as pages that are mapped back together are one system call. It returns
// ErrNotRAM, and does nothing, if any byte lies outside RAM; other errors are the host's.
func (s *Space) Discard(a GPA, n int) error {
	if _, err := s.bytes(a, n); err != nil {
		return err
	}
	if s.words == nil || !s.opt.Sharing {
		return nil
	}
	return s.discard(a, n)
}

func (s *Space) discard(a GPA, n int) error {
	p, end := PPN((a+arena.PageSize-1)/arena.PageSize), PPN((a+GPA(n))/arena.PageSize)
	for ; p < end; p++ {
		if s.word(p).state() != Shared {
			continue
		}
		if err := s.eachBlock(p, chunk(p, int(end-p)), s.discardRun); err != nil {
			return err
		}
	}
	return nil
}

func (s *Space) discardRun(p PPN, n int) error {
	for q, end := p, p+PPN(n); q < end; {
		first := q
		for q < end && s.word(q).state() == Shared {
			q++
		}
		if q == first {
			q++
			continue
		}
		if err := s.unmapShared(first, int(q-first)); err != nil {
			return err
		}
		s.counters.discarded.Add(uint64(q - first))
		s.counters.discards.Add(1)
		s.settle(first, int(q-first), word(Private))
	}
	return nil
}

// show has the monitor's mapping show what is Shared of the n bytes at a, so
// that there is an address for it that stays.
func (s *Space) show(a GPA, n int) error {
	if s.words == nil {
		return nil
	}
	for p, end := pages(a, n); p < end; p++ {
		if w := s.word(p); w.state() != Shared || w&grafted != 0 {
			continue
		}
		if err := s.eachBlock(p, chunk(p, int(end-p)), s.showRun); err != nil {
			return err
		}
	}
	return nil
}

// showRun does it for pages of one block, which is locked. For want of mappings
// the pages become Private instead.
func (s *Space) showRun(p PPN, n int) error {
	for i := 0; i < n; {
		q := p + PPN(i)
		m := 0
		for i+m < n && s.word(q+PPN(m)).state() == Shared && !s.isShown(q+PPN(m)) {
			m++
		}
		if m == 0 {
			i++
			continue
		}
		m = s.alike(q, m)
		i += m
		if !arena.VMAs.Reserve(2) {
			if _, err := s.collapse(q, m); err != nil {
				return err
			}
			continue
		}
		from, page := s.machine(s.frame(q))
		if err := s.home.Graft(uint64(q), from, page, m); err != nil {
			arena.VMAs.Add(-2)
			return errors.Join(err, s.home.Prune(uint64(q), m))
		}
		s.remapped(q, m, 2, func(q PPN) { s.block(q).frames.shown[q%blockPages/64] |= 1 << (q % 64) })
		for i := range PPN(m) {
			s.settle(q+i, 1, s.word(q+i)|grafted)
		}
	}
	return nil
}

// hide ends show for pages of one block, which is locked.
func (s *Space) hide(p PPN, n int) error {
	for q := p; q < p+PPN(n); q++ {
		if !s.isShown(q) {
			continue
		}
		err := s.home.Prune(uint64(p), n)
		s.remapped(p, n, 0, func(q PPN) {
			if f := s.block(q).frames; f != nil {
				f.shown[q%blockPages/64] &^= 1 << (q % 64)
			}
		})
		return err
	}
	return nil
}

// readShared copies guest memory of a Space with states. No address is needed
// for it.
func (s *Space) readShared(dst []byte, a GPA) {
	for len(dst) > 0 {
		p, off := PPN(a/arena.PageSize), a%arena.PageSize
		n := min(len(dst), int(arena.PageSize-off))
		if w := s.word(p); w.state() == Shared && w&grafted == 0 && s.copyShared(dst[:n], p, int(off)) {
		} else {
			copy(dst[:n], s.home.Bytes()[a:])
		}
		dst, a = dst[n:], a+GPA(n)
	}
}

func (s *Space) copyShared(dst []byte, p PPN, off int) bool {
	s.block(p).mu.Lock()
	defer s.unlock(p)
	if s.word(p).state() != Shared {
		return false
	}
	copy(dst, s.sharedBytes(p, 1)[off:])
	return true
}

// Broken is how many Shared pages in p's 2 MiB of RAM have been made Private
// again since the Space was made, modulo 2^32: a sign of pages that are soon
// overwritten. It is 0 for what is not RAM.
func (s *Space) Broken(p PPN) uint32 {
	if uint64(p) >= uint64(len(s.words)) {
		return 0
	}
	return s.block(p).broken.Load()
}

// unhold forgets what is shared, when the Space is closed.
func (s *Space) unhold() error {
	for i := range s.blocks {
		if f := s.blocks[i].frames; f != nil {
			for j, frame := range f.of {
				if frame != 0 {
					s.setFrame(PPN(i*blockPages+j), 0)
				}
			}
		}
	}
	var errs []error
	if list := s.pools.Load(); list != nil {
		for _, p := range *list {
			errs = append(errs, p.close())
		}
	}
	return errors.Join(errs...)
}
