package memory

import "disco/memory/arena"

// Pin appends to dst the pieces of the monitor's mapping that hold the n bytes
// at a, in order, and keeps them valid until Unpin is called with the same a, n
// and acc. With Write or Overwrite the pages become Private, and stay so: they are not
// copied or shared until then, though they may migrate, which changes no
// address. With Read a page that is shared while it is pinned, which only a guest
// does that reads and writes it at once, has any bytes for the device until then.
// A pin may be held for long (rings are). It returns ErrNotRAM, dst as
// it was, and pins nothing if any byte lies outside RAM. It does not allocate
// when dst has room.
func (s *Space) Pin(dst [][]byte, a GPA, n int, acc Access) ([][]byte, error) {
	b, err := s.bytes(a, n)
	if err != nil {
		return dst, err
	}
	if acc != Read {
		if err := s.pinWrite(a, n, acc); err != nil {
			return dst, err
		}
	} else if err := s.show(a, n); err != nil {
		return dst, err
	}
	s.pins.Add(1)
	return append(dst, b), nil
}

// Unpin ends one Pin of the same a, n and access.
func (s *Space) Unpin(a GPA, n int, acc Access) {
	if s.pins.Add(-1) < 0 {
		panic("memory: Unpin without Pin")
	}
	if acc != Read {
		s.unpinWrite(a, n)
	}
}

// Pins is the number of pins now held: zero when no device is running.
func (s *Space) Pins() int64 { return s.pins.Load() }

// pages are the first page of the n bytes at a, and the first after them.
func pages(a GPA, n int) (p, end PPN) {
	if n == 0 {
		return 0, 0
	}
	return PPN(a / arena.PageSize), PPN((a+GPA(n)-1)/arena.PageSize) + 1
}

func (s *Space) pinWrite(a GPA, n int, acc Access) error {
	if s.words == nil {
		return nil
	}
	if acc == Overwrite && s.opt.Sharing {
		if err := s.discard(a, n); err != nil {
			return err
		}
	}
	first, end := pages(a, n)
	for p := first; p < end; p++ {
		if err := s.pinPage(p); err != nil {
			for ; first < p; first++ {
				s.unpinPage(first)
			}
			return err
		}
	}
	return nil
}

func (s *Space) unpinWrite(a GPA, n int) {
	if s.words == nil {
		return
	}
	for p, end := pages(a, n); p < end; p++ {
		s.unpinPage(p)
	}
}

func (s *Space) pinPage(p PPN) error {
	for {
		w := s.word(p)
		if w&busy == 0 && w.state() <= Guarded {
			// A protection that a Guarded page leaves in Views the next store lifts.
			if s.words[p].CompareAndSwap(uint64(w), uint64(w&^stateMask+onePin)) {
				return nil
			}
			continue
		}
		s.block(p).mu.Lock() // after whoever is busy with it
		var err error
		if s.word(p).state() > Guarded {
			_, err = s.collapse(p, 1)
		}
		s.unlock(p)
		if err != nil {
			return err
		}
		s.relieve()
	}
}

func (s *Space) unpinPage(p PPN) {
	if w := word(s.words[p].Add(^uint64(onePin - 1))); w.pins() == 1<<32-1 {
		panic("memory: Unpin without Pin")
	}
}

// claim marks a Private or Guarded page that no device writes as busy. Who
// claims holds the block's lock. w is what the page was.
func (s *Space) claim(p PPN) (w word, ok bool) {
	for {
		w = s.word(p)
		if w.state() > Guarded || w.pins() != 0 {
			return w, false
		}
		if s.words[p].CompareAndSwap(uint64(w), uint64(w|busy)) {
			return w, true
		}
	}
}

// settle gives claimed pages a state, and the copies of w.
func (s *Space) settle(p PPN, n int, w word) {
	for i := range PPN(n) {
		s.words[p+i].Store(uint64(w))
	}
}
