// Package user carries a guest's frames by a TCP/IP of the monitor's own, which
// needs no rights: the guest's connections end in gVisor's netstack, in this
// process, and go on as sockets of the user that runs the monitor.
//
// The guest sees the network 10.0.2.0/24:
//
//	10.0.2.2   the gateway; also the host itself, as host.disco.internal
//	10.0.2.3   the name server, which asks the host's
//	10.0.2.15  the guest, by DHCP
//
// A connection to a port of 10.0.2.2 goes to that port of the host's 127.0.0.1,
// so a guest reaches what the host serves to itself alone. That is meant: it is
// how a guest fetches from its host, and what users of other monitors know. A
// guest that must not should have no user network. Addresses of the host's
// loopback, link-local addresses (which hold the credentials of cloud machines),
// groups and broadcasts are refused; all else that the host reaches, the guest
// does. Nothing comes in but by the forwards that were asked for.
//
// A guest cannot use up the host: its connections, flows, names asked for and
// frames not yet taken are each bounded, and beyond the bound refused.
//
// TCP segmentation and checksums are left undone in both directions, so the MTU
// of 1500 costs nothing.
//
// The netstack is put together here rather than by gvisor-tap-vsock, whose
// network cannot be closed, whose flows have no bound, and whose imports alone
// take 10 MB of memory; netstack itself takes 3.
//
// Two networks of one guest do not know of each other, and have the same addresses.
//
// With [Config.Lan] it is instead one station of a network of several guests, which
// has the addresses that its owner likes: it gives each guest the address that is
// the guest's and answers for their names, by name and by address, and whether it
// is a way out as well is the owner's choice.
//
// Not done here: IPv6, ICMP beyond answers to pings of its own addresses, names from
// the host's /etc/hosts; which guests a Lan has (package net/lan).
package user

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"disco/net/frame"
)

// The addresses of the network.
var (
	Network = netip.MustParsePrefix("10.0.2.0/24")
	Gateway = netip.MustParseAddr("10.0.2.2") // also the host
	DNS     = netip.MustParseAddr("10.0.2.3")
	Guest   = netip.MustParseAddr("10.0.2.15")
)

const (
	// HostName is the name of the host, for the guest.
	HostName = "host.disco.internal"
	// MTU is the largest IP packet in bytes.
	MTU = 1500
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Config says what network to make.
type Config struct {
	// Forwards are the ways in. A Lan has none.
	Forwards []Forward
	// Lan is a network of several guests; nil for one of one guest.
	Lan *Lan
	// Log takes what goes wrong with single connections, at the debug level;
	// nil for slog's default.
	Log *slog.Logger

	// servers lists name servers in place of the host's, for tests.
	servers func() []string
}

// Net is a network, as one end of the cable that the guest is at, or a Lan's station. ReadFrame and WriteFrame are for one
// goroutine each; the other methods may be called at any time.
type Net struct {
	log     *slog.Logger
	lan     Lan
	servers func() []string // to ask for names
	stack   *stack.Stack
	link    *link

	ctx    context.Context // until Close
	cancel context.CancelFunc
	work   sync.WaitGroup // goroutines

	mu     sync.Mutex
	closed bool
	open   map[io.Closer]struct{} // what Close closes

	conns   *slots // TCP connections, both ways
	flows   *slots // UDP flows, both ways
	queries *slots // names being asked for
}

// The bounds on what guests may have under way, together; each of a Lan's has at most
// a part of it.
const (
	maxConns   = 512
	maxFlows   = 256
	maxQueries = 64
	lanPart    = 4
)

const nic tcpip.NICID = 1

var errClosed = errors.New("user network: it is closed")

// New makes a network and opens the ports of its forwards. An error names the
// forward that cannot be, and the mend. The caller closes the Net.
func New(c Config) (*Net, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	lan := one
	if c.Lan != nil {
		lan = *c.Lan
		if len(c.Forwards) > 0 {
			return nil, errors.New("user network: a network of several guests forwards no ports")
		}
		if err := lan.check(); err != nil {
			return nil, fmt.Errorf("user network: %w", err)
		}
	}
	if c.servers == nil {
		c.servers = func() []string { return nameServers("/etc/resolv.conf") }
	}
	quiet()
	n := &Net{
		log: c.Log, lan: lan, servers: c.servers,
		open: map[io.Closer]struct{}{},
	}
	part := 1
	if n.lan.several {
		part = lanPart
	}
	n.conns, n.flows, n.queries = newSlots(maxConns, part), newSlots(maxFlows, part), newSlots(maxQueries, part)
	n.link = newLink(&n.lan)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := n.begin(c.Forwards); err != nil {
		n.Close()
		return nil, fmt.Errorf("user network: %w", err)
	}
	return n, nil
}

func (n *Net) begin(forwards []Forward) error {
	// The forwards come first, as they are what may fail.
	for _, f := range forwards {
		if err := n.forward(f); err != nil {
			return err
		}
	}
	if err := n.configure(); err != nil {
		return err
	}
	if n.lan.Outside {
		n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.stack, 0, maxDials, n.connect).HandlePacket)
		n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, n.flow).HandlePacket)
	}
	return n.serveDNS()
}

// configure gives the netstack its link and addresses. The way out takes packets for
// any address and answers from it, as it stands in for all the world.
func (n *Net) configure() error {
	s := n.stack
	if err := s.CreateNIC(nic, n.link); err != nil {
		return wrap("interface", err)
	}
	for _, a := range n.lan.own() {
		p := tcpip.ProtocolAddress{
			Protocol:          ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(a), PrefixLen: n.lan.Network.Bits()},
		}
		if err := s.AddProtocolAddress(nic, p, stack.AddressProperties{}); err != nil {
			return wrap("address "+a.String(), err)
		}
	}
	if n.lan.Outside {
		if err := s.SetSpoofing(nic, true); err != nil {
			return wrap("spoofing", err)
		}
		if err := s.SetPromiscuousMode(nic, true); err != nil {
			return wrap("promiscuous mode", err)
		}
	}
	subnet := tcpip.AddressWithPrefix{Address: address(n.lan.Network.Masked().Addr()), PrefixLen: n.lan.Network.Bits()}.Subnet()
	s.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: nic}})

	// Buffers hold what the guest or the host is slow to take: enough for
	// long segments in a row, not so much that many connections hurt.
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 256 << 10}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 256 << 10}
	sack := tcpip.TCPSACKEnabled(true)
	// Each connection is closed once, so nothing is gained by waiting long.
	linger := tcpip.TCPTimeWaitTimeoutOption(2 * time.Second)
	for _, o := range []tcpip.SettableTransportProtocolOption{&send, &receive, &sack, &linger} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return wrap("TCP option", err)
		}
	}
	return nil
}

// Close ends every connection and frees the forwards' ports. When it returns,
// no goroutine of the network is left. Further calls do nothing.
func (n *Net) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	var errs []error
	for c := range n.open {
		errs = append(errs, c.Close())
	}
	n.open = nil
	n.mu.Unlock()

	n.cancel()
	n.link.Interrupt()
	n.stack.Close()
	n.work.Wait()
	n.stack.Wait()
	n.link.drain()
	return errors.Join(errs...)
}

// spawn runs f in a goroutine that Close waits for, or says that the network is
// closed and does not.
func (n *Net) spawn(f func()) bool {
	if !n.enter() {
		return false
	}
	go func() {
		defer n.work.Done()
		f()
	}()
	return true
}

// enter has Close wait for the caller, until it calls n.work.Done.
func (n *Net) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.work.Add(1)
	return true
}

// keep has Close close c, and closes it at once if that has been.
func (n *Net) keep(c io.Closer) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		c.Close()
		return errClosed
	}
	n.open[c] = struct{}{}
	return nil
}

// drop closes c, which was kept.
func (n *Net) drop(c io.Closer) {
	n.mu.Lock()
	_, kept := n.open[c]
	delete(n.open, c)
	n.mu.Unlock()
	if kept {
		c.Close()
	}
}

// Queues is 1.
func (n *Net) Queues() int { return 1 }

// Offloads are those of TCP over IPv4.
func (n *Net) Offloads() frame.Offloads { return frame.Checksum | frame.TSO4 }

// MTU is 1500.
func (n *Net) MTU() int { return MTU }

// Attach lets frames that are read from now on carry the offloads in accept,
// and ends what Interrupt began. What waits for a guest that was is dropped.
func (n *Net) Attach(_ int, accept frame.Offloads) error {
	n.link.attach(accept)
	return nil
}

// Interrupt ends a ReadFrame that waits, and those that come, with an error,
// until the next Attach.
func (n *Net) Interrupt() { n.link.Interrupt() }

// ReadFrame fills bufs with the next frame for the guest and its header, and
// gives the length of both. If there is none it waits, or returns 0 if wait is
// false. A frame longer than bufs is cut.
func (n *Net) ReadFrame(_ int, bufs [][]byte, wait bool) (int, error) {
	return n.link.read(bufs, wait)
}

// WriteFrame takes a frame from the guest, its header first.
func (n *Net) WriteFrame(_ int, bufs [][]byte) error { return n.link.write(bufs) }

// Dropped counts frames for the guest that it was too slow to take.
func (n *Net) Dropped() uint64 { return n.link.dropped.Load() }

// target is where a guest's traffic to an address goes, if anywhere.
func (l *Lan) target(a netip.Addr) (netip.Addr, bool) {
	switch {
	case a == l.Address:
		return loopback, true
	case l.Network.Contains(a), a.IsLoopback(), a.IsUnspecified(), a.IsMulticast(),
		a.IsLinkLocalUnicast(), a.As4()[0] >= 240:
		return netip.Addr{}, false
	}
	return a, true
}

func address(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

func full(a netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: address(a), Port: port}
}

func wrap(what string, err tcpip.Error) error { return fmt.Errorf("%s: %s", what, err) }

// quiet sends the netstack's own log lines to slog; they are about packets of
// the guest's making.
var quiet = sync.OnceFunc(func() { log.SetTarget(emitter{}) })

type emitter struct{}

func (emitter) Emit(_ int, _ log.Level, _ time.Time, format string, v ...any) {
	if slog.Default().Enabled(context.Background(), slog.LevelDebug) {
		slog.Debug("netstack: " + fmt.Sprintf(format, v...))
	}
}
