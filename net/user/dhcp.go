package user

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"disco/net/frame"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68
	leaseTime      = 24 * time.Hour
	// ttl of datagrams of our own.
	ttl = 64
)

var broadcastMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// dhcpRequest is what a frame has for a DHCP server, nil if nothing. DHCP is
// answered by the frame, past the netstack, because only the frame says who asks.
// What is in fragments is for nobody.
func dhcpRequest(f []byte) []byte {
	if len(f) < frame.MinLen || binary.BigEndian.Uint16(f[12:]) != uint16(header.IPv4ProtocolNumber) {
		return nil
	}
	h := header.IPv4(f[frame.MinLen:])
	if !h.IsValid(len(h)) || h.TransportProtocol() != header.UDPProtocolNumber || h.More() || h.FragmentOffset() != 0 {
		return nil
	}
	u := header.UDP(h.Payload())
	if len(u) < header.UDPMinimumSize || u.DestinationPort() != dhcpServerPort || int(u.Length()) < header.UDPMinimumSize || int(u.Length()) > len(u) {
		return nil
	}
	return u[header.UDPMinimumSize:u.Length()]
}

// answerDHCP is the frame that answers a request of the guest with a MAC, nil if
// there is none.
func (l *Lan) answerDHCP(p []byte, mac [6]byte) []byte {
	request, err := dhcpv4.FromBytes(p)
	if err != nil || request.OpCode != dhcpv4.OpcodeBootRequest || !request.GatewayIPAddr.IsUnspecified() {
		return nil
	}
	// Who asks for another gets nothing, not even to know.
	if string(request.ClientHWAddr) != string(mac[:]) {
		return nil
	}
	lease, ok := l.Guests.Lease(mac)
	if !ok {
		return nil
	}
	answer := l.answer(request, &lease)
	if answer == nil {
		return nil
	}
	// One that has its address may listen to nothing else (RFC 2131 §4.1).
	to := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if request.ClientIPAddr.Equal(ip(lease.Address)) {
		to = lease.Address
	}
	return l.datagram(mac, to, answer.ToBytes())
}

// answer is the answer to a request, nil if there is none.
func (l *Lan) answer(request *dhcpv4.DHCPv4, lease *Lease) *dhcpv4.DHCPv4 {
	if to := request.ServerIdentifier(); to != nil && !to.Equal(ip(l.Address)) {
		return nil
	}
	var kind dhcpv4.MessageType
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		kind = dhcpv4.MessageTypeAck
		asked := request.RequestedIPAddress()
		if asked == nil {
			asked = request.ClientIPAddr
		}
		if !asked.Equal(ip(lease.Address)) {
			kind = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
		kind = dhcpv4.MessageTypeAck
	default:
		return nil
	}
	answer, err := dhcpv4.NewReplyFromRequest(request,
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithServerIP(ip(l.Address)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip(l.Address))),
	)
	if err != nil || kind == dhcpv4.MessageTypeNak {
		return answer
	}
	options := []dhcpv4.Option{
		dhcpv4.OptSubnetMask(net.CIDRMask(l.Network.Bits(), 32)),
		dhcpv4.OptDNS(ip(l.names)),
		{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(l.MTU)},
	}
	if r := l.router(); r.IsValid() {
		options = append(options, dhcpv4.OptRouter(ip(r)))
	}
	if lease.Name != "" {
		options = append(options, dhcpv4.OptHostName(lease.Name))
	}
	if l.Domain != "" {
		options = append(options, dhcpv4.OptDomainName(l.Domain))
	}
	if request.MessageType() != dhcpv4.MessageTypeInform {
		answer.YourIPAddr = ip(lease.Address)
		options = append(options, dhcpv4.OptIPAddressLeaseTime(leaseTime))
	}
	for _, o := range options {
		answer.UpdateOption(o)
	}
	return answer
}

// datagram is the frame by which a DHCP server's answer goes to a guest.
func (l *Lan) datagram(mac [6]byte, to netip.Addr, p []byte) []byte {
	const udpAt = frame.MinLen + header.IPv4MinimumSize
	f := make([]byte, udpAt+header.UDPMinimumSize+len(p))
	copy(f[udpAt+header.UDPMinimumSize:], p)
	header.Ethernet(f).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(l.MAC[:]), DstAddr: tcpip.LinkAddress(mac[:]), Type: header.IPv4ProtocolNumber,
	})
	h := header.IPv4(f[frame.MinLen:])
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(h)), TTL: ttl, Protocol: uint8(header.UDPProtocolNumber),
		SrcAddr: address(l.Address), DstAddr: address(to),
	})
	h.SetChecksum(^h.CalculateChecksum())
	u := header.UDP(f[udpAt:])
	u.Encode(&header.UDPFields{SrcPort: dhcpServerPort, DstPort: dhcpClientPort, Length: uint16(len(u))})
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, address(l.Address), address(to), uint16(len(u)))
	u.SetChecksum(^u.CalculateChecksum(checksum.Checksum(p, sum)))
	return f
}

func ip(a netip.Addr) net.IP { return a.AsSlice() }
