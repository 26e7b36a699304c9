package segment

import (
	"encoding/binary"
	"net/netip"

	"disco/net/frame"
)

// Ethernet types and IP protocols.
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeIPv6 = 0x86dd

	protoTCP = 6
	protoUDP = 17
)

// minSegment is the smallest payload of TCP segments that a frame may be said to
// consist of. Linux makes none smaller.
const minSegment = 32

// Length of a message of ARP, and where the sender's IP address is.
const (
	arpLen    = 28
	arpSender = 14
)

// tagLen is the length of a VLAN tag.
const tagLen = 4

// heads is what the switch reads in a frame's head.
type heads struct {
	dst, src addr
	kind     uint16 // Ethernet type, behind a VLAN tag
	network  int    // where what it says begins
	flow     uint8  // the same both ways
}

// parse reads what there is, with no regard for whether it is in order.
func (h *heads) parse(p []byte) {
	*h = heads{dst: addr(p[0:6]), src: addr(p[6:12]), kind: binary.BigEndian.Uint16(p[12:]), network: frame.MinLen}
	if h.kind == typeVLAN && len(p) >= frame.MinLen+tagLen {
		h.kind = binary.BigEndian.Uint16(p[frame.MinLen+2:])
		h.network += tagLen
	}
	h.flow = h.hash(p[h.network:])
}

// hash is of the addresses and ports, each of a pair as good as the other.
func (h *heads) hash(ip []byte) uint8 {
	var sum uint32
	mix := func(p []byte) {
		for ; len(p) >= 4; p = p[4:] {
			sum += binary.LittleEndian.Uint32(p)
		}
	}
	for i := range h.src {
		sum += uint32(h.src[i]^h.dst[i]) << (i % 4 * 8)
	}
	var proto byte
	var ports []byte
	switch {
	case h.kind == typeIPv4 && len(ip) >= 20:
		mix(ip[12:20])
		// Of fragments only the first has ports.
		if n := int(ip[0]&15) * 4; n >= 20 && len(ip) >= n+4 && binary.BigEndian.Uint16(ip[6:])&0x3fff == 0 {
			proto, ports = ip[9], ip[n:n+4]
		}
	case h.kind == typeIPv6 && len(ip) >= 40:
		mix(ip[8:40])
		if len(ip) >= 44 {
			proto, ports = ip[6], ip[40:44]
		}
	}
	if proto == protoTCP || proto == protoUDP {
		sum += uint32(binary.BigEndian.Uint16(ports)) + uint32(binary.BigEndian.Uint16(ports[2:]))
	}
	sum *= 0x9e3779b1
	return uint8(sum >> 24)
}

// admit says why an end may not send a frame, noDrop if it may, and puts right
// what the frame's header says of its length.
func (e *end) admit(h *heads, f *frame.Frame) Drop {
	head := f.Pieces[0].Bytes
	if len(head) < frame.MinLen {
		return Header
	}
	h.parse(head)
	if h.src.group() || !e.trusted && h.src != e.mac {
		return Source
	}
	if h.kind == typeARP && !e.trusted && !e.mayARP(head[h.network:]) {
		return ARP
	}
	if f.Header.GSOType == frame.GSONone {
		f.Header.HdrLen, f.Header.GSOSize = 0, 0
		if f.Len-h.network > e.seg.mtu {
			return Size
		}
		return noDrop
	}
	n, ok := h.segmented(f)
	switch {
	case !ok:
		return Header
	case n+int(f.Header.GSOSize)-h.network > e.seg.mtu:
		return Size
	}
	f.Header.HdrLen = uint16(n)
	return noDrop
}

// segmented is the length of all headers of a frame that is said to be TCP
// segments, if it is.
func (h *heads) segmented(f *frame.Frame) (n int, ok bool) {
	head := f.Pieces[0].Bytes
	ip := head[h.network:]
	transport := h.network
	switch {
	case f.Header.GSOType&^frame.GSOECN == frame.GSOTCP4 && h.kind == typeIPv4 && len(ip) >= 20 &&
		ip[0]>>4 == 4 && ip[0]&15 >= 5 && ip[9] == protoTCP && binary.BigEndian.Uint16(ip[6:])&0x3fff == 0:
		transport += int(ip[0]&15) * 4
	case f.Header.GSOType&^frame.GSOECN == frame.GSOTCP6 && h.kind == typeIPv6 && len(ip) >= 40 &&
		ip[0]>>4 == 6 && ip[6] == protoTCP:
		transport += 40
	default:
		return 0, false
	}
	if len(head) < transport+20 {
		return 0, false
	}
	n = transport + int(head[transport+12]>>4)*4
	return n, n >= transport+20 && n <= len(head) && n < f.Len && f.Header.GSOSize >= minSegment &&
		int(f.Header.CsumStart) == transport && f.Header.CsumOffset == tcpSum
}

// mayARP says whether an end may send a message of ARP (RFC 826).
func (e *end) mayARP(p []byte) bool {
	const ethernet = 1
	if len(p) < arpLen || binary.BigEndian.Uint16(p) != ethernet || binary.BigEndian.Uint16(p[2:]) != typeIPv4 ||
		p[4] != 6 || p[5] != 4 || addr(p[8:14]) != e.mac {
		return false
	}
	ip := netip.AddrFrom4([4]byte(p[arpSender:][:4]))
	return ip.IsUnspecified() || e.may(ip) // none is a question whether an address is in use (RFC 5227)
}
