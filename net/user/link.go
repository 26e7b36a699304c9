package user

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"disco/net/frame"
)

// The bounds on frames that wait for the guest.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 4 << 20
)

var (
	errInterrupted = errors.New("interrupted")
	errShort       = errors.New("the frame is too short")
)

// link is the cable between the guests and the netstack, which sees it as a
// stack.LinkEndpoint.
type link struct {
	lan *Lan // the Net's

	mu          sync.Mutex
	dispatcher  stack.NetworkDispatcher
	accept      frame.Offloads
	interrupted bool
	ready       *sync.Cond // on mu: there is a packet, or interrupted is set
	waiting     [maxWaiting]*stack.PacketBuffer
	first       int
	count       int
	bytes       int
	dropped     atomic.Uint64
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

func newLink(lan *Lan) *link {
	l := &link{lan: lan}
	l.ready = sync.NewCond(&l.mu)
	return l
}

func (l *link) attach(accept frame.Offloads) {
	l.drain()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accept = accept
	l.interrupted = false
}

// Interrupt makes read fail until attach.
func (l *link) Interrupt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.interrupted = true
	l.ready.Broadcast()
}

func (l *link) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.count > 0 {
		l.pop().DecRef()
	}
}

// pop takes the first waiting packet. l.mu is held.
func (l *link) pop() *stack.PacketBuffer {
	p := l.waiting[l.first]
	l.waiting[l.first] = nil
	l.first = (l.first + 1) % maxWaiting
	l.count--
	l.bytes -= p.Size()
	return p
}

// WritePackets takes packets from the netstack for the guest. It does not wait:
// a packet too many is dropped, and TCP sends it again.
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range packets.AsSlice() {
		l.push(p)
	}
	l.ready.Signal()
	return packets.Len(), nil
}

// push lets a packet wait, or drops it. l.mu is held.
func (l *link) push(p *stack.PacketBuffer) {
	size := p.Size()
	if l.count == maxWaiting || l.bytes+size > maxWaitingBytes || !l.carries(p) {
		l.dropped.Add(1)
		return
	}
	l.waiting[(l.first+l.count)%maxWaiting] = p.IncRef()
	l.count++
	l.bytes += size
}

// send lets a frame of our own wait for the guests.
func (l *link) send(frame []byte) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	defer p.DecRef()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.push(p)
	l.ready.Signal()
}

// carries says whether the guest takes the offloads of p: a connection outlives
// the driver that it was made for. l.mu is held.
func (l *link) carries(p *stack.PacketBuffer) bool {
	return p.GSOOptions.Type == stack.GSONone || l.accept.Has(frame.Checksum|frame.TSO4)
}

func (l *link) read(bufs [][]byte, wait bool) (int, error) {
	l.mu.Lock()
	for l.count == 0 && !l.interrupted {
		if !wait {
			l.mu.Unlock()
			return 0, nil
		}
		l.ready.Wait()
	}
	if l.interrupted {
		l.mu.Unlock()
		return 0, errInterrupted
	}
	p := l.pop()
	l.mu.Unlock()
	defer p.DecRef()

	var head [frame.HeaderLen]byte
	offloads(p).Put(head[:])
	w := writer{bufs: bufs}
	w.write(head[:])
	views, skip := p.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		m := min(skip, len(b))
		skip -= m
		w.write(b[m:])
	}
	return w.n, nil
}

// offloads is the header for what the netstack left undone of p.
func offloads(p *stack.PacketBuffer) frame.Header {
	var h frame.Header
	g := &p.GSOOptions
	if g.Type != stack.GSOTCPv4 {
		return h
	}
	if g.NeedsCsum {
		h.Flags = frame.NeedsChecksum
		h.CsumStart = frame.MinLen + g.L3HdrLen
		h.CsumOffset = g.CsumOffset
	}
	if p.Data().Size() > int(g.MSS) {
		h.GSOType, h.GSOSize = frame.GSOTCP4, g.MSS
		h.HdrLen = uint16(p.HeaderSize())
	}
	return h
}

// writer writes to buffers, one after the other.
type writer struct {
	bufs [][]byte
	at   int // in bufs[0]
	n    int // in all
}

func (w *writer) write(p []byte) {
	for len(p) > 0 && len(w.bufs) > 0 {
		m := copy(w.bufs[0][w.at:], p)
		p, w.at, w.n = p[m:], w.at+m, w.n+m
		if w.at == len(w.bufs[0]) {
			w.bufs, w.at = w.bufs[1:], 0
		}
	}
}

// write hands a frame from the guest to the netstack. Its header tells nothing
// that matters: checksums are not looked at, and segments may be of any length.
func (l *link) write(bufs [][]byte) error {
	n := -frame.HeaderLen
	for _, b := range bufs {
		n += len(b)
	}
	if n < frame.MinLen || n > frame.MaxLen {
		return errShort
	}
	v := buffer.NewViewSize(n)
	into, skip := v.AsSlice(), frame.HeaderLen
	for _, b := range bufs {
		m := min(skip, len(b))
		skip -= m
		into = into[copy(into, b[m:]):]
	}

	l.mu.Lock()
	d := l.dispatcher
	l.mu.Unlock()
	f := v.AsSlice()
	// A switch floods what it knows no place for.
	if to := [6]byte(f); to != l.lan.MAC && to != broadcastMAC {
		v.Release()
		return nil
	}
	if p := dhcpRequest(f); p != nil {
		if a := l.lan.answerDHCP(p, [6]byte(f[6:])); a != nil {
			l.send(a)
		}
		v.Release()
		return nil
	}
	protocol, ok := l.lan.wanted(f)
	if !ok || d == nil {
		v.Release()
		return nil
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	defer p.DecRef()
	if _, ok := p.LinkHeader().Consume(frame.MinLen); ok {
		d.DeliverNetworkPacket(protocol, p)
	}
	return nil
}

// wanted says what a frame from a guest is, and whether the netstack should
// see it. A way out answers to every address, so what it must not answer for ends
// here.
func (l *Lan) wanted(f []byte) (tcpip.NetworkProtocolNumber, bool) {
	protocol := tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(f[12:]))
	p := f[frame.MinLen:]
	switch protocol {
	case header.ARPProtocolNumber:
		h := header.ARP(p)
		if len(p) < header.ARPSize || !h.IsValid() {
			return 0, false
		}
		return protocol, h.Op() == header.ARPReply || l.is(h.ProtocolAddressTarget())
	case header.IPv4ProtocolNumber:
		if len(p) < header.IPv4MinimumSize || [6]byte(f) != l.MAC {
			return 0, false
		}
		h := header.IPv4(p)
		if !l.speaksAs([6]byte(f[6:]), h.SourceAddressSlice()) {
			return 0, false
		}
		to := h.DestinationAddressSlice()
		switch h.TransportProtocol() {
		case header.TCPProtocolNumber, header.UDPProtocolNumber:
			// What target refuses is told so, rather than left to wait.
			return protocol, l.is(to) || l.Outside && !netip.AddrFrom4([4]byte(to)).IsMulticast()
		case header.ICMPv4ProtocolNumber:
			return protocol, l.is(to)
		}
	}
	return 0, false
}

// The rest is what the netstack asks of a link.

func (l *link) AddHeader(p *stack.PacketBuffer) {
	eth := header.Ethernet(p.LinkHeader().Push(header.EthernetMinimumSize))
	eth.Encode(&header.EthernetFields{
		SrcAddr: l.LinkAddress(),
		DstAddr: p.EgressRoute.RemoteLinkAddress,
		Type:    p.NetworkProtocolNumber,
	})
}

func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

func (l *link) IsAttached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dispatcher != nil
}

func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

// SupportedGSO is asked when a connection begins.
func (l *link) SupportedGSO() stack.SupportedGSO {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.accept.Has(frame.Checksum | frame.TSO4) {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

func (l *link) GSOMaxSize() uint32                      { return 65535 }
func (l *link) MTU() uint32                             { return MTU }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (l *link) LinkAddress() tcpip.LinkAddress          { return tcpip.LinkAddress(l.lan.MAC[:]) }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
