package segment

import (
	"sync"
	"time"

	"disco/net/frame"
)

const (
	// maxLane is how many frames of one sender may wait for one receive queue.
	maxLane = 64
	// quantum is how many bytes a sender's waiting frames are given in turn.
	quantum = frame.MaxLen
)

// inlet is one receive queue of a port, and what waits for it. Senders take turns
// (deficit round robin), so one that sends more than there is room for takes
// nothing from the others.
type inlet struct {
	port  *Port
	queue int

	mu      sync.Mutex
	sink    frame.Sink // nil while there is none
	accept  frame.Offloads
	lanes   []*lane // one for each who ever waited
	waiting int     // frames, in all of them
	turn    int     // of lanes
	stuck   bool    // nothing was delivered since something came too late
	untold  bool    // the guest was not told of some frames
	timer   *time.Timer
	note    frame.Delivery
	finish  *finisher // once needed
}

// lane is what waits of one sender: a ring.
type lane struct {
	from         *end
	frames       [maxLane]waiting
	first, count int
	credit       int // bytes that may go in this turn
}

type waiting struct {
	frame *frame.Frame
	since time.Duration
}

func (l *lane) pop() *frame.Frame {
	f := l.frames[l.first].frame
	l.frames[l.first].frame = nil
	l.first = (l.first + 1) % maxLane
	l.count--
	return f
}

// give delivers a frame, or has it wait.
func (in *inlet) give(from *end, d *feed, f *frame.Frame, lent bool) (kept bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.waiting > 0 {
		in.drain()
	}
	v := frame.Full
	if in.waiting == 0 {
		v = in.deliver(f)
		if d.seat != nil && v == frame.Delivered {
			d.seat.copied(f.Len-in.note.Mapped, in.port.seat.Load())
		}
	}
	if in.untold {
		d.touch(in)
	}
	if v == frame.Full {
		return in.wait(from, f, lent)
	}
	in.refused(v)
	return false
}

// deliver hands a frame to the guest; mu is held.
func (in *inlet) deliver(f *frame.Frame) frame.Verdict {
	if in.sink == nil {
		return frame.Gone
	}
	in.note = frame.Delivery{}
	var v frame.Verdict
	if in.mustFinish(f) {
		v = in.deliverFinished(f)
	} else {
		v = in.sink.Deliver(in.queue, f, in.port.policy.say(f.Len, in.port.seg.now(), in.sink), &in.note)
	}
	if v == frame.Delivered {
		in.stuck, in.untold = false, true
		in.port.delivered(f.Len, &in.note)
		in.port.policy.mapped(in.note.Mapped)
	}
	return v
}

func (in *inlet) refused(v frame.Verdict) {
	switch v {
	case frame.TooLong:
		in.port.drop(TooLong)
	case frame.Gone:
		in.port.drop(Unplugged)
	case frame.Full:
		in.port.drop(Full)
	}
}

// wait puts a frame, or a copy of one that is lent, in its sender's lane; mu is
// held.
func (in *inlet) wait(from *end, f *frame.Frame, lent bool) (kept bool) {
	l := in.lane(from)
	if in.stuck || !from.present.Load() || l.count == maxLane {
		in.port.drop(Full)
		return false
	}
	if lent {
		if f = in.port.seg.copyOf(f); f == nil {
			in.port.drop(Full)
			return false
		}
	}
	l.frames[(l.first+l.count)%maxLane] = waiting{f, in.port.seg.now()}
	l.count++
	in.waiting++
	in.port.waited.Add(1)
	if in.waiting == 1 {
		in.arm(in.port.seg.patience)
	}
	return !lent
}

func (in *inlet) lane(from *end) *lane {
	for _, l := range in.lanes {
		if l.from == from {
			return l
		}
	}
	l := &lane{from: from}
	in.lanes = append(in.lanes, l)
	return l
}

// drain delivers what waits, as far as there is room; mu is held.
func (in *inlet) drain() {
	for in.waiting > 0 {
		if in.turn >= len(in.lanes) {
			in.turn = 0
		}
		l := in.lanes[in.turn]
		if l.count == 0 || l.credit <= 0 {
			// An empty lane saves nothing for later.
			if l.credit += quantum; l.count == 0 {
				l.credit = 0
			}
			in.turn++
			continue
		}
		f := l.frames[l.first].frame
		v := in.deliver(f)
		if v == frame.Full {
			return
		}
		l.credit -= f.Len
		in.waiting--
		l.pop().Done()
		in.refused(v)
	}
}

// ready delivers what waits, and tells the guest.
func (in *inlet) ready() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.drain()
	in.tell()
}

func (in *inlet) flush() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.tell()
}

func (in *inlet) tell() {
	if in.untold && in.sink != nil {
		in.sink.Flush(in.queue)
	}
	in.untold = false
}

// arm has expire called; mu is held.
func (in *inlet) arm(after time.Duration) {
	if in.timer == nil {
		in.timer = time.AfterFunc(after, in.expire)
		return
	}
	in.timer.Reset(after)
}

// expire drops what has waited too long.
func (in *inlet) expire() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.drain()
	in.tell()
	now := in.port.seg.now()
	oldest := now
	for _, l := range in.lanes {
		for l.count > 0 && now-l.frames[l.first].since >= in.port.seg.patience {
			l.pop().Done()
			in.waiting--
			in.stuck = true
			in.port.drop(Late)
		}
		if l.count > 0 {
			oldest = min(oldest, l.frames[l.first].since)
		}
	}
	if in.waiting > 0 {
		in.arm(oldest + in.port.seg.patience - now)
	}
}

// attach gives the inlet a device to deliver to, or nil. What waits is dropped with
// the device that it waited for.
func (in *inlet) attach(sink frame.Sink, accept frame.Offloads) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if sink != in.sink {
		for _, l := range in.lanes {
			in.empty(l)
		}
		in.stuck, in.untold = false, false
	}
	in.sink, in.accept = sink, accept
}

// forget drops what waits of a sender.
func (in *inlet) forget(from *end, forever bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for i, l := range in.lanes {
		if l.from != from {
			continue
		}
		in.empty(l)
		if forever {
			in.lanes = append(in.lanes[:i:i], in.lanes[i+1:]...)
		}
		return
	}
}

func (in *inlet) empty(l *lane) {
	for l.count > 0 {
		l.pop().Done()
		in.waiting--
		in.port.drop(Unplugged)
	}
	l.credit = 0
}
