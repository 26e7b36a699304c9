// Package fs is the virtio file system device (virtio 1.2 §5.11): it takes FUSE
// requests from its queues, has a [Backend] answer them, and shows the guest
// pages of the host's files through a window of its address space.
//
// Reads and writes of data go straight between the file and the guest's buffers,
// and are answered here, as are the window's requests. For all others go-fuse's
// protocol server parses what was copied out of the guest, and calls the Backend.
//
// # The window
//
// A guest that wants a file's pages without a copy of its own (DAX) asks for a
// range of the file to be mapped at a place in the window, shared memory region 0
// of the device. A [Window] is a reservation of this process's address space, a
// memory slot of the guest's KVM VMs; a mapping is that of the host file there, so
// what the guest sees is the host's page cache, one copy for all guests. Nothing
// here ever reads or writes those bytes.
//
// Should a file shrink while it is mapped, KVM finds no page behind its end, and the
// guest cannot go on. So a Device looks once a second, and when KVM asks
// ([Device.Mend]), at the sizes of files that are mapped; it puts pages of zeros where
// there are none, and the file again before the guest hears that it has grown.
//
// Not done here: files (package folder); FUSE's notifications, interrupts, locks
// and ioctls; packed rings and what else package virtio leaves out.
package fs

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"disco/virtio"
)

// Backend answers requests. Its methods are called from many goroutines and must
// not keep buffers; Reset comes alone.
type Backend interface {
	fuse.RawFileSystem
	// ReadV and WriteV move data of an open file, and say how many bytes.
	ReadV(fh uint64, bufs [][]byte, off int64) (int, fuse.Status)
	WriteV(fh uint64, bufs [][]byte, off int64) (int, fuse.Status)
	// OpenMap opens the file that a node is, for n bytes from off to be mapped.
	// The descriptor is the caller's.
	OpenMap(node uint64, off, n int64, write bool) (int, fuse.Status)
	// Size is how long the regular file that a node is is now, in bytes. It fails for
	// one that could not be opened again.
	Size(node uint64) (int64, fuse.Status)
	// Reset forgets nodes and open files.
	Reset()
}

const (
	// MaxTag is the longest name of a file system, in bytes.
	MaxTag = 36
	// MaxQueues is the largest number of request queues that New makes use of.
	MaxQueues = 8

	queueSize  = 512 // so that a request holds 256 pages
	urgentSize = 128
	// workers is how many requests of one queue are answered at a time: older
	// drivers use one queue only.
	workers = 4
)

// Config says what to show.
type Config struct {
	Tag     string  // by which the guest mounts it
	Backend Backend // not owned
	Queues  int     // of requests, 1 to MaxQueues; others are brought into that range
	Window  *Window // not owned; or nil for none
	Log     *slog.Logger
}

// Device is one file system. It is a virtio.Device.
type Device struct {
	backend Backend
	queues  int
	window  *Window
	config  [MaxTag + 4]byte
	log     *slog.Logger

	// session is held for reading by each request, and for writing by those that
	// begin or end one (FUSE_INIT, FUSE_DESTROY).
	session sync.RWMutex
	server  *fuse.ProtocolServer // nil before FUSE_INIT

	requests    atomic.Uint64
	read        atomic.Uint64 // bytes
	written     atomic.Uint64
	badRequests atomic.Uint64
	mended      atomic.Uint64 // pages
	followed    atomic.Int64  // when pages were mended last, in ns

	stop    func() // stops what this Start began
	running sync.WaitGroup
}

// New makes a file system of c.Backend.
func New(c Config) (*Device, error) {
	if c.Tag == "" || len(c.Tag) > MaxTag {
		return nil, fmt.Errorf("fs: a tag of %d bytes, not 1 to %d", len(c.Tag), MaxTag)
	}
	d := &Device{backend: c.Backend, queues: min(max(c.Queues, 1), MaxQueues), window: c.Window, log: c.Log}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	// virtio 1.2 §5.11.4
	copy(d.config[:MaxTag], c.Tag)
	binary.LittleEndian.PutUint32(d.config[MaxTag:], uint32(d.queues))
	return d, nil
}

// ID is virtio.IDFS.
func (d *Device) ID() virtio.DeviceID { return virtio.IDFS }

// Features are none of its own.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes are those of the queue for urgent requests and of the others
// (virtio 1.2 §5.11.2, without notifications).
func (d *Device) QueueSizes() []uint16 {
	s := []uint16{urgentSize}
	for range d.queues {
		s = append(s, queueSize)
	}
	return s
}

// ReadConfig reads struct virtio_fs_config.
func (d *Device) ReadConfig(offset uint64, p []byte) {
	clear(p)
	if offset < uint64(len(d.config)) {
		copy(p, d.config[offset:])
	}
}

// WriteConfig ignores the write: nothing is writable.
func (d *Device) WriteConfig(uint64, []byte) {}

// windowID is that of the window among the shared memory regions (virtio 1.2
// §5.11.6.5).
const windowID = 0

// SharedMemory is the window, if there is one.
func (d *Device) SharedMemory() (id uint8, memory []byte) {
	if d.window == nil {
		return 0, nil
	}
	return windowID, d.window.Bytes()
}

// Start runs the workers of each enabled queue.
func (d *Device) Start(_ uint64, queues []*virtio.Queue) error {
	if len(queues) != d.queues+1 {
		return fmt.Errorf("fs: %d queues, not %d", len(queues), d.queues+1)
	}
	for i, q := range queues {
		if q == nil {
			continue
		}
		n := workers
		if i == 0 {
			n = 1
		}
		l := &line{queue: q}
		for range n {
			w := &worker{d: d, line: l}
			d.running.Go(w.run)
		}
	}
	over := make(chan struct{})
	if d.window != nil {
		d.running.Go(func() { d.watch(over) })
	}
	d.stop = func() {
		close(over)
		for _, q := range queues {
			if q != nil {
				q.Stop()
			}
		}
	}
	return nil
}

// glance is how often mapped files are looked at.
const glance = time.Second

// watch follows the files that are mapped, until over. KVM tells of an access behind
// the end of one only where the guest has interrupts disabled: else it tries again
// and again, in what it does for asynchronous page faults.
func (d *Device) watch(over chan struct{}) {
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
			d.follow(false)
		}
	}
}

// follow follows mapped files, or only those that were cut short.
func (d *Device) follow(cut bool) {
	d.session.RLock()
	defer d.session.RUnlock()
	n := d.window.follow(d.backend, cut)
	if n == 0 {
		return
	}
	d.followed.Store(time.Now().UnixNano())
	if before := d.mended.Add(n) - n; before == 0 {
		d.log.Info("a file became shorter while it was mapped: what is behind its end is zeros", "pages", n)
	}
}

// Stop waits for the requests under way, and forgets all that the guest had.
func (d *Device) Stop() {
	d.stop()
	d.running.Wait()
	d.end()
}

// end ends a session. No request is under way.
func (d *Device) end() {
	d.server = nil
	d.backend.Reset()
	if d.window != nil {
		d.window.Clear()
	}
}

// begin begins one.
func (d *Device) begin() {
	d.end()
	options := &fuse.MountOptions{
		MaxWrite:             maxData,
		MaxBackground:        64,
		Logger:               log.New(io.Discard, "", 0),
		PanicHandler:         func(v any) fuse.Status { panic(v) },
		ExtraCapabilities:    fuse.CAP_ASYNC_DIO,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_ALLOW_IDMAP | fuse.CAP_NO_OPEN_SUPPORT,
	}
	if d.window != nil {
		options.ExtraCapabilities |= fuse.CAP_MAP_ALIGNMENT | fuse.CAP_HAS_INODE_DAX
	}
	d.server = fuse.NewProtocolServer(d.backend, options)
}

// Stats count since the Device was made, but for what is mapped now.
type Stats struct {
	Requests    uint64 `json:"requests"`
	Read        uint64 `json:"read"`         // bytes, copied to the guest
	Written     uint64 `json:"written"`      // bytes, copied from it
	BadRequests uint64 `json:"bad_requests"` // that no driver makes
	Mapped      uint64 `json:"mapped"`       // bytes of files in the window now
	Mappings    uint64 `json:"mappings"`     // made
	Mended      uint64 `json:"mended"`       // pages of zeros in place of a file's
}

// Stats may be called at any time.
func (d *Device) Stats() Stats {
	s := Stats{
		Requests: d.requests.Load(), Read: d.read.Load(), Written: d.written.Load(),
		BadRequests: d.badRequests.Load(), Mended: d.mended.Load(),
	}
	if d.window != nil {
		s.Mapped, s.Mappings = d.window.Mapped(), d.window.Mappings()
	}
	return s
}

// Pieces appends what is mapped in the window now.
func (d *Device) Pieces(dst []Piece) []Piece {
	if d.window == nil {
		return dst
	}
	return d.window.Pieces(dst)
}

// Mend follows the files in the window, and says whether a page that could not be
// reached may be there now: else whatever failed will fail again. It comes from a
// vCPU's thread.
func (d *Device) Mend() bool {
	if d.window == nil {
		return false
	}
	d.follow(false)
	at := d.followed.Load()
	return at != 0 && time.Since(time.Unix(0, at)) < 2*glance
}
