package netdev

import (
	"sync/atomic"
	"time"

	"disco/virtio"
)

// A driver is interrupted for a frame that was sent so that it frees what that lay
// in. For one small frame this is not urgent, and its guest has often gone idle, to
// wait for an answer. Linux's driver looks for such frames whenever it sends the next
// or is given one, too. So the interrupt is put off: if there is an answer, one of a
// message's two interrupts is saved, and one of the two times that its guest wakes up.
const (
	// calmBytes is the longest frame whose interrupt is put off.
	calmBytes = 4 << 10
	// calmTime is for how long.
	calmTime = 10 * time.Millisecond
	// After an interrupt that was put off in vain so many are not, twice as many after
	// the next such one, and one less for each that was saved: somebody may wait for
	// them (a queue limit of Linux's, a packet socket).
	leastPenalty = 16
	mostPenalty  = 4 << 10
)

// calm puts interrupts of one transmit queue off. It is the worker's.
type calm struct {
	since   time.Time // when one was put off; zero if none is
	timer   *time.Timer
	ticking atomic.Bool
	penalty int // of the last that was put off in vain
	skip    int // how many are not put off
}

// show gives a frame back, and puts its interrupt off unless one is put off already
// that the driver still needs.
func (c *calm) show(q *virtio.Queue) {
	skip := c.skip > 0
	if skip {
		c.skip--
	}
	q.Show()
	if skip || !q.EventIndex() || q.Untold() > 1 {
		c.flush(q)
		return
	}
	c.since = time.Now()
	c.arm(q, calmTime)
}

// flush gives frames back, and puts nothing off.
func (c *calm) flush(q *virtio.Queue) {
	q.Flush()
	c.since = time.Time{}
}

// look interrupts for what was put off for too long.
func (c *calm) look(q *virtio.Queue) {
	if c.since.IsZero() {
		return
	}
	left := calmTime - time.Since(c.since)
	switch {
	case q.Untold() == 0:
		c.since = time.Time{}
		c.penalty = max(c.penalty-1, 0)
	case left > 0:
		c.arm(q, left)
	default:
		c.penalty = min(max(leastPenalty, 2*c.penalty), mostPenalty)
		c.skip = c.penalty
		c.flush(q)
	}
}

// arm wakes the worker up to look. The timer is not set anew for each frame: where
// there is always another the worker looks too early, and again later.
func (c *calm) arm(q *virtio.Queue, after time.Duration) {
	if c.ticking.Swap(true) {
		return
	}
	if c.timer == nil {
		c.timer = time.AfterFunc(after, func() {
			c.ticking.Store(false)
			q.Kick()
		})
		return
	}
	c.timer.Reset(after)
}

// end is for when the worker ends: nothing stays put off.
func (c *calm) end(q *virtio.Queue) {
	if c.timer != nil {
		c.timer.Stop()
	}
	c.flush(q)
}
