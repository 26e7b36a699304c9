// Package segment is a virtual Ethernet between the guests of one monitor: a
// switch that its guests' network devices are plugged into.
//
// A frame never lies in the switch. The goroutine that takes it from a guest puts
// it into the buffers of the guest that it is for, with no step between: whole
// pages that the sender shares already with a disk's cache, or with others, are
// mapped into the receiver, and the rest is copied once. Checksums and TCP
// segments that the sender left undone are left so for receivers that agree.
// Where a receiver has no buffers the frame waits in the sender's memory, for a
// while, and what comes after it for others goes on.
//
// Every guest has one address, that it was given, and its frames are delivered
// by that: the rest are for trusted ends (an uplink), behind which addresses are
// learned. Groups are flooded. A port may not send from another address, nor claim
// an IP address in ARP that was leased to another.
//
// # Order of locks
//
//  1. Port.mu: attached or not.
//  2. inlet.mu, one per receive queue, never two at a time: held while a frame is
//     delivered into it, so inside are those of the receiving guest's memory.
//  3. Segment.mu (addresses), policy.mu, Station's: short, and nothing inside.
//
// Not done here: multicast snooping (groups are flooded, and guests filter), VLANs
// (tags are carried), spanning trees (there are no loops: ends are not bridges,
// but for uplinks), guards for IPv6's neighbour discovery and for IP sources,
// and fragmentation.
package segment

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"disco/net/frame"
)

const (
	// DefaultMTU is the largest IP packet, unless told otherwise: with the headers
	// of IPv4 and of TCP with timestamps it has five pages of payload, so that
	// segments of a stream that begins with a page consist of whole pages, and three
	// of them fill a frame of Linux's. At a slow rate Linux sends frames of two.
	DefaultMTU = 5*4096 + 20 + 20 + 12
	// MinMTU is what IPv6 asks for.
	MinMTU = 1280
	// MaxMTU is the longest IP packet.
	MaxMTU = 65535
	// MaxQueues is the largest number of queue pairs of a Port.
	MaxQueues = 8
	// DefaultPatience is for how long a frame waits for its receiver's buffers.
	DefaultPatience = 500 * time.Millisecond
	// MaxEnds is the largest number of ports and stations of a Segment.
	MaxEnds = 1024
)

// offloads is what frames may carry.
const offloads = frame.Checksum | frame.TSO4 | frame.TSO6 | frame.ECN

// Config says what segment to make.
type Config struct {
	Name string
	// MTU is the largest IP packet in bytes, MinMTU to MaxMTU; 0 for DefaultMTU.
	MTU int
	// Patience is for how long a frame waits for buffers of its receiver before it is
	// dropped; 0 for DefaultPatience.
	Patience time.Duration
	// RunOn has the calling thread run on the CPUs of a seat from now on, or for nil
	// wherever it may. It is called by workers that copy much (Port.Sit); nil if they
	// are not to be moved.
	RunOn func(*Seat) error
	// Log gets what the operator should know; nil for slog's default.
	Log *slog.Logger
}

// Segment is one virtual Ethernet. Its methods, and those of its ports and
// stations, may be called from many goroutines.
type Segment struct {
	name string
	mtu  int
	log  *slog.Logger
	born time.Time

	patience time.Duration
	runOn    func(*Seat) error // or nil

	ends     atomic.Pointer[[]*end] // in the order of Connect; changed under mu
	captures atomic.Pointer[[]*capture]
	copies   atomic.Int64 // bytes of frames that wait as copies

	mu    sync.RWMutex
	table table
}

// New makes a segment with nobody on it. The caller owns it and must Close it.
func New(c Config) (*Segment, error) {
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < MinMTU || c.MTU > MaxMTU {
		return nil, fmt.Errorf("segment %s: MTU %d: it can be %d to %d", c.Name, c.MTU, MinMTU, MaxMTU)
	}
	if c.Patience < 0 {
		return nil, fmt.Errorf("segment %s: frames can not wait for %v", c.Name, c.Patience)
	}
	if c.Patience == 0 {
		c.Patience = DefaultPatience
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Segment{name: c.Name, mtu: c.MTU, log: c.Log.With("segment", c.Name), born: time.Now(), patience: c.Patience, runOn: c.RunOn, table: newTable()}
	s.ends.Store(new([]*end))
	s.captures.Store(new([]*capture))
	return s, nil
}

// Name is what the segment is called.
func (s *Segment) Name() string { return s.name }

// MTU is the largest IP packet in bytes.
func (s *Segment) MTU() int { return s.mtu }

// Close ends a segment that nobody is on any more.
func (s *Segment) Close() error {
	if n := len(*s.ends.Load()); n != 0 {
		return fmt.Errorf("segment %s: %d ports and stations are still there", s.name, n)
	}
	return nil
}

// now is a clock for ages.
func (s *Segment) now() time.Duration { return time.Since(s.born) }

// join puts an end on the segment.
func (s *Segment) join(e *end) error {
	if e.mac.group() || e.mac == (addr{}) {
		return fmt.Errorf("segment %s: %s: %v is no device's address", s.name, e.name, e.mac)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := *s.ends.Load()
	if len(list) == MaxEnds {
		return fmt.Errorf("segment %s: more than %d ports and stations", s.name, MaxEnds)
	}
	if other := s.table.owner(e.mac); other != nil {
		return fmt.Errorf("segment %s: %s: address %v is that of %s", s.name, e.name, e.mac, other.name)
	}
	s.table.own(e)
	list = append(slices.Clone(list), e)
	s.ends.Store(&list)
	return nil
}

var errGone = errors.New("it is not there any more")

// leave takes an end off the segment.
func (s *Segment) leave(e *end) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(*s.ends.Load())
	i := slices.Index(list, e)
	if i < 0 {
		return fmt.Errorf("segment %s: %s: %w", s.name, e.name, errGone)
	}
	list = slices.Delete(list, i, i+1)
	s.ends.Store(&list)
	s.table.forget(e)
	return nil
}

// feed is one goroutine at a time that sends: a transmit queue, or a station.
type feed struct {
	touched []*inlet // have frames that their guests were not told of
	timer   *time.Timer
	heads   heads    // of the frame that is sent
	bufs    [][]byte // for captures
	seat    *seating // of a worker that may be moved, or nil
}

// flush tells the receivers.
func (d *feed) flush() {
	for i, in := range d.touched {
		in.flush()
		d.touched[i] = nil
	}
	d.touched = d.touched[:0]
}

func (d *feed) touch(in *inlet) {
	if !slices.Contains(d.touched, in) {
		d.touched = append(d.touched, in)
	}
}

// send switches a frame. If it is true the frame is kept until its Done; it is
// never if it is lent, for the time of the call only.
func (s *Segment) send(from *end, d *feed, f *frame.Frame, queue int, lent bool) (kept bool) {
	h := &d.heads
	if r := from.admit(h, f); r != noDrop {
		if from.drop(r) == 1 && (r == Source || r == ARP) {
			from.complain(r, h, f)
		}
		return false
	}
	from.sent.add(f.Len)
	if list := *s.captures.Load(); len(list) > 0 {
		s.show(list, d, f)
	}
	from.outlet.sent(h, queue)
	if from.trusted {
		s.learn(h.src, from)
	}
	if !h.dst.group() {
		if to := s.find(h.dst); to != nil {
			if to == from {
				from.drop(Nowhere)
				return false
			}
			return to.outlet.give(from, d, f, h, lent)
		}
	}
	some := false
	for _, to := range *s.ends.Load() {
		if to != from && (to.trusted || h.dst.group()) {
			to.outlet.give(from, d, f, h, true)
			some = true
		}
	}
	if !some {
		from.drop(Nowhere)
	}
	return false
}
