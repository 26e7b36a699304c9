package memory

import "disco/memory/arena"

// Loan is a piece of guest memory that a device reads, and where it lies. Bytes
// of no guest are one without a Run.
type Loan struct {
	Bytes []byte
	// Run, if it has an Arena, is the pages of a pool that Bytes are in, from the
	// first page on: others may be given a Share of them.
	Run Run
	// Offset is where in its first page the piece begins.
	Offset int
}

// Borrow appends to dst the pieces of guest memory that hold the n bytes at a,
// in order, each to be given to Return. It is Pin for reading, but gives Shared
// pages where their arena has them: no address has to be made for them, what is
// read does not change with the guest's next store, and their arena keeps them
// until Return. It returns ErrNotRAM, dst as it was, and lends nothing if any
// byte lies outside RAM. It does not allocate when dst has room.
func (s *Space) Borrow(dst []Loan, a GPA, n int) ([]Loan, error) {
	if _, err := s.bytes(a, n); err != nil {
		return dst, err
	}
	for n > 0 {
		l, ok := s.borrowShared(a, n)
		if !ok {
			l = s.borrowOwn(a, n)
			if len(l.Bytes) == 0 {
				continue // it has been shared meanwhile
			}
		}
		s.pins.Add(1)
		dst = append(dst, l)
		a, n = a+GPA(len(l.Bytes)), n-len(l.Bytes)
	}
	return dst, nil
}

// Return ends the loan of one piece.
func (s *Space) Return(l Loan) {
	if s.pins.Add(-1) < 0 {
		panic("memory: Return without Borrow")
	}
	if l.Run.Arena != nil {
		l.Run.Arena.Release(l.Run.Page, l.Run.N)
	}
}

// borrowOwn lends what lies in Home: up to n bytes, to the next Shared page.
func (s *Space) borrowOwn(a GPA, n int) Loan {
	offset := int(a % arena.PageSize)
	if s.words != nil {
		p, end := pages(a, n)
		for first := p; p < end; p++ {
			if s.word(p).state() == Shared {
				n = min(n, max(0, int(p-first)*arena.PageSize-offset))
				break
			}
		}
	}
	return Loan{Bytes: s.home.Bytes()[a : uint64(a)+uint64(n) : uint64(a)+uint64(n)], Offset: offset}
}

// borrowShared lends up to n bytes of Shared pages whose frames follow one
// another, if a is in one.
func (s *Space) borrowShared(a GPA, n int) (l Loan, ok bool) {
	first, end := pages(a, n)
	if s.words == nil || s.word(first).state() != Shared {
		return l, false
	}
	s.block(first).mu.Lock()
	defer s.unlock(first)
	m := 0
	for most := chunk(first, int(end-first)); m < most && s.word(first+PPN(m)).state() == Shared; m++ {
	}
	if m == 0 {
		return l, false
	}
	m = s.alike(first, m)
	l.Run.Arena, l.Run.Page = s.machine(s.frame(first))
	l.Run.N = m
	l.Run.Arena.Hold(l.Run.Page, m)
	l.Offset = int(a % arena.PageSize)
	l.Bytes = s.sharedBytes(first, m)[l.Offset:]
	l.Bytes = l.Bytes[:min(n, len(l.Bytes))]
	return l, true
}
