package lan

import (
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"disco/net/frame"
	"disco/net/segment"
	"disco/net/tap"
)

// TestHostTapUplink: a guest on the segment reaches the host by a tap, and the host
// it, in a network of the test's own.
func TestHostTapUplink(t *testing.T) {
	// The thread is not given back, so that the network ends with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("a network namespace needs root: %v", err)
	}
	dev, err := tap.Open(tap.Config{Name: "disco0", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	link, err := netlink.LinkByName("disco0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: netlink.NewIPNet([]byte{10, 64, 255, 254})}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4(10, 64, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}}); err != nil {
		t.Fatal(err)
	}

	s := newSegment(t)
	l := newLan(t, s, "10.64.0.0/16", "10.64.255.254")
	cable, err := Plug(s, segment.StationConfig{Name: "tap=disco0", MAC: mac(9), Trusted: true}, dev)
	if err != nil {
		t.Fatal(err)
	}
	defer cable.Close()
	if got := add(t, l, "a", 0, 1); got != "10.64.0.2" {
		t.Fatal(got)
	}
	frames := make(chan []byte, 64)
	guest, err := s.Station(segment.StationConfig{Name: "a", MAC: mac(1), Deliver: func(f []byte) {
		select {
		case frames <- append([]byte(nil), f[frame.HeaderLen:]...):
		default:
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	own, host := netip.MustParseAddr("10.64.0.2"), netip.MustParseAddr("10.64.255.254")

	hostMAC := [6]byte(link.Attrs().HardwareAddr)
	if err := guest.Send(ether([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac(1), header.ARPProtocolNumber, arp(header.ARPRequest, mac(1), own, [6]byte{}, host))); err != nil {
		t.Fatal(err)
	}
	reply := await(t, frames, func(f []byte) bool {
		return protocol(f) == header.ARPProtocolNumber && header.ARP(f[frame.MinLen:]).Op() == header.ARPReply
	})
	if got := [6]byte(header.ARP(reply[frame.MinLen:]).HardwareAddressSender()); got != hostMAC {
		t.Fatalf("the host says that it is % x, and is % x", got, hostMAC)
	}

	ping := header.ICMPv4(make([]byte, 40))
	ping.SetType(header.ICMPv4Echo)
	ping.SetChecksum(header.ICMPv4Checksum(ping, 0))
	packet := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(ping))
	h := header.IPv4(packet)
	h.Encode(&header.IPv4Fields{TotalLength: uint16(cap(packet)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber),
		SrcAddr: tcpip.AddrFrom4(own.As4()), DstAddr: tcpip.AddrFrom4(host.As4())})
	h.SetChecksum(^h.CalculateChecksum())
	if err := guest.Send(ether(hostMAC, mac(1), header.IPv4ProtocolNumber, append(packet, ping...))); err != nil {
		t.Fatal(err)
	}
	// Who it is that pings the host knows from the question.
	await(t, frames, func(f []byte) bool {
		if protocol(f) != header.IPv4ProtocolNumber {
			return false
		}
		h := header.IPv4(f[frame.MinLen:])
		return h.TransportProtocol() == header.ICMPv4ProtocolNumber && header.ICMPv4(h.Payload()).Type() == header.ICMPv4EchoReply
	})
}

// await gives the first frame that is wanted.
func await(t *testing.T, frames <-chan []byte, wanted func(f []byte) bool) []byte {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case f := <-frames:
			if wanted(f) {
				return f
			}
		case <-late:
			t.Fatal("what should come does not")
		}
	}
}

func protocol(f []byte) tcpip.NetworkProtocolNumber { return header.Ethernet(f).Type() }

// ether is a frame after its header.
func ether(to, from [6]byte, kind tcpip.NetworkProtocolNumber, p []byte) []byte {
	f := make([]byte, frame.HeaderLen+frame.MinLen, frame.HeaderLen+frame.MinLen+len(p))
	header.Ethernet(f[frame.HeaderLen:]).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(from[:]), DstAddr: tcpip.LinkAddress(to[:]), Type: kind})
	return append(f, p...)
}

func arp(op header.ARPOp, from [6]byte, own netip.Addr, to [6]byte, other netip.Addr) []byte {
	p := header.ARP(make([]byte, header.ARPSize))
	p.SetIPv4OverEthernet()
	p.SetOp(op)
	copy(p.HardwareAddressSender(), from[:])
	copy(p.ProtocolAddressSender(), own.AsSlice())
	copy(p.HardwareAddressTarget(), to[:])
	copy(p.ProtocolAddressTarget(), other.AsSlice())
	return p
}
