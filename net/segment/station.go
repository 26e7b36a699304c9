package segment

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"disco/memory"
	"disco/net/frame"
)

// maxStation is how many frames wait for a station.
const maxStation = 256

// StationConfig says what station to make.
type StationConfig struct {
	Name string
	MAC  [6]byte
	// Trusted stations may send from any address, and get frames for addresses that
	// were seen behind them, or nowhere.
	Trusted bool
	// Offloads is what Deliver takes undone.
	Offloads frame.Offloads
	// Deliver gets each frame for the station: its frame.Header, then its bytes. It
	// is called on the station's own goroutine and may block; what comes meanwhile
	// waits, or is dropped. It does not keep the frame.
	Deliver func(frame []byte)
}

// Station is an end of the segment inside the monitor: a service, or the way to
// another network.
type Station struct {
	end
	accept  frame.Offloads
	deliver func([]byte)
	queue   chan *parcel
	worker  sync.WaitGroup
	finish  *finisher // of the worker

	mu   sync.Mutex // one frame at a time
	feed feed
	out  frame.Frame

	closing sync.RWMutex // held by those who put something in the queue
	closed  bool
}

// Station makes a station. The caller owns it and must Close it.
func (s *Segment) Station(c StationConfig) (*Station, error) {
	if c.Deliver == nil {
		return nil, fmt.Errorf("segment %s: %s: nothing takes its frames", s.name, c.Name)
	}
	t := &Station{
		end:    end{seg: s, name: c.Name, mac: c.MAC, trusted: c.Trusted},
		accept: c.Offloads, deliver: c.Deliver, queue: make(chan *parcel, maxStation),
	}
	t.outlet = t
	t.present.Store(true)
	if err := s.join(&t.end); err != nil {
		return nil, err
	}
	t.worker.Go(t.run)
	return t, nil
}

// Close ends a station. When it returns Deliver is not called any more; it must
// not be called by Deliver.
func (t *Station) Close() error {
	t.present.Store(false)
	if err := t.seg.leave(&t.end); err != nil {
		return err
	}
	t.seg.recall(&t.end, true)
	t.closing.Lock()
	t.closed = true
	close(t.queue)
	t.closing.Unlock()
	t.worker.Wait()
	return nil
}

// Lease says that an IP address is the station's: no other end may claim it in ARP.
func (t *Station) Lease(ip netip.Addr) { t.lease(ip) }

// ErrClosed is returned by Send of a station that is closed.
var ErrClosed = errors.New("the station is closed")

// Send sends a frame: its frame.Header, then its bytes. It does not keep them. It
// returns an error for what is no frame; one that is dropped is counted only.
func (t *Station) Send(b []byte) error {
	if len(b) < frame.HeaderLen {
		return frame.ErrLength
	}
	if !t.present.Load() {
		return ErrClosed
	}
	h := frame.Parse(b)
	h.Flags &= frame.NeedsChecksum // that it was checked is not passed on
	n := len(b) - frame.HeaderLen
	if err := h.Check(n, offloads); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out = frame.Frame{Header: h, Len: n, Pieces: append(t.out.Pieces[:0], memory.Loan{Bytes: b[frame.HeaderLen:]})}
	t.seg.send(&t.end, &t.feed, &t.out, 0, true)
	t.feed.flush()
	return nil
}

func (t *Station) sent(*heads, int) {}

// give has a copy of the frame wait for the station's goroutine (outlet).
func (t *Station) give(_ *end, _ *feed, f *frame.Frame, _ *heads, _ bool) (kept bool) {
	t.closing.RLock()
	defer t.closing.RUnlock()
	if t.closed {
		t.drop(Unplugged)
		return false
	}
	if len(t.queue) == cap(t.queue) {
		t.drop(Full)
		return false
	}
	p := parcelFor(f.Len)
	p.fill(f)
	select {
	case t.queue <- p:
	default:
		p.free()
		t.drop(Full)
	}
	return false
}

func (t *Station) run() {
	for p := range t.queue {
		f := p.bytes
		if !t.present.Load() {
			p.free()
			continue
		}
		if h := frame.Parse(f); !takes(t.accept, h) {
			if t.finish == nil {
				t.finish = newFinisher()
			}
			t.finish.each(h, f[frame.HeaderLen:], func(g []byte) bool { t.hand(g, frame.Finished); return true })
		} else {
			t.hand(f, frame.Odd)
		}
		p.free()
	}
}

func (t *Station) hand(f []byte, why frame.Reason) {
	n := len(f) - frame.HeaderLen
	var d frame.Delivery
	d.Copied[why] = n
	t.delivered(n, &d)
	t.deliver(f)
}

// Stats reads the counters.
func (t *Station) Stats() PortStats { return t.stats(0) }
