// Package blk is the virtio block device (virtio 1.2 §5.2): it checks requests
// and carries them out on a Backend, one worker per queue.
//
// Done: many queues, reads, writes, flushes, discards, writing zeroes, the
// device's name (GET_ID), read-only disks. A read of whole pages that the Backend
// has in memory, in pages that guests may map, is answered by mapping them into
// the guest; see [Lender].
//
// Not done: a writeback switch (CONFIG_WCE; the cache is always writeback, and
// drivers that know no flush get write-through), lifetime, secure erase, zones,
// and resizing. A worker does one request at a time; a disk that wants more
// under way at once has more queues.
package blk

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"disco/memory"
	"disco/virtio"
)

// Backend is what holds a disk's bytes. Offsets and lengths are in bytes, are
// multiples of SectorSize and lie within Size. Its methods are called from many
// goroutines and must not keep bufs.
type Backend interface {
	Size() int64
	// BlockSize is the logical block size, a power of two from SectorSize up.
	BlockSize() int
	ReadOnly() bool
	ReadV(bufs [][]byte, off int64) error
	WriteV(bufs [][]byte, off int64) error
	// Flush returns when all writes that have returned are on stable storage.
	Flush() error
	Discard(off, n int64) error
	WriteZeroes(off, n int64, unmap bool) error
}

// Hasty is a Backend that has requests wait. While the device stops, it is told
// that they must not.
type Hasty interface{ Hurry(on bool) }

// SectorSize is the unit of requests in bytes, whatever the block size.
const SectorSize = 512

const (
	// MaxQueues is the largest number of queues that New makes use of.
	MaxQueues = 8

	queueSize = 256
	idSize    = 20

	// A request runs to its end before the device can stop.
	maxTransfer       = 64 << 20 // bytes; more is refused
	maxSegments       = 16
	maxDiscardSectors = 1 << 21 // 1 GiB
	maxZeroSectors    = 1 << 17 // 64 MiB
)

// Feature bits (virtio 1.2 §5.2.3).
const (
	featureSegMax      = 1 << 2
	featureReadOnly    = 1 << 5
	featureBlockSize   = 1 << 6
	featureFlush       = 1 << 9
	featureTopology    = 1 << 10
	featureMultiQueue  = 1 << 12
	featureDiscard     = 1 << 13
	featureWriteZeroes = 1 << 14
)

// Config says what disk to show.
type Config struct {
	Backend Backend // not owned
	Queues  int     // 1 to MaxQueues; others are brought into that range
	ID      string  // what GET_ID says, cut to 20 bytes
	Share   Share   // whether to map pages, if Backend is a Lender and memory can
	// Log gets one line, at the first error of the Backend; the guest sees every
	// one as an I/O error. Nil for none.
	Log *slog.Logger
}

// Device is one disk. It is a virtio.Device.
type Device struct {
	backend  Backend
	queues   int
	id       [idSize]byte
	sectors  uint64
	features uint64
	config   [60]byte

	share       Share
	born        time.Time
	log         *slog.Logger
	mapped      atomic.Uint64 // bytes of reads
	copied      atomic.Uint64
	hostErrors  atomic.Uint64
	badRequests atomic.Uint64

	stop    func() // stops the queues of this Start
	workers sync.WaitGroup
}

// New makes a disk of c.Backend.
func New(c Config) *Device {
	d := &Device{
		backend: c.Backend, queues: min(max(c.Queues, 1), MaxQueues),
		sectors:  uint64(c.Backend.Size()) / SectorSize,
		share:    c.Share,
		born:     time.Now(),
		log:      c.Log,
		features: featureSegMax | featureBlockSize | featureFlush | featureTopology,
	}
	copy(d.id[:], c.ID)
	// virtio 1.2 §5.2.4
	le := binary.LittleEndian
	le.PutUint64(d.config[0:], d.sectors)
	le.PutUint32(d.config[12:], queueSize-2) // header and status take two
	block := c.Backend.BlockSize()
	le.PutUint32(d.config[20:], uint32(block))
	// What is smaller than a page is slower, and can not be mapped: filesystems
	// should have blocks of that size.
	for block<<d.config[24] < pageSize {
		d.config[24]++
	}
	le.PutUint16(d.config[26:], uint16(max(1, pageSize/block)))
	if d.queues > 1 {
		d.features |= featureMultiQueue
		le.PutUint16(d.config[34:], uint16(d.queues))
	}
	if c.Backend.ReadOnly() {
		d.features |= featureReadOnly
		return d
	}
	d.features |= featureDiscard | featureWriteZeroes
	le.PutUint32(d.config[36:], maxDiscardSectors)
	le.PutUint32(d.config[40:], maxSegments)
	le.PutUint32(d.config[44:], uint32(c.Backend.BlockSize()/SectorSize)) // discard alignment
	le.PutUint32(d.config[48:], maxZeroSectors)
	le.PutUint32(d.config[52:], maxSegments)
	d.config[56] = 1 // write zeroes may unmap
	return d
}

// ID is virtio.IDBlock.
func (d *Device) ID() virtio.DeviceID { return virtio.IDBlock }

// Features are the device's feature bits.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes is the same for each queue.
func (d *Device) QueueSizes() []uint16 {
	s := make([]uint16, d.queues)
	for i := range s {
		s[i] = queueSize
	}
	return s
}

// ReadConfig reads struct virtio_blk_config.
func (d *Device) ReadConfig(offset uint64, p []byte) {
	clear(p)
	if offset < uint64(len(d.config)) {
		copy(p, d.config[offset:])
	}
}

// WriteConfig ignores the write: nothing is writable.
func (d *Device) WriteConfig(uint64, []byte) {}

// HostErrors counts the requests that the Backend failed.
func (d *Device) HostErrors() uint64 { return d.hostErrors.Load() }

// Mapped is the bytes of reads that were answered by mapping pages, Copied of
// those that were copied, at all Starts together.
func (d *Device) Mapped() uint64 { return d.mapped.Load() }
func (d *Device) Copied() uint64 { return d.copied.Load() }

// BadRequests counts the requests that were refused before they reached the
// Backend.
func (d *Device) BadRequests() uint64 { return d.badRequests.Load() }

// Start runs a worker for each enabled queue.
func (d *Device) Start(features uint64, queues []*virtio.Queue) error {
	if len(queues) != d.queues {
		return fmt.Errorf("blk: %d queues, not %d", len(queues), d.queues)
	}
	hasty, waits := d.backend.(Hasty)
	if waits {
		hasty.Hurry(false)
	}
	var lender Lender
	var policy *policy
	for _, q := range queues {
		if q != nil {
			if lender == nil {
				lender, policy = d.sharing(q.Space())
			}
			w := &worker{d: d, q: q, features: features, lender: lender, policy: policy}
			d.workers.Go(w.run)
		}
	}
	d.stop = func() {
		if waits {
			hasty.Hurry(true)
		}
		for _, q := range queues {
			if q != nil {
				q.Stop()
			}
		}
	}
	return nil
}

// sharing is the Lender, if its pages can be mapped, and who decides which.
func (d *Device) sharing(s *memory.Space) (Lender, *policy) {
	lender, ok := d.backend.(Lender)
	switch {
	case !ok || d.share == ShareNever || !s.CanShare():
		return nil, nil
	case d.share == ShareAlways:
		return lender, nil
	}
	return lender, newPolicy(s)
}

// Stop waits for the requests under way.
func (d *Device) Stop() {
	d.stop()
	d.workers.Wait()
}

func (d *Device) failed(err error) {
	if d.hostErrors.Add(1) == 1 && d.log != nil {
		d.log.Warn("the guest sees an I/O error; later ones are counted only", "error", err)
	}
}
