package vcpu

import (
	"fmt"
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
	level  atomic.Int32 // written with mu held
	mu     sync.Mutex
	cond   sync.Cond // level has become open, or the last has left
	inside int       // threads that wait
}

// park waits while the gate is closed to level or beyond.
func (g *gate) park(b *incarnation, level int32) {
	if g.level.Load() < level {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.level.Load() < level {
		return
	}
	b.parked.Store(true)
	g.inside++
	for g.level.Load() >= level {
		g.cond.Wait()
	}
	b.parked.Store(false)
	if g.inside--; g.inside == 0 {
		g.cond.Broadcast()
	}
}

// set closes the gate to level.
func (g *gate) set(level int32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.level.Store(level)
}

// reopen lets all go on, and returns when they have left: a relay that waited
// may have got something to pass on, and must not be taken for idle when the
// world stops again.
func (g *gate) reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.level.Store(open)
	g.cond.Broadcast()
	for g.inside > 0 {
		g.cond.Wait()
	}
}

// Between two looks whether a thread is parked; and how long a relay may take to
// pass on what it has, which is a matter of microseconds unless the guest has
// destroyed what it stands on.
const (
	gatePoll     = 20 * time.Microsecond
	gatePollMost = 2 * time.Millisecond
	relayRest    = 5 * time.Second
)

// stopWorld parks every thread of the set that has not ended: first those that
// run the guest, and when those cannot send anything any more, the relays. A
// device access under way is finished first, however long it takes. The caller
// reopens the gate, also after an error.
func (s *Set) stopWorld() error {
	for level := int32(liveStopped); level <= allStopped; level++ {
		s.gate.set(level)
		for _, v := range s.vcpus {
			for _, b := range v.bodies {
				live := b == v.body()
				if live != (level == liveStopped) {
					continue
				}
				end := time.Now().Add(relayRest)
				for wait := gatePoll; !b.parked.Load() && b.tid.Load() != gone; wait = min(wait*2, gatePollMost) {
					if !live && time.Now().After(end) {
						return fmt.Errorf("the relay of vCPU %d in KVM VM %d does not come to rest", v.id, b.vm)
					}
					b.kick()
					time.Sleep(wait)
				}
			}
		}
	}
	return nil
}
