// Package frame says what a network device and the far end of its cable hand
// each other: Ethernet frames, each after a 12-byte header that says which work
// the sender left undone.
//
// The header is struct virtio_net_hdr_v1 of linux/virtio_net.h, little-endian,
// because that is what the kernel's tap interfaces read and write: such frames
// pass between a guest and a tap as they are.
//
// Not done here: segmenting frames or completing checksums. A far end either
// carries an offload or does not list it.
package frame

import (
	"encoding/binary"
	"errors"
)

const (
	// HeaderLen is the length of a Header in bytes.
	HeaderLen = 12
	// MinLen is the length of an Ethernet header, less than which no frame is.
	MinLen = 14
	// MaxLen is the length of the longest frame: the largest IP packet after
	// an Ethernet header with one VLAN tag.
	MaxLen = 65535 + MinLen + 4
)

// Offloads is a set of work that the sender of a frame may leave to whoever
// takes it.
type Offloads uint8

const (
	// Checksum lets a frame carry a TCP or UDP checksum of its pseudo-header only.
	Checksum Offloads = 1 << iota
	// TSO4 lets a frame carry a TCP segment over IPv4 that is longer than the
	// MTU. It needs Checksum.
	TSO4
	// TSO6 is TSO4 over IPv6.
	TSO6
	// ECN lets such segments carry a congestion mark.
	ECN
)

// Has says whether all of q are in o.
func (o Offloads) Has(q Offloads) bool { return o&q == q }

// Bits of Header.Flags and values of Header.GSOType.
const (
	NeedsChecksum = 1    // the checksum is not complete; CsumStart and CsumOffset say where it is
	DataValid     = 2    // the checksum was checked
	GSONone       = 0    // one segment
	GSOTCP4       = 1    // TCP over IPv4, to be cut into segments of GSOSize
	GSOTCP6       = 4    // TCP over IPv6, the same
	GSOECN        = 0x80 // with one of the two above: the congestion mark is set
)

// Header is what precedes a frame (virtio 1.2 §5.1.6).
type Header struct {
	Flags      uint8
	GSOType    uint8
	HdrLen     uint16 // length of all headers, a hint
	GSOSize    uint16 // payload bytes of each segment
	CsumStart  uint16 // where the sum begins, from the start of the frame
	CsumOffset uint16 // where it goes, from CsumStart
	NumBuffers uint16 // receive buffers that the frame takes up
}

// Parse decodes the header at the start of p, which is at least HeaderLen long.
func Parse(p []byte) Header {
	_ = p[HeaderLen-1]
	return Header{
		Flags:      p[0],
		GSOType:    p[1],
		HdrLen:     binary.LittleEndian.Uint16(p[2:]),
		GSOSize:    binary.LittleEndian.Uint16(p[4:]),
		CsumStart:  binary.LittleEndian.Uint16(p[6:]),
		CsumOffset: binary.LittleEndian.Uint16(p[8:]),
		NumBuffers: binary.LittleEndian.Uint16(p[10:]),
	}
}

// Put encodes h at the start of p, which is at least HeaderLen long.
func (h Header) Put(p []byte) {
	_ = p[HeaderLen-1]
	p[0] = h.Flags
	p[1] = h.GSOType
	binary.LittleEndian.PutUint16(p[2:], h.HdrLen)
	binary.LittleEndian.PutUint16(p[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(p[6:], h.CsumStart)
	binary.LittleEndian.PutUint16(p[8:], h.CsumOffset)
	binary.LittleEndian.PutUint16(p[10:], h.NumBuffers)
}

// What Check finds wrong.
var (
	ErrLength   = errors.New("frame is shorter than an Ethernet header or longer than an IP packet allows")
	ErrFlags    = errors.New("frame header has flags that are not allowed")
	ErrChecksum = errors.New("frame header puts the checksum outside the frame")
	ErrSegments = errors.New("frame header asks for segments that are not allowed")
)

// Check says whether h may precede a frame of n bytes from a sender that was
// allowed the offloads in allowed. It does not allocate.
func (h Header) Check(n int, allowed Offloads) error {
	if n < MinLen || n > MaxLen {
		return ErrLength
	}
	if h.Flags&^NeedsChecksum != 0 {
		return ErrFlags
	}
	if h.Flags&NeedsChecksum != 0 {
		if !allowed.Has(Checksum) {
			return ErrFlags
		}
		if int(h.CsumStart) < MinLen || int(h.CsumStart)+int(h.CsumOffset)+2 > n {
			return ErrChecksum
		}
	}
	var need Offloads
	switch h.GSOType &^ GSOECN {
	case GSONone:
		if h.GSOType != GSONone {
			return ErrSegments
		}
		return nil
	case GSOTCP4:
		need = TSO4
	case GSOTCP6:
		need = TSO6
	default:
		return ErrSegments
	}
	if h.GSOType&GSOECN != 0 {
		need |= ECN
	}
	if !allowed.Has(need) || h.Flags&NeedsChecksum == 0 || h.GSOSize == 0 {
		return ErrSegments
	}
	return nil
}
