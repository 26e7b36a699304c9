package netdev

import (
	"errors"
	"sync/atomic"

	"disco/memory"
	"disco/memory/arena"
	"disco/net/frame"
	"disco/virtio"
)

// Switch is a far end that brings frames from the transmit queues of a device to
// the receive queues of others by itself: the worker that takes a frame from a
// guest has it put into another's buffers before it takes the next.
//
// It holds locks of its own while it calls a Sink or a frame's Done. Within them
// only those of the receiving guest's memory are taken.
type Switch interface {
	// Queues is how many queue pairs there can be, at least 1.
	Queues() int
	// Offloads is what frames may carry, in both directions.
	Offloads() frame.Offloads
	// MTU is the largest IP packet in bytes, or 0 if the driver is to choose.
	MTU() int
	// Attach has frames for this device put into the first n receive queues of to
	// from now on, with no offloads but those in accept.
	Attach(n int, accept frame.Offloads, to frame.Sink) error
	// Send carries a frame that came from a transmit queue. If it is true the frame
	// was kept, for a receiver without room, until its Done is called. Send may wait
	// for what this device may send in a second.
	Send(queue int, f *frame.Frame) (kept bool)
	// Flush ends a batch of frames that were sent from a queue: their receivers are
	// told of them.
	Flush(queue int)
	// Ready says that a receive queue has buffers again.
	Ready(queue int)
	// Detach ends what Attach began: when it returns the Sink is not called any
	// more, all frames that were kept are done, and no more are kept. Sends that wait
	// return.
	Detach()
}

const (
	// maxKept is how many frames of one transmit queue may be on their way.
	maxKept = 128
	// maxHead is the longest head of a frame.
	maxHead = 256
	// A batch ends after so many frames, or bytes: their receivers work on them
	// meanwhile.
	sendBatch      = 32
	sendBatchBytes = 256 << 10
)

// packet is one frame on its way from the driver.
type packet struct {
	frame frame.Frame
	chain virtio.Chain
	head  [frame.HeaderLen + maxHead]byte
}

// sender carries frames from one transmit queue of the driver to a Switch.
type sender struct {
	net        *Net
	sw         Switch
	pair       int
	queue      *virtio.Queue
	made       int          // packets
	free       []*packet    // of them; the worker's
	back       chan *packet // were kept, and are done
	late       atomic.Int32 // how many of them came since the worker looked
	interrupts moderation
	courtesy   courtesy
	carried    int    // bytes sent since the last wait
	received   uint64 // by the device until then
}

func newSender(n *Net, pair int, q *virtio.Queue) *sender {
	return &sender{net: n, sw: n.sw, pair: pair, queue: q, back: make(chan *packet, maxKept), courtesy: courtesy{manners: n.manners}}
}

func (s *sender) run() {
	defer s.interrupts.end(s.queue)
	for {
		mark := s.queue.Begin()
		s.interrupts.look(s.queue)
		s.reap()
		for s.batch() {
			mark = s.queue.Lap(mark)
			s.reap()
		}
		s.queue.End(mark)
		s.giveWay()
		// With every packet kept the next that is done kicks.
		if !s.queue.Rest(s.spare()) {
			return
		}
	}
}

// giveWay decides for the wait that is next whether to give way.
func (s *sender) giveWay() {
	received := s.net.counters.receivedBytes.Load()
	give := s.courtesy.wait(s.carried + int(received-s.received))
	s.carried, s.received = 0, received
	if err := s.queue.GiveWay(give); err != nil {
		s.courtesy.never = true
		s.net.log.Debug("network device: a worker cannot give way", "queue", s.pair, "error", err)
	}
}

func (s *sender) spare() bool { return len(s.free) > 0 || s.made < maxKept }

// packet takes one that is free.
func (s *sender) packet() *packet {
	if n := len(s.free); n > 0 {
		p := s.free[n-1]
		s.free = s.free[:n-1]
		return p
	}
	if s.made == maxKept {
		return nil
	}
	s.made++
	p := new(packet)
	p.frame.Done = func() {
		s.back <- p
		if s.late.Add(1) == 1 {
			s.queue.Kick()
		}
	}
	return p
}

// reap gives the driver back what was kept and is done.
func (s *sender) reap() {
	some := false
	s.late.Store(0)
	for {
		select {
		case p := <-s.back:
			s.finish(p)
			some = true
			continue
		default:
		}
		break
	}
	if some {
		s.interrupts.flush(s.queue)
	}
}

func (s *sender) finish(p *packet) {
	s.queue.Done(&p.chain, 0)
	s.free = append(s.free, p)
}

// batch sends what is there, up to a point, and says whether there was any.
func (s *sender) batch() bool {
	n, bytes := 0, 0
	for n < sendBatch && bytes < sendBatchBytes {
		p := s.packet()
		if p == nil {
			break
		}
		if !s.queue.NextLoan(&p.chain) {
			s.free = append(s.free, p)
			break
		}
		n++
		kept := s.take(p) && s.sw.Send(s.pair, &p.frame)
		bytes += p.frame.Len
		if !kept {
			s.finish(p)
		}
	}
	if n == 0 {
		return false
	}
	s.carried += bytes
	s.sw.Flush(s.pair)
	if n == 1 && bytes <= moderateBytes {
		s.interrupts.show(s.queue)
	} else {
		s.interrupts.flush(s.queue)
	}
	return true
}

// take makes the frame of a chain, false if there is none that may be sent. Its
// header and its head are copied before they are looked at, and it is the copies
// that are sent.
func (s *sender) take(p *packet) bool {
	f := &p.frame
	f.Pieces, f.Len = f.Pieces[:0], 0
	total := 0
	for i := range p.chain.Loans {
		total += len(p.chain.Loans[i].Bytes)
	}
	if total < frame.HeaderLen {
		s.queue.Fail(errors.New("a frame without its header"))
		return false
	}
	counters := &s.net.counters
	n := total - frame.HeaderLen
	head := p.head[:copyHead(p.head[:], p.chain.Loans, n)]
	f.Header = frame.Parse(head)
	if f.Header.Check(n, s.net.allowed) != nil {
		counters.sendRefused.Add(1)
		return false
	}
	f.Len = n
	f.Pieces = append(f.Pieces, memory.Loan{Bytes: head[frame.HeaderLen:]})
	skip := len(head)
	for i := range p.chain.Loans {
		l := &p.chain.Loans[i]
		if skip >= len(l.Bytes) {
			skip -= len(l.Bytes)
			continue
		}
		f.Pieces = join(f.Pieces, memory.Loan{Bytes: l.Bytes[skip:], Run: l.Run, Offset: l.Offset + skip})
		skip = 0
	}
	counters.sent.Add(1)
	counters.sentBytes.Add(uint64(n))
	return true
}

// copyHead copies the header and the head of a frame of n bytes to dst, and says
// how much that is. The head ends with the first buffer that has enough of it, so
// that no page of what comes after is cut.
func copyHead(dst []byte, loans []memory.Loan, n int) int {
	const enough = frame.HeaderLen + frame.HeadLen
	most := min(len(dst), frame.HeaderLen+n)
	done := 0
	for i := range loans {
		if done >= enough || done == most {
			break
		}
		done += copy(dst[done:most], loans[i].Bytes)
	}
	return done
}

// join appends a piece. Pages of a pool that follow one another become one piece.
func join(dst []memory.Loan, l memory.Loan) []memory.Loan {
	if n := len(dst) - 1; n >= 0 && l.Run.Arena != nil && dst[n].Run.Arena == l.Run.Arena {
		last := &dst[n]
		end := last.Run.Page*arena.PageSize + uint64(last.Offset+len(last.Bytes))
		if l.Run.Page*arena.PageSize+uint64(l.Offset) == end {
			start := last.Run.Page*arena.PageSize + uint64(last.Offset)
			last.Bytes = l.Run.Arena.Bytes()[start : end+uint64(len(l.Bytes))]
			return dst
		}
	}
	return append(dst, l)
}

// listener tells a Switch when a receive queue has buffers that it waits for.
type listener struct {
	net   *Net
	pair  int
	queue *virtio.Queue
}

func (l *listener) run() {
	for l.queue.Heard() {
		mark := l.queue.Begin()
		l.net.sw.Ready(l.pair)
		l.queue.End(mark)
	}
}
