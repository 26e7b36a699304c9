package vmm

import (
	"slices"
	"sync"
	"time"
)

// How often an observer looks: after lookSoon while anything runs, and up to
// lookLate while nothing does; never so often that it takes more than a hundredth
// of a CPU. It ends when nobody has asked for watchTime.
const (
	lookSoon  = 5 * time.Millisecond
	lookLate  = 20 * time.Millisecond
	lookCost  = 100
	watchTime = 30 * time.Second
)

// observer looks at how many vCPUs of each guest run, as long as somebody wants to
// know. The zero value looks at nothing.
type observer struct {
	mu      sync.Mutex // innermost
	until   time.Time
	closing chan struct{} // nil if it does not run
	ended   bool
}

// watch has the observer look at m's guests for a while.
func (o *observer) watch(m *Monitor) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	o.until = time.Now().Add(watchTime)
	if o.closing == nil {
		o.closing = make(chan struct{})
		go o.run(m, o.closing)
	}
}

// stop ends the observer for good, and does not wait for it: of a Monitor without
// guests it touches nothing.
func (o *observer) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	if o.closing != nil {
		close(o.closing)
		o.closing = nil
	}
}

// expired ends the observer if nobody has asked for long.
func (o *observer) expired(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.Before(o.until) {
		return false
	}
	o.closing = nil
	return true
}

func (o *observer) run(m *Monitor, closing chan struct{}) {
	wait := lookSoon
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		select {
		case <-closing:
			return
		case <-t.C:
		}
		now := time.Now()
		if o.expired(now) {
			return
		}
		wait = min(2*wait, lookLate)
		for _, g := range m.Guests() {
			if g.lookAt(now) {
				wait = lookSoon
			}
		}
		wait = max(wait, lookCost*time.Since(now))
		t.Reset(wait)
	}
}

// lookAt says whether any vCPU has run since the last look.
func (g *Guest) lookAt(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.machine
	if m == nil {
		return false
	}
	var used time.Duration
	for _, v := range m.vcpus {
		used += v.Used()
	}
	return m.parallel.add(now, used, len(m.vcpus))
}

// parallel is for how long how many vCPUs of a machine ran at once. What a look
// finds since the look before is taken as evenly spread: of 5 ms in which the vCPUs
// had 7 ms of CPU time, two ran in 2 ms and one in 3. So the mean is exact, and
// changes are seen that last longer than a look. Guest.mu guards it.
type parallel struct {
	at   time.Time     // of the last look
	used time.Duration // CPU time of all vCPUs, then
	hist []time.Duration
}

// gap is how long there may be no look before what came in between counts as not
// seen.
const gap = 2 * time.Second

// add counts a look; it says whether any ran.
func (p *parallel) add(now time.Time, used time.Duration, cpus int) bool {
	elapsed, ran := now.Sub(p.at), used-p.used
	first := p.at.IsZero()
	p.at, p.used = now, used
	if first || elapsed <= 0 || elapsed > gap || ran < 0 {
		return true
	}
	if p.hist == nil {
		p.hist = make([]time.Duration, cpus+1)
	}
	// Clocks are read one after the other.
	ran = min(ran, elapsed*time.Duration(cpus))
	n, rest := ran/elapsed, ran%elapsed
	p.hist[n] += elapsed - rest
	if rest > 0 {
		p.hist[n+1] += rest
	}
	return ran > 0
}

func (p *parallel) read() []time.Duration { return slices.Clone(p.hist) }
