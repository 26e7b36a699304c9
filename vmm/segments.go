package vmm

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"disco/net/lan"
	"disco/net/segment"
	"disco/net/tap"
	"disco/net/user"
	"disco/scheduler/flow"
	netdev "disco/virtio/net"
)

// UplinkKind says how a segment's guests reach what is not on it.
type UplinkKind int

const (
	// UplinkNone is not at all.
	UplinkNone UplinkKind = iota
	// UplinkUser is by the monitor's own user-mode TCP/IP, which needs no rights: they
	// reach what this process can, its loopback as the segment's first address.
	UplinkUser
	// UplinkTap is by a tap interface of the host, which is on the segment as if it were
	// another guest's.
	UplinkTap
)

// Segment says what network of guests to make. One that guests name and nobody
// declares has only its name.
type Segment struct {
	Name   string       // lower-case letters, digits and '-', at most 32
	MTU    int          // largest IP packet in bytes; 0 for the tap's with UplinkTap, else segment.DefaultMTU
	Subnet netip.Prefix // of IPv4, /30 or larger; the zero Prefix for one of 10.64.0.0/16, 10.65.0.0/16, … that is free
	Uplink UplinkKind
	Tap    string     // UplinkTap: the interface, made if it does not exist
	Bridge string     // UplinkTap: the bridge to put it on, or empty
	Rate   uint64     // bytes a second that its guests send together, divided by their tickets; 0 for no limit
	Router netip.Addr // that guests are told of, in Subnet; the zero Addr for the one of the uplink, if that has one
}

const (
	// maxSegments bounds those of a Monitor.
	maxSegments = 64
	// firstSubnet is the second byte of the first subnet of the Monitor's choice.
	firstSubnet = 64
)

var segmentForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// ValidateSegments finds what is wrong with declared segments, without opening
// anything. It returns nil or a *ConfigError with all the problems.
func ValidateSegments(all []Segment) error {
	v := validator{}
	if len(all) > maxSegments {
		v.add("%d segments: there can be %d", len(all), maxSegments)
	}
	for i, s := range all {
		v.segment(&s)
		for _, o := range all[:i] {
			switch {
			case o.Name == s.Name:
				v.add("segment %s: it is declared twice", s.Name)
			case o.Subnet.IsValid() && s.Subnet.IsValid() && o.Subnet.Overlaps(s.Subnet):
				v.add("segment %s: its subnet %s overlaps with %s of segment %s", s.Name, s.Subnet, o.Subnet, o.Name)
			case s.Tap != "" && o.Tap == s.Tap:
				v.add("segment %s: its uplink tap %s is that of segment %s", s.Name, s.Tap, o.Name)
			}
		}
	}
	if v.problems != nil {
		return &ConfigError{v.problems}
	}
	return nil
}

func (v *validator) segmentName(noun, name string) {
	if !segmentForm.MatchString(name) {
		v.add("%s %q: a segment's name has lower-case letters, digits and '-' between them, at most 32", noun, name)
	}
}

// segmentMTU allows 0.
func (v *validator) segmentMTU(noun, name string, mtu int) {
	if mtu != 0 && (mtu < segment.MinMTU || mtu > segment.MaxMTU) {
		v.add("%s %s: MTU %d: it can be %d to %d", noun, name, mtu, segment.MinMTU, segment.MaxMTU)
	}
}

func (v *validator) segment(s *Segment) {
	v.segmentName("segment", s.Name)
	v.segmentMTU("segment", s.Name, s.MTU)
	if p := s.Subnet; p.IsValid() {
		switch {
		case !p.Addr().Is4() || p.Bits() > 30 || p.Bits() < 8:
			v.add("segment %s: subnet %s: it must be of IPv4, from /8 to /30, such as 10.64.0.0/16", s.Name, p)
		case p.Masked() != p:
			v.add("segment %s: subnet %s: it begins at %s", s.Name, p, p.Masked())
		case p.Overlaps(user.Network):
			v.add("segment %s: subnet %s: user networks have %s of it", s.Name, p, user.Network)
		}
	}
	switch s.Uplink {
	case UplinkNone, UplinkUser:
		if s.Tap != "" || s.Bridge != "" {
			v.add("segment %s: only an uplink by a tap has one, and a bridge", s.Name)
		}
	case UplinkTap:
		v.ifname("tap", s.Tap)
		if s.Bridge != "" {
			v.ifname("bridge", s.Bridge)
		}
	default:
		v.add("segment %s: uplink %d: there is no such kind", s.Name, int(s.Uplink))
	}
	if s.Router.IsValid() && (!s.Subnet.IsValid() || !s.Subnet.Contains(s.Router) || s.Router == s.Subnet.Addr().Next()) {
		v.add("segment %s: router %s: it must be in the segment's subnet, which is then given, and not its first address", s.Name, s.Router)
	}
}

// netSegment checks a guest's network of kind NetSegment.
func (v *validator) netSegment(n *Net, others []Net) {
	v.segmentName("net segment", n.Segment)
	v.segmentMTU("net segment", n.Segment, n.MTU)
	if n.MAC[0]&1 != 0 {
		v.add("net segment %s: MAC %s is a group's; make its first byte even", n.Segment, net.HardwareAddr(n.MAC[:]))
	}
	if n.Map < segment.MapAuto || n.Map > segment.MapNever {
		v.add("net segment %s: map %d: there is no such mode", n.Segment, int(n.Map))
	}
	for _, o := range others {
		switch {
		case o.Kind != NetSegment || o.Segment != n.Segment:
		case o.MTU != 0 && n.MTU != 0 && o.MTU != n.MTU:
			v.add("net segment %s: its MTU cannot be both %d and %d", n.Segment, o.MTU, n.MTU)
		case o.MAC == n.MAC && n.MAC != [6]byte{}:
			v.add("net segment %s: MAC %s is given twice", n.Segment, net.HardwareAddr(n.MAC[:]))
		}
	}
}

// maps says whether pages may be mapped into the guest of c by a segment, and
// whether they must.
func (c *Config) maps() (wanted, needed bool) {
	for i := range c.Nets {
		if n := &c.Nets[i]; n.Kind == NetSegment && n.Map != segment.MapNever {
			wanted, needed = true, needed || n.Map == segment.MapAlways
		}
	}
	return wanted, needed
}

// segments are the networks of a Monitor's guests, each made when it is declared or
// first named, and there until the Monitor is closed.
type segments struct {
	log  *slog.Logger
	seat func(*segment.Seat) error // moves workers, or nil

	mu  sync.Mutex // taken under none of vmm's; inside are net/segment's and net/lan's
	all []*network // in the order of making
}

// network is a segment with what is on it besides guests.
type network struct {
	Segment // as declared, with what was chosen
	segment *segment.Segment
	lan     *lan.Lan
	uplink  *lan.Cable // or nil
	tap     *tap.Tap   // or nil
	gate    *flow.Gate // with a rate, or nil
	manners netdev.Manners
}

// gate is that of a segment with a rate, or nil.
func (s *segments) gate(name string) *flow.Gate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.find(name); n != nil {
		return n.gate
	}
	return nil
}

// declare makes segments that are valid.
func (s *segments) declare(all []Segment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// What is given comes before what is chosen.
	for _, d := range all {
		if _, err := s.add(d, all); err != nil {
			return &HostError{fmt.Errorf("segment %s: %w", d.Name, err)}
		}
	}
	return nil
}

// find is the segment of a name; s.mu is held.
func (s *segments) find(name string) *network {
	i := slices.IndexFunc(s.all, func(n *network) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return s.all[i]
}

// subnet chooses one that none of the segments has, made or to be made; s.mu is held.
func (s *segments) subnet(declared []Segment) (netip.Prefix, error) {
	for i := firstSubnet; i <= math.MaxUint8; i++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)
		taken := slices.ContainsFunc(s.all, func(n *network) bool { return n.Subnet.Overlaps(p) }) ||
			slices.ContainsFunc(declared, func(d Segment) bool { return d.Subnet.IsValid() && d.Subnet.Overlaps(p) })
		if !taken {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("no subnet is free for it; give it one")
}

// add makes a segment beside those that are declared; s.mu is held.
func (s *segments) add(d Segment, declared []Segment) (_ *network, err error) {
	if len(s.all) >= maxSegments {
		return nil, fmt.Errorf("there are %d already", maxSegments)
	}
	if !d.Subnet.IsValid() {
		if d.Subnet, err = s.subnet(declared); err != nil {
			return nil, err
		}
	}
	n := &network{Segment: d}
	if d.Rate > 0 {
		n.gate = flow.New(flow.Config{Rate: d.Rate})
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if d.Uplink == UplinkTap {
		if n.tap, err = tap.Open(tap.Config{Name: d.Tap, Bridge: d.Bridge, Log: s.log}); err != nil {
			return nil, err
		}
		if n.MTU == 0 {
			n.MTU = n.tap.MTU()
		}
	}
	if n.segment, err = segment.New(segment.Config{Name: d.Name, MTU: n.MTU, RunOn: s.seat, Log: s.log}); err != nil {
		return nil, err
	}
	n.MTU = n.segment.MTU()
	n.lan, err = lan.New(lan.Config{
		Segment: n.segment, Name: d.Name, Network: d.Subnet, Router: d.Router, Outside: d.Uplink == UplinkUser, Log: s.log,
	})
	if err != nil {
		return nil, err
	}
	if n.tap != nil {
		mac := lan.MAC("uplink", d.Name, d.Tap)
		if n.uplink, err = lan.Plug(n.segment, segment.StationConfig{Name: "tap=" + d.Tap, MAC: mac, Trusted: true}, n.tap); err != nil {
			return nil, err
		}
	}
	s.all = append(s.all, n)
	return n, nil
}

func (n *network) close() error {
	var errs []error
	if n.uplink != nil {
		errs = append(errs, n.uplink.Close())
	}
	if n.tap != nil {
		errs = append(errs, n.tap.Close())
	}
	if n.lan != nil {
		errs = append(errs, n.lan.Close())
	}
	if n.segment != nil {
		errs = append(errs, n.segment.Close())
	}
	return errors.Join(errs...)
}

// close ends all segments, when no guest is left.
func (s *segments) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, n := range s.all {
		errs = append(errs, n.close())
	}
	s.all = nil
	return errors.Join(errs...)
}

// port is a guest's place on a segment.
type port struct {
	*segment.Port
	network *network
	mac     [6]byte
}

// connect makes a port for the guest of cfg, whose networks n is one of; device
// counts those on the same segment, and turns is the guest's part of the segment's rate,
// if that has one. The caller closes the port.
func (s *segments) connect(n *Net, device int, cfg *Config, turns *flow.Flow) (*port, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.find(n.Segment)
	if at == nil {
		var err error
		if at, err = s.add(Segment{Name: n.Segment, MTU: n.MTU}, nil); err != nil {
			return nil, &HostError{fmt.Errorf("net segment %s: %w", n.Segment, err)}
		}
	}
	if n.MTU != 0 && n.MTU != at.MTU {
		return nil, fmt.Errorf("net segment %s: its MTU is %d, and %d is asked for; give all that name it the same, or declare it", n.Segment, at.MTU, n.MTU)
	}
	mac, address, err := at.settle(n, device, cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("net segment %s: %w", n.Segment, err)
	}
	name := cfg.Name
	if device > 0 {
		name += "/" + strconv.Itoa(device)
	}
	p, err := at.segment.Connect(segment.PortConfig{
		Name: name, MAC: mac, Map: n.Map, Rate: n.Rate, Turns: turns, Queues: min(cfg.CPUs, maxQueues), Trusted: n.Unguarded,
	})
	if err != nil {
		at.lan.Remove(mac)
		return nil, &HostError{fmt.Errorf("net segment %s: %w", n.Segment, err)}
	}
	p.Lease(address)
	return &port{p, at, mac}, nil
}

// settle gives a guest its MAC and address. The MAC is the same at every start, for
// guests that remember their devices by it.
func (n *network) settle(asked *Net, device int, guest string) (mac [6]byte, a netip.Addr, err error) {
	g := lan.Guest{Name: guest, Device: device, MAC: asked.MAC}
	if g.MAC != [6]byte{} {
		a, err = n.lan.Add(g)
		return g.MAC, a, err
	}
	for try := 0; ; try++ {
		g.MAC = lan.MAC("guest", n.Name, n.Tap, strings.ToLower(guest), strconv.Itoa(device), strconv.Itoa(try))
		if a, err = n.lan.Add(g); !errors.Is(err, lan.ErrTaken) {
			return g.MAC, a, err
		}
	}
}

func (p *port) close() error {
	err := p.Port.Close()
	p.network.lan.Remove(p.mac)
	return err
}

// openSegment puts a guest on a segment.
func (b *backends) openSegment(n *Net, device int, cfg *Config, log *slog.Logger) {
	var turns *flow.Flow
	if gate := b.segments.gate(n.Segment); gate != nil && b.turns != nil {
		turns = b.turns.through(gate)
	}
	p, err := b.segments.connect(n, device, cfg, turns)
	if err != nil {
		if _, ok := errors.AsType[*HostError](err); ok {
			b.refusals = append(b.refusals, err)
		} else {
			b.problems = append(b.problems, err)
		}
		return
	}
	b.own(p.close)
	b.ports = append(b.ports, p)
	dev, err := netdev.New(netdev.Config{Switch: p.Port, Manners: &p.network.manners, MAC: p.mac, Pairs: min(cfg.CPUs, maxQueues), Log: log})
	if err != nil {
		b.refusals = append(b.refusals, err)
		return
	}
	b.devices = append(b.devices, dev)
}

// SegmentStats is a segment as it is now.
type SegmentStats struct {
	Segment            // with what was chosen
	Address netip.Addr // of the DHCP and name server
	Stats   segment.Stats
}

// Segments are the Monitor's, in the order of their making.
func (m *Monitor) Segments() []SegmentStats {
	s := &m.segments
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []SegmentStats
	for _, n := range s.all {
		all = append(all, SegmentStats{Segment: n.Segment, Address: n.lan.Address(), Stats: n.segment.Stats()})
	}
	return all
}

// Capture has see called with each frame that is accepted on a segment, until stop;
// see segment.Segment.Capture. It is false if there is no such segment.
func (m *Monitor) Capture(name string, see func(t time.Time, bufs [][]byte)) (stop func(), ok bool) {
	s := &m.segments
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.find(name)
	if n == nil {
		return nil, false
	}
	return n.segment.Capture(see), true
}
