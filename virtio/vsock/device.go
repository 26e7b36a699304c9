// Package vsock is the virtio socket device (virtio 1.2 §5.10), with UNIX
// sockets as its host side, by Firecracker's convention:
//
//   - A program of the host connects to the device's socket, sends
//     "CONNECT PORT\n", and when the guest has accepted gets "OK HOSTPORT\n".
//     From there on it is a stream to that port of the guest. If nobody
//     listens there, the socket closes.
//   - A guest that connects to port P of the host (CID 2) is connected to the
//     UNIX socket whose path is the device's with "_P" after it.
//
// Done: streams, credit both ways, half-closed streams, bounds on everything
// that a guest can make the monitor hold.
//
// Not done: SEQPACKET, guest-to-guest streams, and migration events.
package vsock

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"disco/virtio"
)

const (
	// DefaultCID is the guest's address unless another is asked for.
	DefaultCID = 3

	maxCID = 1<<32 - 2 // virtio 1.2 §5.10.4: the upper half is reserved, as is all ones

	queueReceive  = 0
	queueTransmit = 1
	queueEvent    = 2
	queueSize     = 256

	featureStream = 1 << 0
)

// Config says where the host side is.
type Config struct {
	Path string // of the UNIX socket, which New makes
	CID  uint64 // 3 to 2^32-2, or 0 for DefaultCID
}

// Device is one guest's vsock. It is a virtio.Device.
type Device struct {
	cid    uint64
	path   string
	listen *listener

	dropped  atomic.Uint64
	refused  atomic.Uint64
	violated atomic.Uint64

	mu  sync.Mutex
	now *service // between Start and Stop
}

// Stats count what a guest's packets came to besides streams.
type Stats struct {
	Dropped  uint64 // packets that were not the guest's to send, and resets beyond a bound
	Refused  uint64 // streams beyond the limit
	Violated uint64 // streams reset because the guest overran its credit or the protocol
}

// New makes the device and its socket, with which the host may connect at once;
// until the guest's driver is up, its connections are closed. A socket at the
// path that nobody listens on is replaced; anything else there is an error.
func New(c Config) (*Device, error) {
	d := &Device{cid: c.CID, path: c.Path}
	if d.cid == 0 {
		d.cid = DefaultCID
	}
	if d.cid <= hostCID || d.cid > maxCID {
		return nil, fmt.Errorf("vsock: CID %d is not one of 3 to %d", d.cid, uint64(maxCID))
	}
	var err error
	if d.listen, err = d.serveHost(); err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	return d, nil
}

// Close ends the host side and removes the socket, if it is still the one that
// New made. Stop has been called, or is called beside it.
func (d *Device) Close() error {
	if err := d.listen.close(); err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	return nil
}

// Stats are the counts so far.
func (d *Device) Stats() Stats {
	return Stats{Dropped: d.dropped.Load(), Refused: d.refused.Load(), Violated: d.violated.Load()}
}

// ID is virtio.IDVsock.
func (d *Device) ID() virtio.DeviceID { return virtio.IDVsock }

// Features: streams.
func (d *Device) Features() uint64 { return featureStream }

// QueueSizes are those of the receive, the transmit and the event queue.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize, queueSize} }

// ReadConfig reads struct virtio_vsock_config: the guest's CID.
func (d *Device) ReadConfig(offset uint64, p []byte) {
	clear(p)
	var c [8]byte
	binary.LittleEndian.PutUint64(c[:], d.cid)
	if offset < uint64(len(c)) {
		copy(p, c[offset:])
	}
}

// WriteConfig ignores the write: nothing is writable.
func (d *Device) WriteConfig(uint64, []byte) {}

// Start serves the queues; no stream survives from before.
func (d *Device) Start(_ uint64, queues []*virtio.Queue) error {
	s := newService(d, queues)
	d.mu.Lock()
	d.now = s
	d.mu.Unlock()
	s.start()
	return nil
}

// Stop ends all streams: the guest's driver is gone.
func (d *Device) Stop() {
	d.mu.Lock()
	s := d.now
	d.now = nil
	d.mu.Unlock()
	s.close()
}

func (d *Device) service() *service {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}
