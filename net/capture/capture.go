// Package capture writes frames as a pcapng file (draft-ietf-opsawg-pcapng), as
// tcpdump and Wireshark read them.
//
// A [Capture] takes frames where they pass, without waiting for whoever reads: it
// copies them to a buffer that another goroutine writes from, and counts those that
// had no room; the count is in the file. [Copy] carries such a file from one process
// to another in whole blocks, so that what has been written is a file whenever it
// ends.
//
// Frames are as guests gave them, without the header before them: checksums may be
// unfinished, and TCP segments longer than the MTU.
//
// The format is written here because it is a hundred lines, and the known library
// (gopacket) adds 2 MB of decoders to the program and 1.5 MB to every process.
//
// Not done here: what is in the frames, filters, several interfaces in one file.
package capture

import (
	"encoding/binary"
	"io"
	"sync"
	"time"

	"disco/net/frame"
)

const (
	// buffered is how many bytes of records wait for whoever reads.
	buffered = 8 << 20
	// maxSnap is the longest frame.
	maxSnap = frame.MaxLen
)

// Block types and option codes of pcapng.
const (
	sectionHeader   = 0x0a0d0d0a
	interfaceBlock  = 1
	statisticsBlock = 5
	packetBlock     = 6

	byteOrder    = 0x1a2b3c4d
	linkEthernet = 1

	optEnd      = 0
	optUserAppl = 4 // of a section header
	optName     = 2 // of an interface
	optTSResol  = 9
	optReceived = 4 // of statistics
	optDropped  = 5
	nanoseconds = 9 // of optTSResol

	packetHead = 28 // bytes of a packet's block before the packet
	blockTail  = 4  // and of any after its options
)

// Capture is a file that is being written.
type Capture struct {
	snap int

	mu       sync.Mutex
	ready    sync.Cond // on mu: filling is not empty, or ended is set
	filling  []byte    // whole blocks
	received uint64
	dropped  uint64
	told     uint64 // of dropped, what is in the file
	ended    bool
}

// New begins a file of the interface called name, with at most snap bytes of each
// frame, 0 for all.
func New(name string, snap int) *Capture {
	if snap <= 0 || snap > maxSnap {
		snap = maxSnap
	}
	c := &Capture{snap: snap}
	c.ready.L = &c.mu
	c.filling = begin(c.filling, name, snap)
	return c
}

// begin is the blocks at a file's beginning.
func begin(b []byte, name string, snap int) []byte {
	b, at := open(b, sectionHeader)
	b = le.AppendUint32(b, byteOrder)
	b = le.AppendUint16(b, 1) // version 1.0
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, ^uint64(0)) // of unknown length
	b = option(b, optUserAppl, []byte("disco"))
	b = option(b, optEnd, nil)
	b = shut(b, at)

	b, at = open(b, interfaceBlock)
	b = le.AppendUint16(b, linkEthernet)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, uint32(snap))
	b = option(b, optName, []byte(name))
	b = option(b, optTSResol, []byte{nanoseconds})
	b = option(b, optEnd, nil)
	return shut(b, at)
}

var le = binary.LittleEndian

// open begins a block, and says where.
func open(b []byte, kind uint32) ([]byte, int) {
	at := len(b)
	b = le.AppendUint32(b, kind)
	return le.AppendUint32(b, 0), at
}

// shut ends the block that began at a place.
func shut(b []byte, at int) []byte {
	n := uint32(len(b) - at + 4)
	le.PutUint32(b[at+4:], n)
	return le.AppendUint32(b, n)
}

// pad brings b to a multiple of 4 bytes; all that is in a block is one.
func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

func option(b []byte, code uint16, value []byte) []byte {
	b = le.AppendUint16(b, code)
	b = le.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

// stamp is a time as blocks have it.
func stamp(b []byte, t time.Time) []byte {
	ns := uint64(t.UnixNano())
	b = le.AppendUint32(b, uint32(ns>>32))
	return le.AppendUint32(b, uint32(ns))
}

// Frame takes a frame: bufs are its frame.Header, then its bytes. It does not wait
// and does not keep bufs, and while the reader keeps up it does not allocate.
func (c *Capture) Frame(t time.Time, bufs [][]byte) {
	n := -frame.HeaderLen
	for _, b := range bufs {
		n += len(b)
	}
	if n < 0 {
		return
	}
	kept := min(n, c.snap)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.received++
	if len(c.filling)+packetHead+kept+3+blockTail > buffered {
		c.dropped++
		return
	}
	b, at := open(c.filling, packetBlock)
	b = le.AppendUint32(b, 0) // the only interface
	b = stamp(b, t)
	b = le.AppendUint32(b, uint32(kept))
	b = le.AppendUint32(b, uint32(n))
	skip, left := frame.HeaderLen, kept
	for _, p := range bufs {
		m := min(skip, len(p))
		skip -= m
		p = p[m:]
		p = p[:min(left, len(p))]
		b = append(b, p...)
		left -= len(p)
	}
	for len(b)&3 != 0 {
		b = append(b, 0)
	}
	c.filling = shut(b, at)
	c.ready.Signal()
}

// End has WriteTo return when it has written all that came.
func (c *Capture) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.ready.Broadcast()
}

// WriteTo writes the file as frames come, until End or until w fails. It is for one
// call. What it hands to w is whole blocks, all that there are.
func (c *Capture) WriteTo(w io.Writer) (n int64, err error) {
	var writing []byte
	for ended := false; !ended; {
		c.mu.Lock()
		for len(c.filling) == 0 && !c.ended {
			c.ready.Wait()
		}
		writing, c.filling = c.filling, writing[:0]
		if ended = c.ended; ended || c.dropped != c.told {
			writing = c.statistics(writing)
		}
		c.mu.Unlock()
		m, err := w.Write(writing)
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// statistics says what there was until now, and how much of it is missing. c.mu is
// held.
func (c *Capture) statistics(b []byte) []byte {
	c.told = c.dropped
	b, at := open(b, statisticsBlock)
	b = le.AppendUint32(b, 0) // the only interface
	b = stamp(b, time.Now())
	b = option(b, optReceived, le.AppendUint64(nil, c.received))
	b = option(b, optDropped, le.AppendUint64(nil, c.dropped))
	b = option(b, optEnd, nil)
	return shut(b, at)
}
