package segment

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"disco/net/frame"
)

// end is what ports and stations have in common.
type end struct {
	seg     *Segment
	name    string
	mac     addr
	trusted bool
	outlet  outlet
	present atomic.Bool // frames of it may be kept
	leases  atomic.Pointer[[]netip.Addr]

	sent, received   tally
	eligible, mapped tally
	copied           [frame.Reasons]atomic.Uint64
	dropped          [drops]atomic.Uint64
	waited           atomic.Uint64
	throttled        atomic.Uint64
}

// outlet is where frames for an end go.
type outlet interface {
	// give brings a frame of another end. A frame that is lent is not kept: what must
	// wait of it is a copy.
	give(from *end, d *feed, f *frame.Frame, h *heads, lent bool) (kept bool)
	// sent notes that a frame came from a transmit queue of the end itself.
	sent(h *heads, queue int)
}

// tally counts frames and bytes.
type tally struct{ frames, bytes atomic.Uint64 }

func (t *tally) add(n int) {
	t.frames.Add(1)
	t.bytes.Add(uint64(n))
}

func (t *tally) read() Traffic { return Traffic{t.frames.Load(), t.bytes.Load()} }

// drop counts a frame that is dropped, and says how many there were.
func (e *end) drop(r Drop) uint64 { return e.dropped[r].Add(1) }

// complain logs the first frame that is dropped by a guard: who set the guest up
// may wonder why it is not heard.
func (e *end) complain(r Drop, h *heads, f *frame.Frame) {
	log := e.seg.log.With("port", e.name)
	if r == Source {
		log.Warn("frames from an address that is not the guest's are dropped, and counted", "address", h.src.String())
		return
	}
	ip := "none"
	if p := f.Pieces[0].Bytes[h.network:]; len(p) >= arpLen {
		ip = netip.AddrFrom4([4]byte(p[arpSender:][:4])).String()
	}
	log.Warn("claims in ARP to an address that is not leased to the guest are dropped, and counted", "address", ip)
}

// Drop is why a frame was not delivered.
type Drop uint8

const (
	// Source is a frame from an address that is not the sender's.
	Source Drop = iota
	// ARP is a claim in ARP to an address that is not the sender's.
	ARP
	// Header is a frame that says of itself what is not so.
	Header
	// Size is a frame that is longer than the MTU allows.
	Size
	// Nowhere is a frame for an address that nobody has.
	Nowhere
	// Full is a frame for a receiver that has no buffers, and for which too much
	// waits.
	Full
	// Late is a frame that has waited for a receiver too long.
	Late
	// TooLong is a frame for a receiver whose buffers do not hold it.
	TooLong
	// Unplugged is a frame for a receiver whose driver is not there.
	Unplugged

	drops  = int(iota)
	noDrop = Drop(iota)
)

func (r Drop) String() string {
	return [drops]string{"source", "arp", "header", "size", "nowhere", "full", "late", "tooLong", "unplugged"}[r]
}

// delivered counts a frame that an end was given.
func (e *end) delivered(n int, d *frame.Delivery) {
	e.received.add(n)
	if d.Eligible > 0 {
		e.eligible.add(d.Eligible)
	}
	if d.Mapped > 0 {
		e.mapped.add(d.Mapped)
	}
	for i, n := range d.Copied {
		if n > 0 {
			e.copied[i].Add(uint64(n))
		}
	}
}

// lease makes an address the end's, until it is leased to another.
func (e *end) lease(ip netip.Addr) {
	ip = ip.Unmap()
	s := e.seg
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range *s.ends.Load() {
		if list := other.leases.Load(); list != nil && other != e {
			if i := slices.Index(*list, ip); i >= 0 {
				rest := slices.Delete(slices.Clone(*list), i, i+1)
				other.leases.Store(&rest)
			}
		}
	}
	var list []netip.Addr
	if old := e.leases.Load(); old != nil {
		list = *old
	}
	if !slices.Contains(list, ip) {
		list = append(slices.Clip(list), ip)
		e.leases.Store(&list)
	}
}

// may says whether an end may claim an address.
func (e *end) may(ip netip.Addr) bool {
	list := e.leases.Load()
	if list != nil && len(*list) > 0 {
		return slices.Contains(*list, ip)
	}
	for _, other := range *e.seg.ends.Load() {
		if list := other.leases.Load(); list != nil && slices.Contains(*list, ip) {
			return false
		}
	}
	return true
}
