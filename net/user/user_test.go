package user

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"disco/net/frame"
)

const guestMAC = "\x02\x00\x00\x00\x00\x01"

// gatewayMAC is the one neighbour that the guest of a network of its own sees.
const gatewayMAC = "\x52\x55\x0a\x00\x02\x02"

func newNet(t testing.TB, c Config) *Net {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.servers == nil {
		c.servers = func() []string { return nil }
	}
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// guest is a machine on the network: another netstack.
type guest struct {
	stack *stack.Stack
	// long counts frames longer than the MTU, each way.
	mu                 sync.Mutex
	longSent, longRead int
}

// newGuest puts a machine on n, with the offloads that it takes and uses.
func newGuest(t testing.TB, n *Net, o frame.Offloads) *guest {
	t.Helper()
	g := &guest{}
	wire := channel.New(1024, MTU+frame.MinLen, guestMAC)
	wire.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	if o.Has(frame.TSO4) {
		wire.SupportedGSOKind = stack.HostGSOSupported
	}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	check := func(err tcpip.Error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(g.stack.CreateNIC(nic, ethernet.New(wire)))
	check(g.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(Guest), PrefixLen: 24},
	}, stack.AddressProperties{}))
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, Gateway: address(Gateway), NIC: nic},
	})
	if err := n.Attach(1, o); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for p := wire.ReadContext(ctx); p != nil; p = wire.ReadContext(ctx) {
			view := p.ToView()
			if view.Size() > MTU+frame.MinLen {
				g.mu.Lock()
				g.longSent++
				g.mu.Unlock()
			}
			head := make([]byte, frame.HeaderLen)
			if err := n.WriteFrame(0, [][]byte{head[:5], head[5:], view.AsSlice()}); err != nil {
				t.Errorf("WriteFrame: %v", err)
			}
			p.DecRef()
		}
	})
	work.Go(func() {
		b := make([]byte, frame.HeaderLen+frame.MaxLen)
		for {
			m, err := n.ReadFrame(0, [][]byte{b[:3], b[3:1000], b[1000:]}, true)
			if err != nil {
				return
			}
			f := b[frame.HeaderLen:m]
			h := frame.Parse(b)
			if h.Check(len(f), o) != nil {
				t.Errorf("a frame of %d bytes with %+v, for a guest that takes %b", len(f), h, o)
			}
			if len(f) > MTU+frame.MinLen {
				g.mu.Lock()
				g.longRead++
				g.mu.Unlock()
			}
			wire.InjectInbound(0, stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)}))
		}
	})
	t.Cleanup(func() {
		cancel()
		n.Interrupt()
		g.stack.Destroy()
		work.Wait()
	})
	return g
}

func (g *guest) dial(t testing.TB, to netip.Addr, port uint16) *gonet.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, g.stack, full(to, port), ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// listen listens on the host, and hands each connection to serve.
func listen(t testing.TB, serve func(c net.Conn)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func free(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestTCPToHost(t *testing.T) {
	const size = 8 << 20
	for _, o := range []frame.Offloads{0, frame.Checksum | frame.TSO4} {
		t.Run(fmt.Sprintf("offloads %b", o), func(t *testing.T) {
			n := newNet(t, Config{})
			g := newGuest(t, n, o)
			// The host sends back what it gets, and ends when the guest does.
			port := listen(t, func(c net.Conn) {
				p, _ := io.ReadAll(c)
				_, _ = c.Write(p)
			})
			c := g.dial(t, Gateway, port)
			want := make([]byte, size)
			for i := range want {
				want[i] = byte(i >> 8 * 31)
			}
			if _, err := c.Write(want); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes came back, %v", len(got), err)
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			if long := o != 0; (g.longSent > 0) != long || (g.longRead > 0) != long {
				t.Errorf("%d long frames sent and %d received", g.longSent, g.longRead)
			}
		})
	}
}

func TestTCPRefused(t *testing.T) {
	n := newNet(t, Config{})
	g := newGuest(t, n, 0)
	for _, to := range []string{
		Gateway.String() + ":" + fmt.Sprint(free(t)), // nobody listens
		DNS.String() + ":80",
		"10.0.2.77:80",
		"169.254.169.254:80",
	} {
		at := netip.MustParseAddrPort(to)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		c, err := gonet.DialContextTCP(ctx, g.stack, full(at.Addr(), at.Port()), ipv4.ProtocolNumber)
		if err == nil {
			c.Close()
			t.Errorf("%s takes connections", to)
		} else if ctx.Err() != nil {
			t.Errorf("%s does not refuse connections but lets them wait", to)
		}
		cancel()
	}
}

func TestTarget(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"10.0.2.2", "127.0.0.1"},
		{"8.8.8.8", "8.8.8.8"},
		{"192.168.1.1", "192.168.1.1"},
		{"10.0.3.1", "10.0.3.1"},
		{"10.0.2.1", ""},
		{"10.0.2.3", ""},
		{"10.0.2.15", ""},
		{"10.0.2.255", ""},
		{"127.0.0.1", ""},
		{"127.9.9.9", ""},
		{"0.0.0.0", ""},
		{"169.254.169.254", ""},
		{"224.0.0.251", ""},
		{"239.1.1.1", ""},
		{"240.0.0.1", ""},
		{"255.255.255.255", ""},
	} {
		to, ok := one.target(netip.MustParseAddr(c.from))
		if got := to.String(); ok != (c.to != "") || ok && got != c.to {
			t.Errorf("%s goes to %s, %v; want %q", c.from, got, ok, c.to)
		}
	}
}

func TestForwardTCP(t *testing.T) {
	port := free(t)
	n := newNet(t, Config{Forwards: []Forward{{Proto: "tcp", HostPort: port, GuestPort: 80}}})
	g := newGuest(t, n, frame.Checksum|frame.TSO4)
	l, err := gonet.ListenTCP(g.stack, full(Guest, 80), ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte("disco "), 100000)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) })}
	go func() { _ = server.Serve(l) }()
	defer server.Close()

	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for range 3 {
		r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || !bytes.Equal(got, page) {
			t.Fatalf("%d bytes of the page came, %v", len(got), err)
		}
	}
}

func TestForwardTCPRefused(t *testing.T) {
	port := free(t)
	n := newNet(t, Config{Forwards: []Forward{{Proto: "tcp", HostPort: port, GuestPort: 80}}})
	newGuest(t, n, 0)
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return // the reset was quicker than we are
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a port that the guest does not serve gives %v", err)
	}
}

func TestUDPToHost(t *testing.T) {
	host, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	go func() {
		b := make([]byte, chunkSize)
		for {
			m, from, err := host.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = host.WriteToUDPAddrPort(b[:m], from)
		}
	}()
	g := newGuest(t, newNet(t, Config{}), 0)
	to := full(Gateway, uint16(host.LocalAddr().(*net.UDPAddr).Port))
	c, err := gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, size := range []int{1, 1000, 1472, 1473, 20000, 1} {
		want := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		got := make([]byte, chunkSize)
		m, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:m], want) {
			t.Fatalf("%d bytes: %d came back, %v", size, m, err)
		}
	}
}

func TestForwardUDP(t *testing.T) {
	port := free(t)
	n := newNet(t, Config{Forwards: []Forward{{Proto: "udp", HostPort: port, GuestPort: 5000}}})
	g := newGuest(t, n, 0)
	at := full(Guest, 5000)
	server, err := gonet.DialUDP(g.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		b := make([]byte, 2000)
		for {
			m, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(bytes.ToUpper(b[:m]), from)
		}
	}()
	for i := range 3 { // clients
		c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 2 {
			fmt.Fprintf(c, "hello %d", i)
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			b := make([]byte, 100)
			m, err := c.Read(b)
			if want := fmt.Sprintf("HELLO %d", i); err != nil || string(b[:m]) != want {
				t.Fatalf("%q came, %v; want %q", b[:m], err, want)
			}
		}
	}
}

func TestForwardRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := uint16(taken.Addr().(*net.TCPAddr).Port)
	spare := free(t)
	for _, c := range []struct {
		f    Forward
		want string
	}{
		{Forward{Proto: "tcp", HostPort: busy, GuestPort: 80}, fmt.Sprintf("user network: forward tcp:%d:80: port %d is taken on this host; choose another", busy, busy)},
		{Forward{Proto: "sctp", HostPort: spare, GuestPort: 80}, "use tcp or udp"},
		{Forward{Proto: "tcp", GuestPort: 80}, "1 to 65535"},
		{Forward{Proto: "tcp", HostPort: spare}, "1 to 65535"},
		{Forward{Proto: "tcp", HostAddr: "localhost", HostPort: spare, GuestPort: 80}, "no IP address"},
		{Forward{Proto: "udp", HostAddr: "203.0.113.9", HostPort: spare, GuestPort: 80}, "does not have the address"},
	} {
		// What was opened before the one that fails is closed again.
		good := Forward{Proto: "udp", HostPort: spare, GuestPort: 9}
		for range 2 {
			n, err := New(Config{Forwards: []Forward{good, c.f}})
			if err == nil {
				n.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v: %v, want %q in it", c.f, err, c.want)
			}
		}
	}
}

// send gives n a frame to a group or to the gateway, as by hand.
func send(t *testing.T, n *Net, to string, kind tcpip.NetworkProtocolNumber, p []byte) {
	t.Helper()
	eth := make([]byte, frame.HeaderLen+frame.MinLen)
	copy(eth[frame.HeaderLen:], to)
	copy(eth[frame.HeaderLen+6:], guestMAC)
	binary.BigEndian.PutUint16(eth[frame.HeaderLen+12:], uint16(kind))
	if err := n.WriteFrame(0, [][]byte{eth, p}); err != nil {
		t.Fatal(err)
	}
}

// next gives the next frame for the guest, nil if none comes soon.
func next(t *testing.T, n *Net, soon time.Duration) []byte {
	t.Helper()
	b := make([]byte, 2000)
	for late := time.Now().Add(soon); time.Now().Before(late); time.Sleep(time.Millisecond) {
		m, err := n.ReadFrame(0, [][]byte{b}, false)
		if err != nil {
			t.Fatal(err)
		}
		if m > 0 {
			return b[frame.HeaderLen:m]
		}
	}
	return nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

const toAll = "\xff\xff\xff\xff\xff\xff"

func TestARP(t *testing.T) {
	n := newNet(t, Config{})
	for _, c := range []struct {
		asked  netip.Addr
		answer bool
	}{{Gateway, true}, {DNS, true}, {Guest, false}, {netip.MustParseAddr("10.0.2.1"), false}, {netip.MustParseAddr("8.8.8.8"), false}} {
		p := header.ARP(make([]byte, header.ARPSize))
		p.SetIPv4OverEthernet()
		p.SetOp(header.ARPRequest)
		copy(p.HardwareAddressSender(), guestMAC)
		copy(p.ProtocolAddressSender(), Guest.AsSlice())
		copy(p.ProtocolAddressTarget(), c.asked.AsSlice())
		send(t, n, toAll, header.ARPProtocolNumber, p)
		wait := 50 * time.Millisecond
		if c.answer {
			wait = 10 * time.Second
		}
		f := next(t, n, wait)
		if (f != nil) != c.answer {
			t.Fatalf("who has %v: answered %v, want %v", c.asked, f != nil, c.answer)
		}
		if f == nil {
			continue
		}
		a := header.ARP(f[frame.MinLen:])
		if string(f[:6]) != guestMAC || a.Op() != header.ARPReply || string(a.HardwareAddressSender()) != gatewayMAC ||
			!bytes.Equal(a.ProtocolAddressSender(), c.asked.AsSlice()) {
			t.Errorf("who has %v: % x", c.asked, f)
		}
	}
}

// ipv4Packet is an IP packet by hand.
func ipv4Packet(from, to netip.Addr, protocol tcpip.TransportProtocolNumber, p []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(p))
	h := header.IPv4(b)
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + len(p)), TTL: 64, Protocol: uint8(protocol),
		SrcAddr: address(from), DstAddr: address(to),
	})
	h.SetChecksum(^h.CalculateChecksum())
	return append(b, p...)
}

func udpPacket(from, to uint16, p []byte) []byte {
	b := make([]byte, header.UDPMinimumSize, header.UDPMinimumSize+len(p))
	header.UDP(b).Encode(&header.UDPFields{SrcPort: from, DstPort: to, Length: uint16(header.UDPMinimumSize + len(p))})
	return append(b, p...)
}

func TestDHCP(t *testing.T) {
	n := newNet(t, Config{})
	mac := net.HardwareAddr(guestMAC)
	ask := func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		t.Helper()
		p := udpPacket(68, 67, m.ToBytes())
		send(t, n, toAll, header.IPv4ProtocolNumber, ipv4Packet(netip.IPv4Unspecified(), broadcast, header.UDPProtocolNumber, p))
		f := next(t, n, 10*time.Second)
		if f == nil {
			t.Fatalf("no answer to %v", m.MessageType())
		}
		if string(f[:6]) != guestMAC {
			t.Errorf("the answer to %v goes to % x", m.MessageType(), f[:6])
		}
		u := header.UDP(f[frame.MinLen+header.IPv4MinimumSize:])
		if u.DestinationPort() != 68 {
			t.Errorf("the answer to %v goes to port %d", m.MessageType(), u.DestinationPort())
		}
		a, err := dhcpv4.FromBytes(u.Payload())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	discover, err := dhcpv4.NewDiscovery(mac)
	if err != nil {
		t.Fatal(err)
	}
	offer := ask(discover)
	if offer.MessageType() != dhcpv4.MessageTypeOffer || !offer.YourIPAddr.Equal(ip(Guest)) {
		t.Errorf("offer: %v", offer.Summary())
	}
	request, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		t.Fatal(err)
	}
	ack := ask(request)
	mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
	if ack.MessageType() != dhcpv4.MessageTypeAck || !ack.YourIPAddr.Equal(ip(Guest)) ||
		!ack.Router()[0].Equal(ip(Gateway)) || !ack.DNS()[0].Equal(ip(DNS)) || mtu != MTU ||
		net.IP(ack.SubnetMask()).String() != "255.255.255.0" || ack.IPAddressLeaseTime(0) != leaseTime {
		t.Errorf("ack: %v", ack.Summary())
	}
	request.UpdateOption(dhcpv4.OptRequestedIPAddress(net.IPv4(192, 168, 1, 7)))
	if nak := ask(request); nak.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("a request for another address: %v", nak.Summary())
	}

	for name, p := range map[string][]byte{
		"nothing": nil, "garbage": bytes.Repeat([]byte{7}, 300), "our own offer": offer.ToBytes(),
	} {
		if a := one.answerDHCP(p, [6]byte(mac)); a != nil {
			t.Errorf("%s is answered", name)
		}
	}
	request.UpdateOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 2, 99)))
	if a := one.answerDHCP(request.ToBytes(), [6]byte(mac)); a != nil {
		t.Error("a request to another server is answered")
	}
}

func TestPing(t *testing.T) {
	n := newNet(t, Config{})
	newARP(t, n)
	for _, c := range []struct {
		to     netip.Addr
		answer bool
	}{{Gateway, true}, {DNS, true}, {netip.MustParseAddr("8.8.8.8"), false}} {
		p := header.ICMPv4(make([]byte, 16))
		p.SetType(header.ICMPv4Echo)
		p.SetChecksum(header.ICMPv4Checksum(p, 0))
		send(t, n, gatewayMAC, header.IPv4ProtocolNumber, ipv4Packet(Guest, c.to, header.ICMPv4ProtocolNumber, p))
		wait := 50 * time.Millisecond
		if c.answer {
			wait = 10 * time.Second
		}
		if f := next(t, n, wait); (f != nil) != c.answer {
			t.Errorf("ping %v: answered %v", c.to, f != nil)
		}
	}
}

// newARP makes the guest known to the netstack.
func newARP(t *testing.T, n *Net) {
	t.Helper()
	p := header.ARP(make([]byte, header.ARPSize))
	p.SetIPv4OverEthernet()
	p.SetOp(header.ARPRequest)
	copy(p.HardwareAddressSender(), guestMAC)
	copy(p.ProtocolAddressSender(), Guest.AsSlice())
	copy(p.ProtocolAddressTarget(), Gateway.AsSlice())
	send(t, n, toAll, header.ARPProtocolNumber, p)
	if next(t, n, 10*time.Second) == nil {
		t.Fatal("the gateway is not there")
	}
}

// nameServer is a name server on the host that knows one name.
func nameServer(t *testing.T, network string) string {
	t.Helper()
	respond := func(q []byte) []byte {
		var m dnsmessage.Message
		if err := m.Unpack(q); err != nil {
			return nil
		}
		m.Response = true
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET},
			Body:   &dnsmessage.TXTResource{TXT: []string{"from " + network}},
		}}
		p, _ := m.Pack()
		return p
	}
	if network == "tcp" {
		return fmt.Sprintf("127.0.0.1:%d", listen(t, func(c net.Conn) {
			for {
				q, err := readMessage(c)
				if err != nil || writeMessage(c, respond(q)) != nil {
					return
				}
			}
		}))
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			m, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte("an answer to nothing"), from)
			_, _ = c.WriteTo(respond(b[:m]), from)
		}
	}()
	return c.LocalAddr().String()
}

func TestDNS(t *testing.T) {
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	nobody := fmt.Sprintf("127.0.0.1:%d", free(t))
	const host, other = HostName + ".", "www.example.org."
	for _, c := range []struct {
		name    string
		network string
		servers []string
		ask     string
		kind    dnsmessage.Type
		code    dnsmessage.RCode
		answer  string
	}{
		{"host", "udp", nil, host, dnsmessage.TypeA, 0, "10.0.2.2"},
		{"host in capitals", "udp", nil, "Host.Disco.INTERNAL.", dnsmessage.TypeA, 0, "10.0.2.2"},
		{"host by TCP", "tcp", nil, host, dnsmessage.TypeA, 0, "10.0.2.2"},
		{"host's IPv6", "udp", nil, host, dnsmessage.TypeAAAA, 0, ""},
		{"no server", "udp", nil, other, dnsmessage.TypeA, dnsmessage.RCodeServerFailure, ""},
		{"nobody there", "udp", []string{nobody}, other, dnsmessage.TypeA, dnsmessage.RCodeServerFailure, ""},
		{"nobody there, TCP", "tcp", []string{nobody}, other, dnsmessage.TypeA, dnsmessage.RCodeServerFailure, ""},
		{"no answer", "udp", []string{deaf.LocalAddr().String()}, other, dnsmessage.TypeA, dnsmessage.RCodeServerFailure, ""},
		{"asked", "udp", []string{nameServer(t, "udp")}, other, dnsmessage.TypeTXT, 0, "from udp"},
		{"asked by TCP", "tcp", []string{nameServer(t, "tcp")}, other, dnsmessage.TypeTXT, 0, "from tcp"},
		{"the second", "udp", []string{nobody, nameServer(t, "udp")}, other, dnsmessage.TypeTXT, 0, "from udp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNet(t, Config{servers: func() []string { return c.servers }})
			g := newGuest(t, n, 0)
			q := dnsmessage.Message{
				Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
				Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(c.ask), Type: c.kind, Class: dnsmessage.ClassINET}},
			}
			p, err := q.Pack()
			if err != nil {
				t.Fatal(err)
			}
			var a dnsmessage.Message
			began := time.Now()
			if err := a.Unpack(exchange(t, g, c.network, p)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
			got := ""
			for _, r := range a.Answers {
				switch b := r.Body.(type) {
				case *dnsmessage.AResource:
					got = netip.AddrFrom4(b.A).String()
				case *dnsmessage.TXTResource:
					got = b.TXT[0]
				}
			}
			if a.ID != q.ID || !a.Response || a.RCode != c.code || got != c.answer || len(a.Questions) != 1 {
				t.Errorf("%+v", a)
			}
		})
	}
}

func exchange(t *testing.T, g *guest, network string, p []byte) []byte {
	t.Helper()
	if network == "tcp" {
		c := g.dial(t, DNS, dnsPort)
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := writeMessage(c, p); err != nil {
			t.Fatal(err)
		}
		a, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	to := full(DNS, dnsPort)
	c, err := gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2000)
	m, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:m]
}

func TestNameServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if got := nameServers(path); got != nil {
		t.Errorf("without the file: %v", got)
	}
	text := "# nameserver 9.9.9.9\nsearch example.org\nnameserver\nnameserver 192.0.2.1 # one\nnameserver nonsense\n  nameserver ::1\nnameserver fe80::1%eth0\nnameserver 192.0.2.4\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := nameServers(path), []string{"192.0.2.1:53", "[::1]:53", "[fe80::1%eth0]:53"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestBoundOnFramesWaiting(t *testing.T) {
	n := newNet(t, Config{})
	newARP(t, n)
	p := header.ICMPv4(make([]byte, 1400))
	p.SetType(header.ICMPv4Echo)
	p.SetChecksum(header.ICMPv4Checksum(p, 0))
	packet := ipv4Packet(Guest, Gateway, header.ICMPv4ProtocolNumber, p)
	for range maxWaiting + 100 {
		send(t, n, gatewayMAC, header.IPv4ProtocolNumber, packet)
	}
	if n.link.count > maxWaiting || n.Dropped() == 0 {
		t.Errorf("%d frames wait, %d were dropped", n.link.count, n.Dropped())
	}
	if err := n.Attach(1, 0); err != nil || n.link.count != 0 || n.link.bytes != 0 {
		t.Errorf("%d frames, %d bytes wait for a new driver, %v", n.link.count, n.link.bytes, err)
	}
}

func TestWriteFrameRefuses(t *testing.T) {
	n := newNet(t, Config{})
	for _, size := range []int{0, frame.HeaderLen + frame.MinLen - 1, frame.HeaderLen + frame.MaxLen + 1} {
		if err := n.WriteFrame(0, [][]byte{make([]byte, size)}); err == nil {
			t.Errorf("a frame of %d bytes with its header was taken", size)
		}
	}
}

func inUse(s *slots) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func TestClose(t *testing.T) {
	// What the process starts once.
	newNet(t, Config{}).Close()
	time.Sleep(50 * time.Millisecond)
	before := runtime.NumGoroutine()
	forwards := []Forward{
		{Proto: "tcp", HostPort: free(t), GuestPort: 80},
		{Proto: "udp", HostPort: free(t), GuestPort: 90},
	}
	deaf, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	for range 3 { // on the same ports
		t.Run("", func(t *testing.T) {
			n := newNet(t, Config{Forwards: forwards, servers: func() []string { return []string{deaf.LocalAddr().String()} }})
			g := newGuest(t, n, frame.Checksum|frame.TSO4)

			// Connections and flows are open each way, one is being set up, and
			// a name is being asked for.
			l, err := gonet.ListenTCP(g.stack, full(Guest, 80), ipv4.ProtocolNumber)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			in, err := net.Dial("tcp", forwards[0].hostAddr())
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if _, err := l.Accept(); err != nil {
				t.Fatal(err)
			}
			port := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
			out := g.dial(t, Gateway, port)
			if _, err := out.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			datagram, err := net.Dial("udp", forwards[1].hostAddr())
			if err != nil {
				t.Fatal(err)
			}
			defer datagram.Close()
			fmt.Fprint(datagram, "x")
			for _, to := range []tcpip.FullAddress{full(Gateway, uint16(deaf.LocalAddr().(*net.UDPAddr).Port)), full(DNS, dnsPort)} {
				c, err := gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				q := []byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x00\x00\x01\x00\x01")
				if _, err := c.Write(q); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(20 * time.Millisecond)

			began := time.Now()
			for range 2 {
				if err := n.Close(); err != nil {
					t.Error(err)
				}
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("Close took %v", took)
			}
			if inUse(n.conns)+inUse(n.flows)+inUse(n.queries) != 0 {
				t.Errorf("%d connections, %d flows and %d queries are left", inUse(n.conns), inUse(n.flows), inUse(n.queries))
			}
		})
	}
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i == 5000 {
			b := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

// converse sends a frame of any bytes, and reads the answers into b, which must be
// frames; each is called after each.
func converse(t *testing.T, n *Net, b, p []byte, each func()) {
	t.Helper()
	_ = n.WriteFrame(0, [][]byte{make([]byte, frame.HeaderLen), p})
	for {
		m, err := n.ReadFrame(0, [][]byte{b}, false)
		if err != nil {
			t.Fatal(err)
		}
		if m == 0 {
			return
		}
		if err := frame.Parse(b).Check(m-frame.HeaderLen, 0); err != nil {
			t.Fatal(err)
		}
		each()
	}
}

// FuzzUserFrame writes what a hostile guest may.
func FuzzUserFrame(f *testing.F) {
	f.Add([]byte(toAll + guestMAC + "\x08\x06"))
	f.Add(append([]byte(toAll+guestMAC+"\x08\x00"), ipv4Packet(Guest, Gateway, 17, udpPacket(9, 67, []byte("x")))...))
	f.Add(append([]byte(toAll+guestMAC+"\x08\x00"), ipv4Packet(Guest, DNS, 17, udpPacket(9, 53, []byte("x")))...))
	f.Add(append([]byte(toAll+guestMAC+"\x08\x00"), ipv4Packet(Guest, Gateway, 1, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})...))
	n := newNet(f, Config{})
	b := make([]byte, frame.HeaderLen+frame.MaxLen)
	f.Fuzz(func(t *testing.T, p []byte) {
		// It may open connections to this host's ports; that is not the aim.
		if len(p) >= 34 && p[12] == 8 && p[13] == 0 {
			if to := netip.AddrFrom4([4]byte(p[30:34])); to != DNS && to != broadcast && (p[23] == 6 || p[23] == 17) {
				return
			}
		}
		converse(t, n, b, p, func() {})
	})
}

// BenchmarkTCP carries bytes to and from the host's loopback.
func BenchmarkTCP(b *testing.B) {
	for _, o := range []frame.Offloads{0, frame.Checksum | frame.TSO4} {
		for _, way := range []string{"out", "in"} {
			b.Run(fmt.Sprintf("offloads %b/%s", o, way), func(b *testing.B) {
				g := newGuest(b, newNet(b, Config{}), o)
				p := make([]byte, 1<<20)
				total := b.N * len(p)
				b.SetBytes(int64(len(p)))
				done := make(chan struct{})
				if way == "out" {
					c := g.dial(b, Gateway, listen(b, func(c net.Conn) {
						_, _ = io.CopyN(io.Discard, c, int64(total))
						close(done)
					}))
					b.ResetTimer()
					for range b.N {
						if _, err := c.Write(p); err != nil {
							b.Fatal(err)
						}
					}
					<-done
					return
				}
				c := g.dial(b, Gateway, listen(b, func(c net.Conn) {
					<-done
					for range b.N {
						_, _ = c.Write(p)
					}
				}))
				b.ResetTimer()
				close(done)
				if _, err := io.CopyN(io.Discard, c, int64(total)); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
