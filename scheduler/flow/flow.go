// Package flow divides by tickets what several guests use at the same time and what
// takes only so many requests at once: a disk, the way out of a network.
//
// A [Gate] lets requests through to it. As long as it has room for all, that is one
// atomic addition for a request; when it is full, the requests of each [Flow] wait
// in line, and whose turn it is goes by start-time fair queueing: every request
// begins, in virtual time, where the flow's last one ended or at the time that it
// is, and lasts its cost divided by the flow's weight; the one that begins first is
// first. Flows that always have requests waiting are served by their weights, with
// an error of a request each, and what a flow does not use it does not save up.
//
// Two things make that work for flows that are served by one worker, which has its
// next request only after the last is done:
//
//   - The gate waits a moment for a flow that has just been served, would be next,
//     and has been quick to return so far. Otherwise two such flows would be served
//     in turns, whatever their weights.
//   - It finds out how many requests at once do more than fewer do: a disk that does
//     one after the other is full with one.
//
// Sources: Goyal, Vin and Cheng, "Start-time Fair Queuing" (SIGCOMM'96); Jin, Chase
// and Kaur, "Interposed Proportional Sharing for a Storage Service Utility"
// (SIGMETRICS'04) for several at once; Iyer and Druschel, "Anticipatory scheduling"
// (SOSP'01).
//
// Not done here: what a guest's tickets are worth, limits (package disk/limit), and
// requests too short for a wait to be worth it: see [Config].
//
// Locks: Gate.mu, innermost.
package flow

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// Config says how many requests at once a Gate has room for.
type Config struct {
	// Depth is how many; 0 finds out from how long they take, between 1 and
	// MaxDepth. Then requests that take less than Short on average all go through:
	// to wait would take longer.
	Depth int
	// Rate is how many units of cost may go through in a second, one request after
	// another: see Flow.Owing. 0 is as many as do.
	Rate uint64
}

const (
	// MaxDepth bounds how many requests at once a Gate finds room for by itself.
	MaxDepth = 16
	// Short is how long a request takes that nobody waits for.
	Short = 50 * time.Microsecond
	// patience is for how long a Gate waits for a flow to return, at most.
	patience = 200 * time.Microsecond
)

// Gate is a way through which flows share something. Its methods may be called from
// any goroutine.
type Gate struct {
	inside atomic.Int64 // requests between Enter and Done

	mu       sync.Mutex
	waiting  int64   // of those inside
	waiters  []*Flow // flows with requests that wait
	now      uint64  // virtual time: when the last request that was let through began
	depth    int64   // Config.Depth, or MaxDepth
	knee     *knee   // or nil
	expected *Flow   // that room is kept for
	until    int64   // and for how long
	timer    *time.Timer
	unused   *waiter // and those after it
	pace     pace
}

// Flow is one guest's requests to a Gate. Its methods may be called from any
// goroutine.
type Flow struct {
	gate *Gate

	// Guarded by Gate.mu:
	weight      uint64
	end         uint64 // in virtual time, of the last request that came
	first, last *waiter
	hurry       bool
	left        int64 // when a request was done last, in ns of the clock; 0 for not known
	think       int64 // how long it takes to return as a rule
}

// waiter is a request that waits.
type waiter struct {
	next  *waiter
	start uint64
	level int64
	ready chan struct{} // of one element
}

// Pass is what Enter gives to a request and Done takes.
type Pass struct {
	at    int64 // when it was let through; 0 for not timed
	cost  int64
	level int64 // with how many others, and itself
}

// New makes a Gate without flows.
func New(c Config) *Gate {
	g := &Gate{depth: int64(c.Depth), pace: pace{rate: c.Rate}}
	switch {
	case c.Rate > 0:
		g.depth = 1
	case c.Depth <= 0:
		g.depth, g.knee = MaxDepth, &knee{}
	}
	g.timer = time.AfterFunc(time.Hour, g.giveUp)
	g.timer.Stop()
	return g
}

// NewFlow makes a Flow with a weight, which is of the unit of scheduler.Client's.
// There is nothing to close.
func (g *Gate) NewFlow(weight uint64) *Flow { return &Flow{gate: g, weight: max(weight, 1)} }

// SetWeight changes the weight for requests that come from now on.
func (f *Flow) SetWeight(weight uint64) {
	f.gate.mu.Lock()
	f.weight = max(weight, 1)
	f.gate.mu.Unlock()
}

// began is when the clock of this package began.
var began = time.Now()

// clock is monotonic, in ns, and not 0, as what is 0 is not known. It differs by the
// same from the time that timers go by always: they would come too soon for it.
func clock() int64 { return int64(time.Since(began)) + 1 }

// Enter waits for the turn of a request of a cost, in any unit that is the same for
// all flows of the Gate, 1 to 2^33. The caller has to call Done. It does not
// allocate.
func (f *Flow) Enter(cost int64) Pass {
	g := f.gate
	if g.inside.Add(1) == 1 {
		return Pass{}
	}
	g.mu.Lock()
	now := clock()
	f.returned(now)
	start := f.begin(g.now, cost)
	running := g.inside.Load() - g.waiting - 1
	expected := g.expected == f
	if expected {
		g.expected = nil
	}
	if f.hurry || expected || g.waiting == 0 && running < g.room() {
		g.pass(start)
		g.mu.Unlock()
		return Pass{now, cost, running + 1}
	}
	w := g.unused
	if w == nil {
		w = &waiter{ready: make(chan struct{}, 1)}
	} else {
		g.unused = w.next
	}
	w.next, w.start = nil, start
	f.push(w)
	g.waiting++
	g.dispatch(nil, now)
	g.mu.Unlock()
	<-w.ready
	p := Pass{clock(), cost, w.level}
	g.mu.Lock()
	w.next, g.unused = g.unused, w
	g.mu.Unlock()
	return p
}

// Done ends a request that Enter let through. It does not allocate.
func (f *Flow) Done(p Pass) {
	g := f.gate
	if g.inside.Add(-1) == 0 {
		return
	}
	g.mu.Lock()
	now := clock()
	f.left = now
	if p.at != 0 && g.knee != nil {
		g.knee.learn(p.level, g.inside.Load()-g.waiting+1, now-p.at, p.cost)
	}
	if g.waiting > 0 {
		g.dispatch(f, now)
	}
	g.mu.Unlock()
}

// Hurry has the flow's requests not wait any more, or again: a device is stopped so.
func (f *Flow) Hurry(on bool) {
	g := f.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	f.hurry = on
	for on && f.first != nil {
		g.let(f)
	}
}

// returned notes how long the flow took to come back.
func (f *Flow) returned(now int64) {
	if f.left != 0 {
		f.think += (min(now-f.left, int64(time.Second)) - f.think) / 4
		f.left = 0
	}
}

// begin is when a request begins in virtual time, and moves the flow to its end.
func (f *Flow) begin(now uint64, cost int64) uint64 {
	const scale = 1 << 30
	start := f.end
	if int64(now-start) > 0 {
		start = now
	}
	hi, lo := bits.Mul64(uint64(min(max(cost, 1), 1<<33)), scale)
	if hi >= f.weight {
		hi, lo = 0, 1<<63
	}
	length, _ := bits.Div64(hi, lo, f.weight)
	f.end = start + max(min(length, 1<<53), 1)
	return start
}

// room is how many requests at once there is room for.
func (g *Gate) room() int64 {
	if g.knee != nil {
		return g.knee.room()
	}
	return g.depth
}

// pass lets virtual time go on to where a request began.
func (g *Gate) pass(start uint64) {
	if int64(start-g.now) > 0 {
		g.now = start
	}
}

// push puts a request at the end of the flow's line.
func (f *Flow) push(w *waiter) {
	if f.first == nil {
		f.first = w
		f.gate.waiters = append(f.gate.waiters, f)
	} else {
		f.last.next = w
	}
	f.last = w
}

// dispatch lets through who is next while there is room, but keeps room for a moment
// for the flow that has just been served if it is that.
func (g *Gate) dispatch(served *Flow, now int64) {
	for g.waiting > 0 && g.running() < g.room() {
		next := g.waiters[0]
		for _, f := range g.waiters[1:] {
			if int64(f.first.start-next.first.start) < 0 {
				next = f
			}
		}
		if served != nil && g.expected == nil && g.expect(served, next, now) {
			continue
		}
		g.let(next)
	}
}

// running is how many requests were let through and are not done, and those that
// room is kept for.
func (g *Gate) running() int64 {
	n := g.inside.Load() - g.waiting
	if g.expected != nil {
		n++
	}
	return n
}

// expect keeps room for a flow that returns soon and would be before next.
func (g *Gate) expect(served, next *Flow, now int64) bool {
	limit := int64(patience)
	if g.knee != nil {
		limit = min(limit, g.knee.service/2)
	}
	if served.first != nil || served.think > limit || int64(served.end-next.first.start) >= 0 {
		return false
	}
	g.expected, g.until = served, now+limit
	g.timer.Reset(time.Duration(limit))
	return true
}

// giveUp ends the wait for a flow that has not returned.
func (g *Gate) giveUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := clock()
	if g.expected == nil || now < g.until { // for one before
		return
	}
	// Not again before it has been quick.
	g.expected.think = max(g.expected.think, 2*int64(patience))
	g.expected = nil
	g.dispatch(nil, now)
}

// let lets the first request of a flow through.
func (g *Gate) let(f *Flow) {
	w := f.first
	if f.first = w.next; f.first == nil {
		for i, o := range g.waiters {
			if o == f {
				g.waiters = append(g.waiters[:i], g.waiters[i+1:]...)
				break
			}
		}
	}
	g.waiting--
	g.pass(w.start)
	w.level = g.inside.Load() - g.waiting
	w.ready <- struct{}{}
}
