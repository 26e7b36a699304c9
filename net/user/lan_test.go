package user

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"disco/net/frame"
)

// house is the guests of a Lan in tests.
type house struct{}

var (
	macA = [6]byte{2, 0, 0, 0, 0, 1} // guestMAC's
	macB = [6]byte{2, 0, 0, 0, 0, 2}

	lanNetwork = netip.MustParsePrefix("10.64.0.0/16")
	lanAddress = netip.MustParseAddr("10.64.0.1")
	addressA   = netip.MustParseAddr("10.64.0.10")
	addressB   = netip.MustParseAddr("10.64.0.11")
)

func (*house) Lease(mac [6]byte) (Lease, bool) {
	switch mac {
	case macA:
		return Lease{Address: addressA, Name: "a"}, true
	case macB:
		return Lease{Address: addressB, Name: "b"}, true
	}
	return Lease{}, false
}

func (*house) Address(name string) (netip.Addr, bool) {
	a, ok := map[string]netip.Addr{"a": addressA, "b": addressB}[name]
	return a, ok
}

func (*house) Name(a netip.Addr) (string, bool) {
	name, ok := map[netip.Addr]string{addressA: "a", addressB: "b"}[a]
	return name, ok
}

func newLan(h *house) *Lan {
	return &Lan{
		Network: lanNetwork, Address: lanAddress, MAC: [6]byte{0x52, 0x55, 10, 64, 0, 1}, MTU: 9000, Domain: "Lan0.disco.internal", Guests: h,
	}
}

// TestLanDHCP: each guest is told its own address and name, and not another's.
func TestLanDHCP(t *testing.T) {
	n := newNet(t, Config{Lan: newLan(&house{})})
	// ask sends a request from a MAC, and gives the answer and where it goes.
	ask := func(mac [6]byte, m *dhcpv4.DHCPv4, wait time.Duration) (*dhcpv4.DHCPv4, netip.Addr) {
		t.Helper()
		f := append([]byte(toAll), mac[:]...)
		f = append(f, 8, 0)
		f = append(f, ipv4Packet(netip.IPv4Unspecified(), broadcast, header.UDPProtocolNumber, udpPacket(68, 67, m.ToBytes()))...)
		if err := n.WriteFrame(0, [][]byte{make([]byte, frame.HeaderLen), f}); err != nil {
			t.Fatal(err)
		}
		f = next(t, n, wait)
		if f == nil {
			return nil, netip.Addr{}
		}
		ip := header.IPv4(f[frame.MinLen:])
		u := header.UDP(ip.Payload())
		if [6]byte(f) != mac || !ip.IsChecksumValid() ||
			!u.IsChecksumValid(ip.SourceAddress(), ip.DestinationAddress(), checksum.Checksum(u.Payload(), 0)) {
			t.Errorf("the answer to %v is % x", m.MessageType(), f)
		}
		a, err := dhcpv4.FromBytes(u.Payload())
		if err != nil {
			t.Fatal(err)
		}
		return a, netip.AddrFrom4(ip.DestinationAddress().As4())
	}
	const soon, late = 50 * time.Millisecond, 10 * time.Second
	for mac, want := range map[[6]byte]struct {
		address netip.Addr
		name    string
	}{macA: {addressA, "a"}, macB: {addressB, "b"}} {
		discover, err := dhcpv4.NewDiscovery(mac[:])
		if err != nil {
			t.Fatal(err)
		}
		offer, _ := ask(mac, discover, late)
		request, err := dhcpv4.NewRequestFromOffer(offer)
		if err != nil {
			t.Fatal(err)
		}
		ack, to := ask(mac, request, late)
		mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
		if ack.MessageType() != dhcpv4.MessageTypeAck || !ack.YourIPAddr.Equal(ip(want.address)) || ack.HostName() != want.name ||
			ack.DomainName() != "Lan0.disco.internal" || ack.Router() != nil || !ack.DNS()[0].Equal(ip(lanAddress)) || mtu != 9000 ||
			net.IP(ack.SubnetMask()).String() != "255.255.0.0" || to != broadcast {
			t.Errorf("%s to %v", ack.Summary(), to)
		}
		renew, err := dhcpv4.NewRenewFromAck(ack)
		if err != nil {
			t.Fatal(err)
		}
		if ack, to := ask(mac, renew, late); ack.MessageType() != dhcpv4.MessageTypeAck || to != want.address {
			t.Errorf("renewing: %s to %v", ack.Summary(), to)
		}
	}
	forB, err := dhcpv4.NewDiscovery(macB[:])
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := ask(macA, forB, soon); a != nil {
		t.Errorf("a asks for b, and is told %s", a.Summary())
	}
	relayed, err := dhcpv4.NewDiscovery(macA[:], dhcpv4.WithRelay(net.IPv4(10, 64, 0, 11)))
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := ask(macA, relayed, soon); a != nil {
		t.Errorf("a relays for nobody, and is told %s", a.Summary())
	}
	stranger := [6]byte{2, 9, 9, 9, 9, 9}
	who, err := dhcpv4.NewDiscovery(stranger[:])
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := ask(stranger, who, soon); a != nil {
		t.Errorf("a stranger is told %s", a.Summary())
	}
}

// TestLanRouter: who has no way out is told of none.
func TestLanRouter(t *testing.T) {
	l := newLan(&house{})
	if l.router().IsValid() {
		t.Errorf("without a way out the router is %v", l.router())
	}
	l.Outside = true
	if l.router() != lanAddress {
		t.Errorf("the way out is %v", l.router())
	}
	l.Outside, l.Router = false, addressB
	if l.router() != addressB {
		t.Errorf("the router is %v", l.router())
	}
}

// TestLanNames: guests' names, with and without domain, and back.
func TestLanNames(t *testing.T) {
	type question struct {
		name string
		kind dnsmessage.Type
	}
	for _, outside := range []bool{false, true} {
		l := newLan(&house{})
		l.Outside = outside
		n := newNet(t, Config{Lan: l})
		for q, want := range map[question]string{
			{"b.", dnsmessage.TypeA}:                         addressB.String(),
			{"B.LAN0.disco.internal.", dnsmessage.TypeA}:     addressB.String(),
			{"b.", dnsmessage.TypeAAAA}:                      "",
			{"11.0.64.10.in-addr.arpa.", dnsmessage.TypePTR}: "b.Lan0.disco.internal.",
			{"99.0.64.10.in-addr.arpa.", dnsmessage.TypePTR}: "RCodeNameError",
			{"host.disco.internal.", dnsmessage.TypeA}:       map[bool]string{false: "RCodeRefused", true: lanAddress.String()}[outside],
			{"example.org.", dnsmessage.TypeA}:               map[bool]string{false: "RCodeRefused", true: "RCodeServerFailure"}[outside],
			{"c.", dnsmessage.TypeA}:                         map[bool]string{false: "RCodeRefused", true: "RCodeServerFailure"}[outside],
			{"8.8.8.8.in-addr.arpa.", dnsmessage.TypePTR}:    map[bool]string{false: "RCodeRefused", true: "RCodeServerFailure"}[outside],
			{"..in-addr.arpa.", dnsmessage.TypePTR}:          "unpackable",
		} {
			if got := answerTo(t, n, q.name, q.kind); got != want {
				t.Errorf("outside %v, %v: %q, want %q", outside, q, got, want)
			}
		}
	}
}

// answerTo is what n answers, in short.
func answerTo(t *testing.T, n *Net, name string, kind dnsmessage.Type) string {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET},
	}}
	p, err := m.Pack()
	if err != nil {
		return "unpackable"
	}
	var a dnsmessage.Message
	if err := a.Unpack(n.answer(t.Context(), "udp", p)); err != nil {
		t.Fatal(err)
	}
	switch {
	case a.ID != 7 || !a.Response:
		t.Errorf("%s: the answer is %v", name, a.GoString())
	case a.RCode != dnsmessage.RCodeSuccess:
		return a.RCode.String()
	case len(a.Answers) == 0:
		return ""
	}
	switch r := a.Answers[0].Body.(type) {
	case *dnsmessage.AResource:
		return netip.AddrFrom4(r.A).String()
	case *dnsmessage.PTRResource:
		return r.PTR.String()
	}
	return "something else"
}

// TestLanStation: the station hears what is for it, and without a way out answers
// for nothing else.
func TestLanStation(t *testing.T) {
	n := newNet(t, Config{Lan: newLan(&house{})})
	syn := func(from, to netip.Addr) []byte {
		p := make([]byte, header.TCPMinimumSize)
		header.TCP(p).Encode(&header.TCPFields{SrcPort: 9, DstPort: 9, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 9})
		sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, address(from), address(to), uint16(len(p)))
		header.TCP(p).SetChecksum(^header.TCP(p).CalculateChecksum(sum))
		return ipv4Packet(from, to, header.TCPProtocolNumber, p)
	}
	arp := header.ARP(make([]byte, header.ARPSize))
	arp.SetIPv4OverEthernet()
	arp.SetOp(header.ARPRequest)
	copy(arp.HardwareAddressSender(), guestMAC)
	copy(arp.ProtocolAddressSender(), addressA.AsSlice())
	copy(arp.ProtocolAddressTarget(), lanAddress.AsSlice())
	send(t, n, toAll, header.ARPProtocolNumber, arp)
	if next(t, n, 10*time.Second) == nil {
		t.Fatal("the station has no ARP")
	}
	mac := n.lan.MAC
	for name, c := range map[string]struct {
		to     string
		packet []byte
		answer bool
	}{
		"to it":                  {string(mac[:]), syn(addressA, lanAddress), true},
		"to another station":     {string(macB[:]), syn(addressA, lanAddress), false},
		"to the world":           {string(mac[:]), syn(addressA, netip.MustParseAddr("192.0.2.1")), false},
		"to another guest by it": {string(mac[:]), syn(addressA, addressB), false},
		"to all":                 {toAll, syn(addressA, lanAddress), false},
		"from another guest":     {string(mac[:]), syn(addressB, lanAddress), false},
	} {
		send(t, n, c.to, header.IPv4ProtocolNumber, c.packet)
		wait := 50 * time.Millisecond
		if c.answer {
			wait = 10 * time.Second
		}
		if f := next(t, n, wait); (f != nil) != c.answer {
			t.Errorf("%s: answered %v", name, f != nil)
		}
	}
}

func TestLanRefused(t *testing.T) {
	for name, change := range map[string]func(l *Lan){
		"no network":           func(l *Lan) { l.Network = netip.Prefix{} },
		"IPv6":                 func(l *Lan) { l.Network = netip.MustParsePrefix("fd00::/64") },
		"no room":              func(l *Lan) { l.Network = netip.MustParsePrefix("10.64.0.0/31") },
		"a station elsewhere":  func(l *Lan) { l.Address = netip.MustParseAddr("10.65.0.1") },
		"a router elsewhere":   func(l *Lan) { l.Router = netip.MustParseAddr("10.65.0.1") },
		"a small MTU":          func(l *Lan) { l.MTU = 100 },
		"a group's MAC":        func(l *Lan) { l.MAC[0] = 1 },
		"nobody knows a guest": func(l *Lan) { l.Guests = nil },
	} {
		l := newLan(&house{})
		change(l)
		if n, err := New(Config{Lan: l}); err == nil {
			n.Close()
			t.Errorf("%s is taken", name)
		}
	}
	if n, err := New(Config{Lan: newLan(&house{}), Forwards: []Forward{{Proto: "tcp", HostPort: 1, GuestPort: 1}}}); err == nil {
		n.Close()
		t.Error("a forward is taken")
	}
}

// FuzzLanServers asks the DHCP and the name server what a hostile guest may ask. What
// they answer can be read, and is about who asks.
func FuzzLanServers(f *testing.F) {
	discover, err := dhcpv4.NewDiscovery(macA[:], dhcpv4.WithOption(dhcpv4.OptHostName("b")), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip(addressB))))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(discover.ToBytes())
	for _, name := range []string{"b.", "11.0.64.10.in-addr.arpa.", "b.lan0.disco.internal."} {
		query, err := (&dnsmessage.Message{Header: dnsmessage.Header{ID: 9}, Questions: []dnsmessage.Question{
			{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET},
		}}).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(query)
	}
	f.Add([]byte{0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1})
	n := newNet(f, Config{Lan: newLan(&house{})})
	f.Fuzz(func(t *testing.T, p []byte) {
		if a := n.lan.answerDHCP(p, macA); a != nil {
			u := header.UDP(header.IPv4(a[frame.MinLen:]).Payload())
			m, err := dhcpv4.FromBytes(u.Payload())
			if err != nil {
				t.Fatal(err)
			}
			if got := m.YourIPAddr; !got.IsUnspecified() && !got.Equal(ip(addressA)) || [6]byte(a) != macA || string(m.ClientHWAddr) != string(macA[:]) {
				t.Fatalf("% x is told %s", a[:6], m.Summary())
			}
		}
		if a := n.answer(t.Context(), "udp", p); a != nil {
			var m dnsmessage.Message
			if err := m.Unpack(a); err != nil || !m.Response || !bytes.Equal(a[:2], p[:2]) {
				t.Fatalf("% x is answered % x, %v", p, a, err)
			}
		}
	})
}

// FuzzLanFrame has the DHCP and name server of a network of several guests take
// what a hostile one may send. What it answers goes to who asked, and is in order.
func FuzzLanFrame(f *testing.F) {
	to := newLan(&house{})
	ether := func(dst string, p []byte) []byte { return append([]byte(dst+string(macA[:])+"\x08\x00"), p...) }
	discover, err := dhcpv4.NewDiscovery(macA[:])
	if err != nil {
		f.Fatal(err)
	}
	query, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName("11.0.64.10.in-addr.arpa."), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET},
	}}).Pack()
	if err != nil {
		f.Fatal(err)
	}
	own := string(to.MAC[:])
	f.Add(ether(toAll, ipv4Packet(netip.IPv4Unspecified(), broadcast, 17, udpPacket(68, 67, discover.ToBytes()))))
	f.Add(ether(own, ipv4Packet(addressA, lanAddress, 17, udpPacket(9, 53, query))))
	f.Add(ether(own, ipv4Packet(addressA, lanAddress, 17, udpPacket(9, 67, nil))))
	f.Add(ether(own, ipv4Packet(addressA, lanAddress, 6, bytes.Repeat([]byte{0x50}, 20))))
	f.Add(ether(toAll, nil))
	n := newNet(f, Config{Lan: to})
	b := make([]byte, frame.HeaderLen+frame.MaxLen)
	f.Fuzz(func(t *testing.T, p []byte) {
		converse(t, n, b, p, func() {
			if got := [6]byte(b[frame.HeaderLen+6:]); got != to.MAC {
				t.Fatalf("a frame from % x", got)
			}
		})
	})
}

// TestLanShares: a guest that uses all that it can get leaves the others theirs.
func TestLanShares(t *testing.T) {
	s := newSlots(64, lanPart)
	n := 0
	for s.take(addressA) {
		n++
	}
	if n != 16 || !s.take(addressB) {
		t.Errorf("a has %d of 64, and b none", n)
	}
	for i := range byte(100) {
		for s.take(netip.AddrFrom4([4]byte{10, 64, 1, i})) {
			n++
		}
	}
	if n != 63 {
		t.Errorf("%d of 64 are taken beside b's", n)
	}
	s.give(addressA)
	s.give(addressB)
	for n = 0; s.take(addressB); n++ {
	}
	if n != 2 {
		t.Errorf("of 2 that were given back %d are there", n)
	}
}
