package segment

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"disco/memory/arena"
	"disco/net/frame"
	"disco/scheduler/flow"
)

// PortConfig says what port to make.
type PortConfig struct {
	Name string
	// MAC is the guest's address, and the only one that it may send from.
	MAC [6]byte
	// Map says what of the frames for the guest is mapped.
	Map Mode
	// Rate is the most that the guest may send, in bytes a second; 0 for all.
	Rate uint64
	// Turns, if not nil, is the guest's part of what all on the segment may send
	// together, a flow of a Gate with a rate.
	Turns *flow.Flow
	// Queues is how many queue pairs there are, 1 to MaxQueues; 0 for 1.
	Queues int
	// Trusted guests may send from any address, and get frames for addresses that
	// were seen behind them, or nowhere.
	Trusted bool
}

// Port is where a guest's network device is plugged in (netdev.Switch).
type Port struct {
	end
	queues int
	policy policy
	limit  *rate.Limiter // or nil
	turns  *flow.Flow    // or nil
	inlets []*inlet      // by queue
	feeds  []feed        // by queue
	active atomic.Int32  // queues
	seat   atomic.Pointer[Seat]
	// steer is the queue that a flow was sent from last, plus 1: it is received there
	// (virtio 1.2 §5.1.6.5.5).
	steer [256]atomic.Uint32

	mu      sync.Mutex
	halt    atomic.Pointer[chan struct{}] // closed while detached
	sink    frame.Sink                    // the device, nil if there is none
	last    uint64                        // what Collapsed said last
	written uint64                        // pages: the sum of what it has grown by
}

// leastBurst is what may be sent at once in any case, in bytes.
const leastBurst = 2 * frame.MaxLen

// Connect makes a port. The caller owns it, and closes it after the last Detach.
func (s *Segment) Connect(c PortConfig) (*Port, error) {
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Queues < 0 || c.Queues > MaxQueues {
		return nil, fmt.Errorf("segment %s: %s: %d queue pairs: there can be 1 to %d", s.name, c.Name, c.Queues, MaxQueues)
	}
	if c.Map < MapAuto || c.Map > MapNever {
		return nil, fmt.Errorf("segment %s: %s: no way %d of mapping", s.name, c.Name, c.Map)
	}
	p := &Port{
		end:    end{seg: s, name: c.Name, mac: c.MAC, trusted: c.Trusted},
		queues: c.Queues, turns: c.Turns, policy: policy{mode: c.Map}, feeds: make([]feed, c.Queues),
	}
	p.outlet = p
	if c.Rate > 0 {
		p.limit = rate.NewLimiter(rate.Limit(c.Rate), int(max(leastBurst, min(c.Rate/10, 1<<30))))
	}
	for i := range c.Queues {
		p.inlets = append(p.inlets, &inlet{port: p, queue: i})
		if s.runOn != nil {
			p.feeds[i].seat = new(seating)
		}
	}
	halted := make(chan struct{})
	close(halted)
	p.halt.Store(&halted)
	if err := s.join(&p.end); err != nil {
		return nil, err
	}
	return p, nil
}

// Close unplugs a port.
func (p *Port) Close() error {
	p.Detach()
	if err := p.seg.leave(&p.end); err != nil {
		return err
	}
	p.recall(true)
	return nil
}

// Lease says that an IP address is the port's: no other may claim it in ARP, and
// this one no other address. What it was of another end it is no more.
func (p *Port) Lease(ip netip.Addr) { p.lease(ip) }

// Queues is how many queue pairs there are (netdev.Switch).
func (p *Port) Queues() int { return p.queues }

// Offloads is all there are (netdev.Switch).
func (p *Port) Offloads() frame.Offloads { return offloads }

// MTU is the segment's (netdev.Switch).
func (p *Port) MTU() int { return p.seg.mtu }

// Attach plugs a device in (netdev.Switch).
func (p *Port) Attach(n int, accept frame.Offloads, to frame.Sink) error {
	if n < 1 || n > p.queues {
		return fmt.Errorf("segment %s: %s: %d queue pairs of %d", p.seg.name, p.name, n, p.queues)
	}
	if to == nil {
		return errors.New("segment: no device to attach")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, in := range p.inlets {
		if i < n {
			in.attach(to, accept)
		} else {
			in.attach(nil, 0)
		}
	}
	p.active.Store(int32(n))
	p.sink = to
	if !p.present.Load() {
		// There are no workers yet.
		for i := range p.feeds {
			if p.feeds[i].seat != nil {
				*p.feeds[i].seat = seating{}
			}
		}
		halt := make(chan struct{})
		p.halt.Store(&halt)
		p.present.Store(true)
		p.hurry(false)
	}
	return nil
}

// Detach unplugs the device (netdev.Switch).
func (p *Port) Detach() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.present.Swap(false) {
		return
	}
	close(*p.halt.Load())
	p.hurry(true)
	p.collapsed()
	p.sink = nil
	for _, in := range p.inlets {
		in.attach(nil, 0)
	}
	p.recall(false)
}

// recall has what waits of this port's frames done.
func (p *Port) recall(forever bool) { p.seg.recall(&p.end, forever) }

func (s *Segment) recall(from *end, forever bool) {
	for _, e := range *s.ends.Load() {
		if p, ok := e.outlet.(*Port); ok {
			for _, in := range p.inlets {
				in.forget(from, forever)
			}
		}
	}
}

// Send carries a frame from one of the guest's transmit queues (netdev.Switch).
func (p *Port) Send(queue int, f *frame.Frame) (kept bool) {
	d := &p.feeds[queue]
	if p.limit != nil {
		p.pay(d, f.Len)
	}
	if p.turns != nil {
		d.flush()
		turn := p.turns.Enter(int64(f.Len))
		p.wait(d, p.turns.Owing(int64(f.Len)))
		p.turns.Done(turn)
	}
	return p.seg.send(&p.end, d, f, queue, false)
}

// Flush tells the receivers of what was sent (netdev.Switch).
func (p *Port) Flush(queue int) {
	d := &p.feeds[queue]
	d.flush()
	if d.seat == nil {
		return
	}
	if err := d.seat.settle(p.seg.now(), p.seg.runOn); err != nil {
		p.seg.log.Warn("what a guest sends is copied on any node", "port", p.name, "err", err)
	}
}

// Sit says where the guest runs, or nil if it runs on several nodes: workers of others
// that copy much to it go there. The caller leaves the seat as it is.
func (p *Port) Sit(s *Seat) { p.seat.Store(s) }

// pay waits until the rate allows for n more bytes.
func (p *Port) pay(d *feed, n int) {
	now := time.Now()
	r := p.limit.ReserveN(now, n)
	p.wait(d, r.DelayFrom(now))
}

// hurry has what waits for its turn wait no more, or again.
func (p *Port) hurry(on bool) {
	if p.turns != nil {
		p.turns.Hurry(on)
	}
}

// wait waits, but not for a device that is unplugged.
func (p *Port) wait(d *feed, wait time.Duration) {
	if wait <= 0 {
		return
	}
	p.throttled.Add(1)
	d.flush()
	if d.timer == nil {
		d.timer = time.NewTimer(wait)
	} else {
		d.timer.Reset(wait)
	}
	select {
	case <-d.timer.C:
	case <-*p.halt.Load():
		d.timer.Stop()
	}
}

// Ready delivers what waits for a receive queue (netdev.Switch).
func (p *Port) Ready(queue int) { p.inlets[queue].ready() }

// sent has answers come to the queue that the flow was sent from (outlet).
func (p *Port) sent(h *heads, queue int) {
	if q := uint32(queue) + 1; p.queues > 1 && p.steer[h.flow].Load() != q {
		p.steer[h.flow].Store(q)
	}
}

// give brings a frame to the guest (outlet).
func (p *Port) give(from *end, d *feed, f *frame.Frame, h *heads, lent bool) bool {
	n := uint32(p.active.Load())
	q := uint32(h.flow)
	if to := p.steer[h.flow].Load(); to != 0 {
		q = to - 1
	}
	if n == 0 {
		p.drop(Unplugged)
		return false
	}
	return p.inlets[q%n].give(from, d, f, lent)
}

// collapsed is how many pages were mapped, and then written to by the guest or
// those before it; mu is held.
func (p *Port) collapsed() uint64 {
	if p.sink != nil {
		n := p.sink.Collapsed()
		if n < p.last {
			p.last = 0 // a guest that was restarted begins anew
		}
		p.written += n - p.last
		p.last = n
	}
	return p.written
}

// Stats reads the counters.
func (p *Port) Stats() PortStats {
	p.mu.Lock()
	written := p.collapsed() * arena.PageSize
	p.mu.Unlock()
	t := p.stats(written)
	p.policy.mu.Lock()
	t.Paused = p.policy.pauses
	p.policy.mu.Unlock()
	return t
}
