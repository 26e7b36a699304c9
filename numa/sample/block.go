package sample

import (
	"sync/atomic"
	"time"

	"disco/memory"
)

const (
	// BlockPages is the pages of a block, the 2 MiB for which one decision is made
	// when its pages are alike. Blocks are aligned, as huge pages are.
	BlockPages = 512
	// Probes is how many pages stand for a block, each in a stratum of its own.
	Probes = 8
	// MinRun is the pages of the shortest run that copies are worth: each takes
	// mappings, and as many system calls as a long one.
	MinRun  = 4
	stratum = BlockPages / Probes
	// enough is how many strata must be touched from afar before it is asked who
	// else uses a block. One is, the next time.
	enough = 2
	// few is the touches of which no pace can be told.
	few = 4
	// rush is the stores to a block with copies after which the rest of them is
	// given up at once, instead of by a fault for each page.
	rush = 8
	// maxWrong ends the doubling of guard windows.
	maxWrong = 6
	// allRemote is a block of which all uses are remote.
	allRemote = 200
	// regret is how soon after it was moved a block is wanted back by a node whose
	// use of it and another's alternate: too fast for moves to pay.
	regret = 5 * time.Second
	// turn is how many moves such a one counts for, and turnDecay how many times
	// slower it is forgotten.
	turn      = 2
	turnDecay = 4
	maxTurns  = 3
)

// phase is how far a look at a block has come.
type phase uint8

const (
	idle      phase = iota // no look: what is watched stays watched
	survey                 // touched from afar once: is there more of it?
	look                   // watched in every View: who uses it?
	guard                  // guarded in a few places: is it written?
	guardAll               // all of it is: which pages are not?
	fine                   // pages differ; each is watched from afar
	fineHome               // those touched from afar are watched at home too
	fineGuard              // those of several nodes are guarded
	judged                 // handed out as Heat; waits for Finish
)

// block is what is remembered of 512 pages. The atomics are written by the
// goroutines that answer faults, all else only by Step, Take and Finish.
type block struct {
	touched [2]atomic.Uint64 // bit view*8+stratum: eight views in each word
	writes  atomic.Uint32    // stores since it was last cleared, <<8 | strata of those that are sure
	copied  atomic.Uint32    // pages with copies
	table   atomic.Uint32    // 1 + index of its page table while it is looked at finely

	due    time.Duration // when to come back, if nothing is touched
	aged   time.Duration // when moves and level were last lowered
	phase  phase
	moves  uint8         // lately
	level  uint8         // times that it could not be helped: the next Hold is twice as long
	wrong  uint8         // times that copies were written: the next guard window is twice as long
	idles  uint8         // visits that found nothing
	remote uint8         // the part of its uses that was remote, of allRemote
	homes  [Probes]int8  // places of the probes' nodes
	posted uint8         // strata with a probe
	alive  bool          // some of it was there
	held   bool          // left alone until due, not watched
	turns  uint8         // times that it was wanted back too soon, as turnDecay each
	from   int8          // place of the node that it was moved from last
	moved  time.Duration // when
	stuck  bool          // written by those who use it, when last looked at: a few probes do
	pages  uint16        // that are RAM, from its first on; 0: none of it is
}

// users is who touched stratum i.
func (b *block) users(i int) Mask {
	var m Mask
	for w := range b.touched {
		t := b.touched[w].Load() >> i
		for v := range 8 {
			m |= Mask(t>>(v*8)&1) << (w*8 + v)
		}
	}
	return m
}

// count is how many moves of the block are held against another.
func (b *block) count() int { return int(b.moves) + turn*int((b.turns+turnDecay-1)/turnDecay) }

// trigger is how many strata must be touched before the block is looked at.
func (b *block) trigger() int {
	if b.level > 0 {
		return 1
	}
	return enough
}

func (b *block) anyTouched() bool { return b.touched[0].Load()|b.touched[1].Load() != 0 }

func (b *block) clear() {
	b.touched[0].Store(0)
	b.touched[1].Store(0)
	b.writes.Store(0)
}

// age lowers what was counted against the block as time goes by.
func (b *block) age(now, decay time.Duration) {
	for ; now-b.aged >= decay; b.aged += decay {
		if b.moves|b.level|b.wrong|b.turns == 0 {
			b.aged = now
			return
		}
		b.moves /= 2
		if b.turns > 0 {
			b.turns--
		}
		if b.level > 0 {
			b.level--
		}
		// What was proved wrong by a store is believed more slowly.
		if b.wrong > 0 && b.level == 0 {
			b.wrong--
		}
	}
}

// first is the first page of block i.
func first(i int) memory.PPN { return memory.PPN(i) * BlockPages }
