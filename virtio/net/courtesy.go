package netdev

import "time"

// Where guests and workers have fewer CPUs than they could use, a worker that its guest
// has just woken takes the CPU from it, finds one frame, has the receiver woken for
// that one, and waits again: a kick, an interrupt and several switches for each frame.
// A worker that gives way (virtio.Queue.GiveWay) finds all that the guest had to send
// until it halted. For a few messages that is not worth changing a thread's policy,
// where there are CPUs enough it gains nothing, and where others run for long before it
// is the worker's turn it loses. So it is done only while much is carried, and only if
// that turns out to be much the faster way.
const (
	// After so many waits it is looked at how much was carried, and from so many bytes
	// on that is much.
	lookWaits = 4
	lookBytes = 64 << 10
	// sampleBytes are carried before what that took is compared.
	sampleBytes = 1 << 20
	// The other way is tried after so many samples, and again after twice as many each
	// time that it was no better.
	leastSamples = 2
	mostSamples  = 1024
	// A trial takes so many.
	trialSamples = 4
	// What is carried after such a time without a look is another stream.
	pause = 250 * time.Millisecond
)

// courtesy decides when the worker of one queue gives way. It is the worker's.
type courtesy struct {
	never bool // it cannot

	waits, bytes int // since it was looked at
	looked       time.Time

	busy   bool // much is carried
	better bool // it is better to give way
	giving bool // while much is carried it does; else than better, that is a trial

	began   time.Time        // of the sample
	moved   int              // since then
	changed bool             // before it: some of what it carried was under way in the other way
	took    [2]time.Duration // a sample, by whether it gave way; 0 for not known
	left    int              // samples until the way is changed
	period  int              // as many as there were to be from one trial to the next
}

// wait says whether to give way in the wait that is next, when so many bytes were
// carried since the last one.
func (c *courtesy) wait(bytes int) bool {
	if c.never {
		return false
	}
	c.bytes += bytes
	if c.waits++; c.waits < lookWaits {
		return c.busy && c.giving
	}
	bytes = c.bytes
	c.waits, c.bytes = 0, 0
	if bytes < lookBytes {
		c.busy = false
		return false
	}
	now := time.Now()
	if !c.busy || now.Sub(c.looked) > pause {
		c.begin(now)
	} else {
		c.moved += bytes
	}
	c.looked = now
	if c.moved >= sampleBytes {
		c.learn(now.Sub(c.began) * sampleBytes / time.Duration(c.moved))
		c.began, c.moved = now, 0
	}
	return c.giving
}

// begin is for the beginning of a stream, which may be of another kind than the last.
func (c *courtesy) begin(now time.Time) {
	c.busy, c.giving, c.changed = true, c.better, true
	c.began, c.moved = now, 0
	if !c.better {
		c.period = leastSamples
	}
	c.left = c.period
}

// learn notes what a sample took in the way of now.
func (c *courtesy) learn(took time.Duration) {
	if c.changed {
		c.changed = false
		return
	}
	mean := c.mean()
	if *mean == 0 {
		*mean = took
	}
	*mean += (took - *mean) / trialSamples
	if c.left--; c.left > 0 {
		return
	}
	eager, giving := c.took[0], c.took[1]
	switch {
	case c.giving == c.better: // time for a trial, which what was known before is not part of
		c.giving, c.left = !c.better, trialSamples
		*c.mean() = 0
		c.changed = true
	case c.giving && giving < eager*4/5, !c.giving && eager < giving:
		c.better, c.period = c.giving, 32*leastSamples
		c.left = c.period
	default:
		c.giving, c.period = c.better, min(2*c.period, mostSamples)
		c.left, c.changed = c.period, true
	}
}

// mean is what samples take in the way of now.
func (c *courtesy) mean() *time.Duration {
	if c.giving {
		return &c.took[1]
	}
	return &c.took[0]
}
