package vcpu

import (
	"sync"
	"sync/atomic"
	"time"
)

// How much of a guest is stopped.
const (
	open        = iota
	liveStopped // no guest code runs
	allStopped  // nor any relay, and none has anything left to pass on
)

// gate is where the threads of a set wait while the world is stopped.
type gate struct {
	level atomic.Int32 // written with mu held
	mu    sync.Mutex
	cond  sync.Cond // level has become open
}

// park waits while the gate is closed to level or beyond.
func (g *gate) park(b *incarnation, level int32) {
	if g.level.Load() < level {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.level.Load() >= level {
		b.parked.Store(true)
		g.cond.Wait()
	}
	b.parked.Store(false)
}

// set closes the gate to level, or opens it and lets all go on.
func (g *gate) set(level int32) {
	g.mu.Lock()
	g.level.Store(level)
	g.mu.Unlock()
	if level == open {
		g.cond.Broadcast()
	}
}

// Between two looks whether a thread is parked.
const (
	gatePoll     = 20 * time.Microsecond
	gatePollMost = 2 * time.Millisecond
)

// stopWorld parks every thread of the set that has not ended: first those that
// run the guest, and when those cannot send anything any more, the relays. A
// device access under way is finished first, however long it takes.
func (s *Set) stopWorld() {
	for level := int32(liveStopped); level <= allStopped; level++ {
		s.gate.set(level)
		for _, v := range s.vcpus {
			for _, b := range v.bodies {
				if level == allStopped || b == v.body() {
					s.stopThread(b)
				}
			}
		}
	}
}

func (s *Set) stopThread(b *incarnation) {
	for wait := gatePoll; !b.parked.Load() && b.tid.Load() != gone; wait = min(wait*2, gatePollMost) {
		b.kick()
		time.Sleep(wait)
	}
}
