package lan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"disco/net/frame"
	"disco/net/segment"
)

var quiet = slog.New(slog.DiscardHandler)

func newSegment(t *testing.T) *segment.Segment {
	t.Helper()
	s, err := segment.New(segment.Config{Name: "lan0", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newLan(t *testing.T, s *segment.Segment, network, router string) *Lan {
	t.Helper()
	c := Config{Segment: s, Name: "lan0", Network: netip.MustParsePrefix(network), Log: quiet}
	if router != "" {
		c.Router = netip.MustParseAddr(router)
	}
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func mac(n byte) [6]byte { return [6]byte{2, 0, 0, 0, 0, n} }

func add(t *testing.T, l *Lan, name string, device int, n byte) string {
	t.Helper()
	a, err := l.Add(Guest{Name: name, Device: device, MAC: mac(n)})
	if err != nil {
		return err.Error()
	}
	return a.String()
}

// TestAddresses: guests have addresses in the order of their coming, and the same
// ones when they come back.
func TestAddresses(t *testing.T) {
	l := newLan(t, newSegment(t), "10.64.0.0/16", "10.64.0.3")
	if l.Address() != netip.MustParseAddr("10.64.0.1") {
		t.Errorf("the station is %v", l.Address())
	}
	for _, c := range []struct {
		name   string
		device int
		mac    byte
		want   string
	}{
		{"a", 0, 1, "10.64.0.2"},
		{"B", 0, 2, "10.64.0.4"}, // 3 is the router's
		{"a", 1, 3, "10.64.0.5"},
		{"", 0, 4, "10.64.0.6"},
		{"a", 0, 5, "10.64.0.7"}, // another of the name
		{"c", 0, 2, "MAC 02:00:00:00:00:02 of guest B: another guest has the same MAC"},
		{"c", 0, 4, "MAC 02:00:00:00:00:04 of a guest without a name: another guest has the same MAC"},
	} {
		if got := add(t, l, c.name, c.device, c.mac); got != c.want {
			t.Errorf("%s/%d: %s, want %s", c.name, c.device, got, c.want)
		}
	}
	g := guests{l}
	for name, want := range map[string]string{"a": "10.64.0.2", "b": "10.64.0.4", "c": "invalid IP", "": "invalid IP"} {
		if a, ok := g.Address(name); a.String() != want || ok != (want != "invalid IP") {
			t.Errorf("%q is %v, %v, want %s", name, a, ok, want)
		}
	}
	for a, want := range map[string]string{"10.64.0.4": "B", "10.64.0.5": "a", "10.64.0.6": "", "10.64.0.9": ""} {
		if name, ok := g.Name(netip.MustParseAddr(a)); name != want || ok != (want != "") {
			t.Errorf("%s is %q, %v, want %q", a, name, ok, want)
		}
	}
	l.Remove(mac(1))
	l.Remove(mac(1))
	l.Remove(mac(4))
	if _, ok := g.Address("a"); ok {
		t.Error("a is gone, and its name is not")
	}
	if _, ok := g.Lease(mac(1)); ok {
		t.Error("a is gone, and its lease is not")
	}
	for name, want := range map[string]string{"d": "10.64.0.6", "a": "10.64.0.2"} {
		if got := add(t, l, name, 0, 10+name[0]); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestAddressesRunOut: a kept address goes to another guest only when there is none
// besides.
func TestAddressesRunOut(t *testing.T) {
	l := newLan(t, newSegment(t), "10.64.0.0/29", "")
	for i := range byte(5) {
		if got, want := add(t, l, string('a'+rune(i)), 0, i), fmt.Sprintf("10.64.0.%d", 2+i); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	const full = "the network 10.64.0.0/29 has no address left; give the segment a larger one"
	if got := add(t, l, "f", 0, 9); got != full {
		t.Error(got)
	}
	l.Remove(mac(2)) // c
	if got := add(t, l, "f", 0, 9); got != "10.64.0.4" {
		t.Error(got)
	}
	if got := add(t, l, "c", 0, 2); got != full {
		t.Error(got)
	}
	l.Remove(mac(9))
	if got := add(t, l, "c", 0, 2); got != "10.64.0.4" {
		t.Error(got)
	}
}

// TestDHCP: a guest on the segment gets its address from the station.
func TestDHCP(t *testing.T) {
	s := newSegment(t)
	l := newLan(t, s, "10.64.0.0/16", "")
	if got := add(t, l, "a", 0, 1); got != "10.64.0.2" {
		t.Fatal(got)
	}
	frames := make(chan []byte, 16)
	guest, err := s.Station(segment.StationConfig{Name: "a", MAC: mac(1), Deliver: func(f []byte) { frames <- append([]byte(nil), f...) }})
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	own := mac(1)
	discover, err := dhcpv4.NewDiscovery(own[:])
	if err != nil {
		t.Fatal(err)
	}
	if err := guest.Send(request(own, discover.ToBytes())); err != nil {
		t.Fatal(err)
	}
	select {
	case f := <-frames:
		offer, err := dhcpv4.FromBytes(f[frame.HeaderLen+frame.MinLen+header.IPv4MinimumSize+header.UDPMinimumSize:])
		if err != nil || offer.MessageType() != dhcpv4.MessageTypeOffer || offer.YourIPAddr.String() != "10.64.0.2" || offer.HostName() != "a" ||
			offer.DomainName() != "lan0.disco.internal" {
			t.Errorf("%v, %v", offer, err)
		}
		if mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, offer.Options); int(mtu) != s.MTU() {
			t.Errorf("MTU %d, want %d", mtu, s.MTU())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no offer")
	}
}

// request is a frame to a DHCP server.
func request(from [6]byte, p []byte) []byte {
	f := make([]byte, frame.HeaderLen+frame.MinLen+header.IPv4MinimumSize+header.UDPMinimumSize, 1000)
	f = append(f, p...)
	eth := f[frame.HeaderLen:]
	copy(eth, "\xff\xff\xff\xff\xff\xff")
	copy(eth[6:], from[:])
	binary.BigEndian.PutUint16(eth[12:], uint16(header.IPv4ProtocolNumber))
	h := header.IPv4(eth[frame.MinLen:])
	h.Encode(&header.IPv4Fields{TotalLength: uint16(len(h)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), DstAddr: header.IPv4Broadcast, SrcAddr: tcpip.AddrFrom4([4]byte{})})
	h.SetChecksum(^h.CalculateChecksum())
	header.UDP(h.Payload()).Encode(&header.UDPFields{SrcPort: 68, DstPort: 67, Length: uint16(len(h) - header.IPv4MinimumSize)})
	return f
}

func TestMAC(t *testing.T) {
	if MAC("a", "bc") == MAC("ab", "c") {
		t.Error("other words make the same MAC")
	}
	for i := range 1000 {
		if m := MAC("guest", fmt.Sprint(i)); m[0]&3 != 2 {
			t.Errorf("% x is not a single device's of a local choice", m)
		}
	}
}

// pipe is a Backend in a test's hands.
type pipe struct {
	frames   chan []byte // that it has to read
	written  chan []byte
	stopping chan struct{}
	fails    error // of Attach
}

func newPipe() *pipe {
	return &pipe{frames: make(chan []byte, 4), written: make(chan []byte, 4), stopping: make(chan struct{})}
}

func (p *pipe) Offloads() frame.Offloads         { return frame.Checksum }
func (p *pipe) Attach(int, frame.Offloads) error { return p.fails }
func (p *pipe) Interrupt()                       { close(p.stopping) }

func (p *pipe) ReadFrame(_ int, bufs [][]byte, _ bool) (int, error) {
	select {
	case f := <-p.frames:
		return copy(bufs[0], f), nil
	case <-p.stopping:
		return 0, os.ErrDeadlineExceeded
	}
}

func (p *pipe) WriteFrame(_ int, bufs [][]byte) error {
	p.written <- append(append([]byte(nil), bufs[0]...), bufs[1]...)
	return errors.New("full")
}

// TestCable: frames pass both ways, from addresses that are not the cable's own too.
func TestCable(t *testing.T) {
	s := newSegment(t)
	p := newPipe()
	c, err := Plug(s, segment.StationConfig{Name: "uplink", MAC: mac(9), Trusted: true}, p)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 4)
	guest, err := s.Station(segment.StationConfig{Name: "a", MAC: mac(1), Deliver: func(f []byte) { got <- append([]byte(nil), f...) }})
	if err != nil {
		t.Fatal(err)
	}
	long := func(to, from [6]byte) []byte {
		f := make([]byte, frame.HeaderLen+60)
		copy(f[frame.HeaderLen:], append(to[:], from[:]...))
		f[frame.HeaderLen+12] = 0x88
		f[frame.HeaderLen+13] = 0xb5 // for local experiments
		return f
	}
	p.frames <- nil // nothing of a frame is no frame
	p.frames <- long(mac(1), mac(7))
	if f := <-got; [6]byte(f[frame.HeaderLen+6:]) != mac(7) {
		t.Errorf("the guest gets % x", f)
	}
	for range 2 { // one that is not taken does not end it
		if err := guest.Send(long(mac(7), mac(1))); err != nil {
			t.Fatal(err)
		}
		if f := <-p.written; [6]byte(f[frame.HeaderLen:]) != mac(7) || len(f) != frame.HeaderLen+60 {
			t.Errorf("the cable gets % x", f)
		}
	}
	if err := errors.Join(guest.Close(), c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	p = newPipe()
	p.fails = errors.New("no")
	if _, err := Plug(s, segment.StationConfig{Name: "uplink", MAC: mac(9)}, p); !errors.Is(err, p.fails) {
		t.Errorf("%v", err)
	}
}
