package lab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// kind is the first byte of a frame.
type kind uint8

const (
	kindHello   kind = 1 + iota // lab→host, helloFrame: the init runs and listens
	kindStage                   // lab→host, text: what the init does now, for the watchdog
	kindStart                   // host→lab, startFrame: what to run
	kindStarted                 // lab→host, empty: the command runs
	kindAlive                   // lab→host, empty: every few seconds from then on
	kindData                    // both, bytes of a stream
	kindEOF                     // both, empty: the stream has ended
	kindCredit                  // both, uint32: the receiver of a stream takes so many bytes more
	kindSignal                  // host→lab, uint32: signal number for the command's process group
	kindResize                  // host→lab, two uint32: columns and rows of the terminal
	kindExit                    // lab→host, exitFrame: the command has ended; the last frame
	kindEnd                     // not a kind: one past the last
)

// stream names one of the byte streams of a command.
type stream uint8

const (
	stdin stream = iota
	stdout
	stderr
	streams // how many there are
)

const (
	frameHeader = 8
	// maxPayload bounds a frame; the start frame, which carries the environment
	// (at most 2 MiB on Linux, more when quoted), is the largest.
	maxPayload = 16 << 20
	// maxData is the most that one data frame carries: one buffer of the
	// virtio console driver.
	maxData = 32<<10 - frameHeader
	// window is how far the sender of a stream may run ahead of its consumer.
	window = 256 << 10
)

// errProtocol is the other end's breach of the protocol.
var errProtocol = errors.New("lab protocol")

type frame struct {
	kind    kind
	stream  stream
	payload []byte // valid until the next readFrame with the same buffer
}

// appendFrame appends the encoding of f to b.
func appendFrame(b []byte, f frame) []byte {
	b = append(b, byte(f.kind), byte(f.stream), 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.payload)))
	return append(b, f.payload...)
}

// readFrame reads one frame. The payload is in *buf, which grows as the payload
// arrives and not by what the header claims. It returns io.EOF only between two
// frames; a frame that is cut short is io.ErrUnexpectedEOF.
func readFrame(r *bufio.Reader, buf *[]byte) (frame, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	f := frame{kind: kind(h[0]), stream: stream(h[1])}
	size := binary.LittleEndian.Uint32(h[4:])
	switch {
	case f.kind == 0 || f.kind >= kindEnd:
		return frame{}, fmt.Errorf("%w: frame of unknown kind %d", errProtocol, h[0])
	case f.stream >= streams:
		return frame{}, fmt.Errorf("%w: frame for unknown stream %d", errProtocol, h[1])
	case h[2] != 0 || h[3] != 0:
		return frame{}, fmt.Errorf("%w: reserved bytes are %#x %#x, not zero", errProtocol, h[2], h[3])
	case size > maxPayload:
		return frame{}, fmt.Errorf("%w: frame of %d bytes, more than %d", errProtocol, size, maxPayload)
	}
	b := (*buf)[:0]
	for len(b) < int(size) {
		n := min(int(size)-len(b), 64<<10)
		at := len(b)
		if cap(b) < at+n {
			b = append(b, make([]byte, n)...)
		} else {
			b = b[:at+n]
		}
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return frame{}, err
		}
	}
	*buf = b
	f.payload = b
	return f, nil
}

// numbers decodes a payload that is n uint32.
func (f frame) numbers(n int) ([]uint32, error) {
	if len(f.payload) != 4*n {
		return nil, fmt.Errorf("%w: frame of kind %d has %d bytes, not %d", errProtocol, f.kind, len(f.payload), 4*n)
	}
	v := make([]uint32, n)
	for i := range v {
		v[i] = binary.LittleEndian.Uint32(f.payload[4*i:])
	}
	return v, nil
}

// protocolVersion changes with anything in this file; both ends are the same
// binary except when someone mixes builds.
const protocolVersion = 2

type helloFrame struct{ Version int }

type startFrame struct {
	Command  []string // empty for a shell
	Dir      string   // working folder, shared read-write unless it is /
	Env      []string
	TTY      bool
	Cols     uint16
	Rows     uint16
	Forwards []Forward
	Now      int64 // the host's clock, ns since 1970
}

type exitFrame struct {
	Code  int
	Error string // why the command could not be run, or empty
}
