package segment

import (
	"encoding/binary"

	"disco/memory"
	"disco/net/frame"
)

// finisher does what senders left undone for those who do not take it: checksums
// and TCP segments. It is slow, and for few: the drivers of today take both.
type finisher struct {
	whole []byte // a frame in one piece
	one   []byte // a segment, its header before it
	frame frame.Frame
}

func newFinisher() *finisher {
	return &finisher{whole: make([]byte, frame.MaxLen), one: make([]byte, frame.HeaderLen+frame.MaxLen)}
}

// takes says whether a frame may be delivered as it is to whom takes the
// offloads in accept.
func takes(accept frame.Offloads, h frame.Header) bool {
	var need frame.Offloads
	if h.Flags&frame.NeedsChecksum != 0 {
		need |= frame.Checksum
	}
	switch h.GSOType &^ frame.GSOECN {
	case frame.GSOTCP4:
		need |= frame.TSO4
	case frame.GSOTCP6:
		need |= frame.TSO6
	}
	if h.GSOType&frame.GSOECN != 0 {
		need |= frame.ECN
	}
	return accept.Has(need)
}

func (in *inlet) mustFinish(f *frame.Frame) bool { return !takes(in.accept, f.Header) }

// deliverFinished delivers a frame finished, perhaps as several. When there is no
// room for some of them these are dropped, as on a wire. mu is held.
func (in *inlet) deliverFinished(f *frame.Frame) frame.Verdict {
	if in.finish == nil {
		in.finish = newFinisher()
	}
	whole := in.finish.whole[:0]
	for i := range f.Pieces {
		whole = append(whole, f.Pieces[i].Bytes...)
	}
	v, some := frame.Delivered, false
	in.finish.each(f.Header, whole, func(g []byte) bool {
		one := &in.finish.frame
		one.Header, one.Len = frame.Parse(g), len(g)-frame.HeaderLen
		one.Pieces = append(one.Pieces[:0], memory.Loan{Bytes: g[frame.HeaderLen:]})
		var note frame.Delivery
		if v = in.sink.Deliver(in.queue, one, frame.Policy{Why: frame.Finished}, &note); v != frame.Delivered {
			return false
		}
		some = true
		in.note.Copied[frame.Finished] += one.Len
		return true
	})
	if some && v == frame.Full {
		in.port.drop(Full)
		return frame.Delivered
	}
	return v
}

// each calls out with what a frame comes to, each with its header before it, until
// out returns false. The header was checked by admit or Header.Check; the frame may
// have changed since.
func (n *finisher) each(h frame.Header, whole []byte, out func([]byte) bool) {
	if h.GSOType == frame.GSONone {
		one := n.one[:frame.HeaderLen+len(whole)]
		frame.Header{}.Put(one)
		copy(one[frame.HeaderLen:], whole)
		sum(one[frame.HeaderLen:], int(h.CsumStart), int(h.CsumOffset))
		out(one)
		return
	}
	heads, size := int(h.HdrLen), int(h.GSOSize)
	six := h.GSOType&^frame.GSOECN == frame.GSOTCP6
	tcp := int(h.CsumStart)
	least := tcp - 20
	if six {
		least = tcp - 40
	}
	if least < frame.MinLen || heads < tcp+20 || heads >= len(whole) || size == 0 {
		return
	}
	// Options make IPv4's header longer.
	network := least
	if !six {
		network = networkOf(whole)
		if network < 0 || network+20 > tcp {
			return
		}
	}
	for at := heads; at < len(whole); at += size {
		m := min(size, len(whole)-at)
		one := n.one[:frame.HeaderLen+heads+m]
		frame.Header{}.Put(one)
		p := one[frame.HeaderLen:]
		copy(p, whole[:heads])
		copy(p[heads:], whole[at:at+m])
		segment(p, network, tcp, six, at-heads, at+m == len(whole), size)
		if !out(one) {
			return
		}
	}
}

// networkOf is where a frame's IP header begins, -1 if it is too short for one.
func networkOf(p []byte) int {
	var h heads
	h.parse(p)
	if h.kind != typeIPv4 {
		return -1
	}
	return h.network
}

// Flags of TCP.
const (
	tcpFIN   = 0x01
	tcpPSH   = 0x08
	tcpCWR   = 0x80
	tcpFlags = 13 // where they are
	tcpSum   = 16
)

// segment makes the headers of p, copied from a frame of many segments, right for
// the one whose payload begins done bytes into the frame's.
func segment(p []byte, network, tcp int, six bool, done int, last bool, size int) {
	if six {
		binary.BigEndian.PutUint16(p[network+4:], uint16(len(p)-network-40))
	} else {
		ip := p[network:tcp]
		binary.BigEndian.PutUint16(ip[2:], uint16(len(p)-network))
		binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(done/size))
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^fold(add(0, ip)))
	}
	t := p[tcp:]
	binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(done))
	if !last {
		t[tcpFlags] &^= tcpFIN | tcpPSH
	}
	if done > 0 {
		t[tcpFlags] &^= tcpCWR
	}
	// The sum of the pseudo-header anew, as the length is another.
	var s uint32
	if six {
		s = add(0, p[network+8:network+40])
	} else {
		s = add(0, p[network+12:network+20])
	}
	s += protoTCP + uint32(len(t))
	binary.BigEndian.PutUint16(t[tcpSum:], fold(s))
	sum(p, tcp, tcpSum)
}

// sum completes the checksum at offset from start, which is that of a
// pseudo-header, over all from start on (RFC 1071).
func sum(p []byte, start, offset int) {
	s := ^fold(add(0, p[start:]))
	if s == 0 {
		s = 0xffff // for UDP 0 is none, and the two are the same
	}
	binary.BigEndian.PutUint16(p[start+offset:], s)
}

func add(s uint32, p []byte) uint32 {
	for ; len(p) > 1; p = p[2:] {
		s += uint32(p[0])<<8 | uint32(p[1])
	}
	if len(p) > 0 {
		s += uint32(p[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
