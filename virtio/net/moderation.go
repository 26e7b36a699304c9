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
	// moderateBytes is the longest frame whose interrupt is put off.
	moderateBytes = 4 << 10
	// moderateTime is for how long, and moderateLong after moderateTrust were saved in a
	// row: to wake up and look costs more than a message's other interrupt.
	moderateTime  = 10 * time.Millisecond
	moderateLong  = 50 * time.Millisecond
	moderateTrust = 64
	// After an interrupt that was put off in vain so many are not, twice as many after
	// the next such one, and one less for each that was saved: somebody may wait for
	// them (a queue limit of Linux's, a packet socket).
	leastPenalty = 16
	mostPenalty  = 4 << 10
)

// moderation puts interrupts of one transmit queue off. It is the worker's.
type moderation struct {
	since   time.Time // when one was put off; zero if none is
	timer   *time.Timer
	ticking atomic.Bool
	saved   int // in a row
	penalty int // of the last that was put off in vain
	skip    int // how many are not put off
}

// show gives a frame back, and puts its interrupt off unless one is put off already
// that the driver still needs.
func (m *moderation) show(q *virtio.Queue) {
	skip := m.skip > 0
	if skip {
		m.skip--
	}
	q.Show()
	if skip || !q.EventIndex() || q.Untold() > 1 {
		m.flush(q)
		return
	}
	m.since = time.Now()
	m.arm(q, m.patience())
}

// patience is for how long an interrupt is put off.
func (m *moderation) patience() time.Duration {
	if m.saved >= moderateTrust {
		return moderateLong
	}
	return moderateTime
}

// flush gives frames back, and puts nothing off.
func (m *moderation) flush(q *virtio.Queue) {
	q.Flush()
	m.since = time.Time{}
}

// look interrupts for what was put off for too long.
func (m *moderation) look(q *virtio.Queue) {
	if m.since.IsZero() {
		return
	}
	left := m.patience() - time.Since(m.since)
	switch {
	case q.Untold() == 0:
		m.since = time.Time{}
		m.saved++
		m.penalty = max(m.penalty-1, 0)
	case left > 0:
		m.arm(q, left)
	default:
		m.penalty = min(max(leastPenalty, 2*m.penalty), mostPenalty)
		m.skip, m.saved = m.penalty, 0
		m.flush(q)
	}
}

// arm wakes the worker up to look. The timer is not set anew for each frame: where
// there is always another the worker looks too early, and again later.
func (m *moderation) arm(q *virtio.Queue, after time.Duration) {
	if m.ticking.Swap(true) {
		return
	}
	if m.timer == nil {
		m.timer = time.AfterFunc(after, func() {
			m.ticking.Store(false)
			q.Kick()
		})
		return
	}
	m.timer.Reset(after)
}

// end is for when the worker ends: nothing stays put off.
func (m *moderation) end(q *virtio.Queue) {
	if m.timer != nil {
		m.timer.Stop()
	}
	m.flush(q)
}
