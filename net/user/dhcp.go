package user

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68
	leaseTime      = 24 * time.Hour
)

// serveDHCP answers DHCP requests: there is one guest, so one lease for all.
func (n *Net) serveDHCP() error {
	var queue waiter.Queue
	e, err := n.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &queue)
	if err != nil {
		return wrap("DHCP", err)
	}
	e.SocketOptions().SetBroadcast(true)
	if err := e.Bind(tcpip.FullAddress{NIC: nic, Port: dhcpServerPort}); err != nil {
		e.Close()
		return wrap("DHCP", err)
	}
	c := gonet.NewUDPConn(&queue, e)
	if err := n.keep(c); err != nil {
		return err
	}
	n.spawn(func() {
		// The client has no address yet, and one that renews hears broadcasts.
		to := &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpClientPort}
		var b [MTU]byte
		for {
			m, _, err := c.ReadFrom(b[:])
			if err != nil {
				return
			}
			if answer := answerDHCP(b[:m]); answer != nil {
				_, _ = c.WriteTo(answer, to)
			}
		}
	})
	return nil
}

// answerDHCP is the answer to a request, nil if there is none.
func answerDHCP(p []byte) []byte {
	request, err := dhcpv4.FromBytes(p)
	if err != nil || request.OpCode != dhcpv4.OpcodeBootRequest {
		return nil
	}
	if to := request.ServerIdentifier(); to != nil && !to.Equal(ip(Gateway)) {
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
		if !asked.Equal(ip(Guest)) {
			kind = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
		kind = dhcpv4.MessageTypeAck
	default:
		return nil
	}
	answer, err := dhcpv4.NewReplyFromRequest(request,
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithServerIP(ip(Gateway)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip(Gateway))),
	)
	if err != nil {
		return nil
	}
	if kind == dhcpv4.MessageTypeNak {
		return answer.ToBytes()
	}
	for _, o := range []dhcpv4.Option{
		dhcpv4.OptSubnetMask(net.CIDRMask(Network.Bits(), 32)),
		dhcpv4.OptRouter(ip(Gateway)),
		dhcpv4.OptDNS(ip(DNS)),
		{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(MTU)},
	} {
		answer.UpdateOption(o)
	}
	if request.MessageType() != dhcpv4.MessageTypeInform {
		answer.YourIPAddr = ip(Guest)
		answer.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
	}
	return answer.ToBytes()
}

func ip(a netip.Addr) net.IP { return a.AsSlice() }
