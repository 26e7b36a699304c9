// Package segment is a virtual Ethernet between the guests of one monitor.
package segment

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"disco/net/frame"
)

// DefaultMTU is the largest IP packet, unless told otherwise: a TCP segment
// carries one page after IPv4 and TCP headers with timestamps.
const DefaultMTU = 4096 + 20 + 20 + 12

// MaxMTU is the largest MTU.
const MaxMTU = 65535

// MinMTU is the smallest MTU: what IPv6 asks for.
const MinMTU = 1280

// MaxQueues is the largest number of queue pairs of a Port.
const MaxQueues = 8

// Mode says when pages are mapped into a receiver in place of copying them.
type Mode int

const (
	// MapAuto is when it will probably pay.
	MapAuto Mode = iota
	// MapAlways is whenever it can be done.
	MapAlways
	// MapNever is not at all.
	MapNever
)

func (m Mode) String() string { return [...]string{"auto", "always", "never"}[m] }

// Config says what segment to make.
type Config struct {
	Name string
	// MTU is the largest IP packet in bytes, MinMTU to MaxMTU; 0 for DefaultMTU.
	MTU int
	Log *slog.Logger
}

// Segment is one virtual Ethernet.
type Segment struct {
	config Config
}

// New makes a segment without ports.
func New(c Config) (*Segment, error) { return &Segment{config: c}, nil }

// Close ends a segment. Its ports and stations must be closed.
func (s *Segment) Close() error { return nil }

// MTU is the largest IP packet in bytes.
func (s *Segment) MTU() int { return s.config.MTU }

// PortConfig says what port to make.
type PortConfig struct {
	Name string
	// MAC is the address of the guest, who may use no other.
	MAC [6]byte
	// Map says what of the frames that the guest gets is mapped.
	Map Mode
	// Rate is the most that the guest may send, in bytes a second; 0 for all.
	Rate uint64
	// Queues is how many queue pairs there are, 1 to MaxQueues; 0 for 1.
	Queues int
	// Trusted guests may send from any address.
	Trusted bool
}

// Port is where a guest's network device is plugged in (netdev.Switch).
type Port struct{ c PortConfig }

// Connect makes a port. The caller owns it, and closes it after the last Detach.
func (s *Segment) Connect(c PortConfig) (*Port, error) { return &Port{c}, nil }

// Close unplugs a port.
func (p *Port) Close() error { return nil }

// Lease says that an IP address is the port's: no other port may claim it in ARP.
func (p *Port) Lease(ip netip.Addr) {}

// Stats reads the counters.
func (p *Port) Stats() PortStats { return PortStats{} }

// StationConfig says what station to make.
type StationConfig struct {
	Name string
	MAC  [6]byte
	// Trusted stations may send from any address, and are sent frames for addresses
	// that were seen behind them.
	Trusted bool
	// Offloads is what Deliver takes undone.
	Offloads frame.Offloads
	// Deliver gets each frame for the station: its frame.Header, then its bytes. It
	// is called on the station's own goroutine and may block; what comes meanwhile
	// waits, or is dropped. It does not keep the frame.
	Deliver func(frame []byte)
}

// Station is an end of the segment inside the monitor.
type Station struct{}

// Station makes a station. The caller owns it and must Close it.
func (s *Segment) Station(c StationConfig) (*Station, error) { return &Station{}, nil }

// Send sends a frame: its frame.Header, then its bytes. It is kept no longer than
// until Send returns.
func (t *Station) Send(frame []byte) error { return errors.ErrUnsupported }

// Lease says that an IP address is the station's.
func (t *Station) Lease(ip netip.Addr) {}

// Close ends a station. Deliver is not called any more when it returns.
func (t *Station) Close() error { return nil }

// Capture has see called with every frame that is accepted from a port or
// station, before it is delivered: bufs are its frame.Header, then its bytes. It
// is called on the goroutines that send, and must not keep bufs. stop ends it: see
// is not called any more when stop returns.
func (s *Segment) Capture(see func(t time.Time, bufs [][]byte)) (stop func()) { return func() {} }
