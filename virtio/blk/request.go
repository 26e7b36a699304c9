package blk

import (
	"encoding/binary"
	"errors"

	"disco/memory"
	"disco/virtio"
)

// Request types and their answers (virtio 1.2 §5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK          = 0
	statusIOError     = 1
	statusUnsupported = 2

	headerSize  = 16
	segmentSize = 16
	flagUnmap   = 1
)

var (
	errNoHeader = errors.New("a block request without a whole header")
	errNoStatus = errors.New("a block request without room for its status")
)

// worker serves one queue.
type worker struct {
	d        *Device
	q        *virtio.Queue
	features uint64 // as negotiated

	lender Lender  // or nil
	policy *policy // nil to share always

	// What is to be copied to, and from where on the disk.
	claimed   [][]byte
	claimedAt int64

	chain    virtio.Chain
	header   [headerSize]byte
	segments [maxSegments * segmentSize]byte
}

func (w *worker) run() {
	for w.q.Wait() {
		mark := w.q.Begin()
		for n := 1; w.next(); n++ {
			written, err := w.serve(&w.chain)
			if err != nil {
				w.q.Fail(err)
			}
			w.q.Done(&w.chain, written)
			w.q.Flush()
			if n%lap == 0 {
				mark = w.q.Lap(mark)
			}
		}
		w.q.End(mark)
	}
}

// lap is how many requests are paid for together while the driver makes more.
const lap = 8

func (w *worker) next() bool {
	if w.lender != nil {
		return w.q.NextRoom(&w.chain)
	}
	return w.q.Next(&w.chain)
}

// serve carries out one request. Its answer goes to the last writable byte,
// wherever descriptors begin and end (virtio 1.2 §5.2.6.4).
func (w *worker) serve(c *virtio.Chain) (written uint32, err error) {
	if c.Read(w.header[:]) < headerSize {
		return 0, errNoHeader
	}
	kind, sector := binary.LittleEndian.Uint32(w.header[0:]), binary.LittleEndian.Uint64(w.header[8:])
	var status []byte
	if w.lender != nil {
		status, written, err = w.claim(c, kind)
	} else {
		status, written, err = takeStatus(c)
	}
	if err != nil {
		return 0, err
	}
	status[0] = w.answer(c, kind, sector, uint64(written)-1)
	return written, nil
}

// takeStatus takes the status off the writable buffers, and says how many bytes
// there are with it.
func takeStatus(c *virtio.Chain) (status []byte, n uint32, err error) {
	last := len(c.Writable) - 1
	if last < 0 {
		return nil, 0, errNoStatus
	}
	n = uint32(virtio.Len(c.Writable))
	buf := c.Writable[last]
	if c.Writable[last] = buf[:len(buf)-1]; len(buf) == 1 {
		c.Writable = c.Writable[:last]
	}
	return buf[len(buf)-1:], n, nil
}

// claim does it for a chain with room. All but a read's data becomes Writable.
func (w *worker) claim(c *virtio.Chain, kind uint32) (status []byte, n uint32, err error) {
	last := len(c.Room) - 1
	if last < 0 {
		return nil, 0, errNoStatus
	}
	for _, b := range c.Room {
		n += uint32(b.Len)
	}
	buf := &c.Room[last]
	buf.Len--
	w.claimed, err = c.Claim(w.claimed[:0], virtio.Buffer{Addr: buf.Addr + memory.GPA(buf.Len), Len: 1})
	if err != nil {
		return nil, 0, err
	}
	status = w.claimed[0]
	if buf.Len == 0 {
		c.Room = c.Room[:last]
	}
	w.claimed = w.claimed[:0]
	if kind == typeIn {
		return status, n, nil
	}
	for _, b := range c.Room {
		if c.Writable, err = c.Claim(c.Writable, b); err != nil {
			return nil, 0, err
		}
	}
	return status, n, nil
}

// answer carries out a request with n bytes for the driver.
func (w *worker) answer(c *virtio.Chain, kind uint32, sector, n uint64) byte {
	switch kind {
	case typeIn:
		off, ok := w.place(sector, n)
		if !ok || n > maxTransfer {
			return w.refuse(statusIOError)
		}
		if w.lender != nil {
			return w.result(w.read(c, off))
		}
		err := w.d.backend.ReadV(c.Writable, off)
		if err == nil {
			w.d.copied.Add(n)
		}
		return w.result(err)
	case typeOut:
		n := uint64(virtio.Len(c.Readable))
		off, ok := w.place(sector, n)
		if !ok || n > maxTransfer || w.d.features&featureReadOnly != 0 {
			return w.refuse(statusIOError)
		}
		err := w.d.backend.WriteV(c.Readable, off)
		if err == nil && w.features&featureFlush == 0 {
			err = w.d.backend.Flush()
		}
		return w.result(err)
	case typeFlush:
		return w.result(w.d.backend.Flush())
	case typeGetID:
		c.Write(w.d.id[:])
		return statusOK
	case typeDiscard:
		return w.each(c, featureDiscard, maxDiscardSectors, 0)
	case typeWriteZeroes:
		return w.each(c, featureWriteZeroes, maxZeroSectors, flagUnmap)
	}
	return w.refuse(statusUnsupported)
}

// refuse counts a request that the driver should not have made.
func (w *worker) refuse(status byte) byte {
	w.d.badRequests.Add(1)
	return status
}

func (w *worker) result(err error) byte {
	if err != nil {
		w.d.failed(err)
		return statusIOError
	}
	return statusOK
}

// place is the offset of n bytes at sector, if they are whole sectors of the
// disk.
func (w *worker) place(sector, n uint64) (off int64, ok bool) {
	if n%SectorSize != 0 || sector > w.d.sectors || n/SectorSize > w.d.sectors-sector {
		return 0, false
	}
	return int64(sector * SectorSize), true
}

// each checks all segments of a discard or a zeroing, then carries them out.
func (w *worker) each(c *virtio.Chain, feature uint64, most uint32, flags uint32) byte {
	if w.features&feature == 0 {
		return w.refuse(statusUnsupported)
	}
	size := virtio.Len(c.Readable)
	if size == 0 || size%segmentSize != 0 || size > len(w.segments) {
		return w.refuse(statusIOError)
	}
	list := w.segments[:c.Read(w.segments[:size])]
	for s := list; len(s) > 0; s = s[segmentSize:] {
		sector, sectors, f := segment(s)
		if f&^flags != 0 {
			return w.refuse(statusUnsupported)
		}
		if _, ok := w.place(sector, uint64(sectors)*SectorSize); !ok || sectors > most {
			return w.refuse(statusIOError)
		}
	}
	for s := list; len(s) > 0; s = s[segmentSize:] {
		sector, sectors, f := segment(s)
		off, n := int64(sector)*SectorSize, int64(sectors)*SectorSize
		var err error
		if feature == featureDiscard {
			err = w.d.backend.Discard(off, n)
		} else {
			err = w.d.backend.WriteZeroes(off, n, f&flagUnmap != 0)
		}
		if err != nil {
			return w.result(err)
		}
	}
	return statusOK
}

// segment is a struct virtio_blk_discard_write_zeroes.
func segment(s []byte) (sector uint64, sectors, flags uint32) {
	le := binary.LittleEndian
	return le.Uint64(s[0:]), le.Uint32(s[8:]), le.Uint32(s[12:])
}
