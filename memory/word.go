package memory

import (
	"sync"
	"sync/atomic"
)

// State is what a page of a tracked Space is; see the package's comment.
type State int

// The states of a page.
const (
	Private State = iota
	Guarded
	Replicated
	Shared
)

func (s State) String() string {
	return [...]string{"private", "guarded", "replicated", "shared"}[s]
}

// A page's word: its state, whether somebody changes it, which Views have
// their own copy, and how many devices may write it just now. Pins change it
// without a lock, and only while it is Private or Guarded and not busy;
// everybody else holds the lock of its block.
type word uint64

const (
	stateMask = word(3)
	busy      = word(1 << 2)
	grafted   = word(1 << 3) // a Shared page that the monitor's mapping shows
	received  = word(1 << 4) // a Shared page that Receive shared
	copyShift = 8
	copyMask  = word(1<<MaxViews-1) << copyShift
	onePin    = word(1 << 32)
)

func (w word) state() State     { return State(w & stateMask) }
func (w word) copies() uint32   { return uint32(w & copyMask >> copyShift) }
func (w word) pins() uint32     { return uint32(w >> 32) }
func (w word) has(v *View) bool { return w>>copyShift>>v.index&1 != 0 }

// blockPages is the pages of a block: of a huge page of x86-64.
const blockPages = 512

// block is what is kept for 2 MiB of RAM, aligned.
type block struct {
	mu      sync.Mutex
	waiting atomic.Uint32 // Views with faults that were left alone
	copies  atomic.Int32  // how many replicas it has
	stamp   atomic.Uint64 // when the last was made
	moved   atomic.Uint64 // pages that were migrated, each time
	copied  atomic.Uint64 // pages that got a copy, each time
	broken  atomic.Uint32 // how many Shared pages were made Private again
	frames  *frames       // of Shared pages; under Space.edges, stays once it is there
}

func (s *Space) word(p PPN) word { return word(s.words[p].Load()) }

func (s *Space) block(p PPN) *block { return &s.blocks[p/blockPages] }

// chunk is how many of n pages from p are in p's block.
func chunk(p PPN, n int) int { return min(n, int(blockPages-p%blockPages)) }

// eachBlock calls act for the part of n pages from p in each block, with the
// block's lock held, until it fails.
func (s *Space) eachBlock(p PPN, n int, act func(PPN, int) error) error {
	for n > 0 {
		m := chunk(p, n)
		s.block(p).mu.Lock()
		err := act(p, m)
		s.unlock(p)
		if err != nil {
			return err
		}
		p, n = p+PPN(m), n-m
	}
	return nil
}

// tryLock locks the block of p for who answers a fault of View v there. If it
// is false, whoever has the lock will wake the thread.
func (s *Space) tryLock(p PPN, v *View) bool {
	b := s.block(p)
	if b.mu.TryLock() {
		return true
	}
	b.waiting.Or(1 << v.index)
	// Who unlocked before it could see the mark will not wake.
	return b.mu.TryLock()
}

// unlock unlocks the block of p and wakes who was left alone meanwhile.
func (s *Space) unlock(p PPN) {
	b := s.block(p)
	b.mu.Unlock()
	waiting := b.waiting.Swap(0)
	if waiting == 0 {
		return
	}
	first := p - p%blockPages
	for _, v := range s.view {
		if waiting>>v.index&1 != 0 {
			v.wake(first, blockPages)
		}
	}
}

// States fills dst with the states of the pages from p on. It returns ErrNotRAM
// if any is not RAM. Every page of a thin Space is Private.
func (s *Space) States(dst []State, p PPN) error {
	if err := s.run(p, len(dst)); err != nil {
		return err
	}
	for i := range dst {
		if dst[i] = Private; s.words != nil {
			dst[i] = s.word(p + PPN(i)).state()
		}
	}
	return nil
}

// Replicas says which Views have their own copy of a page: bit i is View i.
func (s *Space) Replicas(p PPN) (mask uint32) {
	if uint64(p) >= uint64(len(s.words)) {
		return 0
	}
	return s.word(p).copies()
}
