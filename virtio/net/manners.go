package netdev

import (
	"sync"
	"time"
)

const (
	// sampleBytes are carried before what that took is compared. What goes from one
	// guest to another counts for both.
	sampleBytes = 2 << 20
	// The other way is tried after so many samples, and again after twice as many each
	// time that it was no better.
	leastSamples = 2
	mostSamples  = 1024
	// A trial takes so many.
	trialSamples = 4
	// What is carried after such a time without any is another stream.
	pause = 250 * time.Millisecond
)

// Manners are how the workers of one network's devices wait while much is carried: woken
// at once, or giving way to the guests.
//
// Where guests and workers have fewer CPUs than they could use, a worker that its guest
// has just woken takes the CPU from it, finds one frame, has the receiver woken for
// that one, and waits again: a kick, an interrupt and several switches for each frame.
// A worker that gives way finds all that the guest had to send until it halted. Where
// there are CPUs enough that gains nothing, and where others run for long before it is
// the worker's turn it loses. So both are tried, and the faster one is kept.
//
// It is tried by all at once: a stream has a worker at either end, of which one alone
// that gives way gains nothing. What the network carries as a whole is compared.
//
// The zero Manners are ready; they are for any number of devices of one monitor.
//
// Locks: mu, innermost.
type Manners struct {
	mu     sync.Mutex
	looked time.Time // when it was last said that much is carried
	better bool      // it is better to give way
	giving bool      // they do; else than better, that is a trial

	began   time.Time        // of the sample
	moved   int              // bytes since then
	changed bool             // before it: some of what it carried was under way in the other way
	took    [2]time.Duration // a sample, by whether they gave way; 0 for not known
	left    int              // samples until the way is changed
	period  int              // as many as there were to be from one trial to the next
}

// carried notes what a worker that carries much did since it said so last, and says
// whether to give way from now on. It does not allocate.
func (m *Manners) carried(bytes int) bool {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.looked) > pause {
		m.begin(now)
	} else {
		m.moved += bytes
	}
	m.looked = now
	if m.moved >= sampleBytes {
		m.learn(now.Sub(m.began) * sampleBytes / time.Duration(m.moved))
		m.began, m.moved = now, 0
	}
	return m.giving
}

// begin is for the beginning of a stream, which may be of another kind than the last.
func (m *Manners) begin(now time.Time) {
	m.giving, m.changed = m.better, true
	m.began, m.moved = now, 0
	if !m.better {
		m.period = leastSamples
	}
	m.left = m.period
}

// learn notes what a sample took in the way of now.
func (m *Manners) learn(took time.Duration) {
	if m.changed {
		m.changed = false
		return
	}
	mean := m.mean()
	if *mean == 0 {
		*mean = took
	}
	*mean += (took - *mean) / trialSamples
	if m.left--; m.left > 0 {
		return
	}
	eager, giving := m.took[0], m.took[1]
	switch {
	case m.giving == m.better: // time for a trial, which what was known before is not part of
		m.giving, m.left = !m.better, trialSamples
		*m.mean() = 0
		m.changed = true
	case m.giving && giving < eager*4/5, !m.giving && eager < giving:
		m.better, m.period = m.giving, 32*leastSamples
		m.left = m.period
	default:
		m.giving, m.period = m.better, min(2*m.period, mostSamples)
		m.left, m.changed = m.period, true
	}
}

// mean is what samples take in the way of now.
func (m *Manners) mean() *time.Duration {
	if m.giving {
		return &m.took[1]
	}
	return &m.took[0]
}
