package segment

import (
	"sync"
	"time"

	"disco/memory/arena"
	"disco/net/frame"
)

// Mode says when pages are mapped into a receiver in place of copying them.
type Mode int

const (
	// MapAuto is when it will probably pay: runs of some pages, while there are
	// mappings left for the process, and not for a while to a guest that soon writes
	// to what it was given.
	MapAuto Mode = iota
	// MapAlways is whenever it can be done.
	MapAlways
	// MapNever is not at all.
	MapNever
)

func (m Mode) String() string { return [...]string{"auto", "always", "never"}[m] }

// What MapAuto goes by.
const (
	leastRun     = 2   // pages that follow one another
	leastCrowded = 8   // the same, when half of the process' mappings are taken
	sample       = 512 // pages mapped, of which half may be written to soon

	shortPause = time.Second
	longPause  = 64 * time.Second
)

// policy decides for one port.
type policy struct {
	mode Mode

	mu     sync.Mutex
	pages  uint64        // mapped since the last look
	seen   uint64        // what Collapsed said then
	until  time.Duration // nothing is mapped so long
	pause  time.Duration // the last
	pauses uint64
}

// say is what to do with a frame of n bytes.
func (y *policy) say(n int, now time.Duration, sink frame.Sink) frame.Policy {
	switch {
	case y.mode == MapNever:
		return frame.Policy{Why: frame.Off}
	case y.mode == MapAlways:
		return frame.Policy{Least: 1}
	case n < leastRun*arena.PageSize:
		return frame.Policy{Why: frame.Short}
	}
	least := leastRun
	switch used, limit := arena.VMAs.Used(), arena.VMAs.Limit(); {
	case used > limit/4*3:
		return frame.Policy{Why: frame.Refused}
	case used > limit/2:
		least = leastCrowded
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.pages >= sample {
		collapsed := sink.Collapsed()
		bad := collapsed - min(y.seen, collapsed) // a guest that was restarted begins anew
		if bad > y.pages/2 {
			y.pause = min(max(2*y.pause, shortPause), longPause)
			y.until = now + y.pause
			y.pauses++
		} else if now > y.until+4*y.pause {
			y.pause = 0
		}
		y.pages, y.seen = 0, collapsed
	}
	if now < y.until {
		return frame.Policy{Why: frame.Paused}
	}
	return frame.Policy{Least: least}
}

// mapped notes how many bytes were mapped.
func (y *policy) mapped(n int) {
	if n > 0 && y.mode == MapAuto {
		y.mu.Lock()
		y.pages += uint64(n) / arena.PageSize
		y.mu.Unlock()
	}
}
