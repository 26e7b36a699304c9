// Package rng is the virtio entropy device (virtio 1.2 §5.4): the driver lends
// buffers and gets them back filled with the host's random bytes.
//
// Not done here: rate limits. A request yields at most [MaxRequest] bytes, and
// the guest pays for asking.
package rng

import (
	"crypto/rand"
	"sync"

	"disco/virtio"
)

// MaxRequest is the largest number of bytes that one request yields; the driver
// is told how many it got.
const MaxRequest = 64 << 10

const queueSize = 8

// Device is an entropy device. Its methods are for the transport.
type Device struct {
	workers sync.WaitGroup
}

// New makes an entropy device. It holds nothing to close.
func New() *Device { return &Device{} }

// ID is virtio.IDEntropy.
func (d *Device) ID() virtio.DeviceID { return virtio.IDEntropy }

// Features: there are none.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes: one queue of requests.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig reads zeros: the device has no config space.
func (d *Device) ReadConfig(_ uint64, p []byte) { clear(p) }

// WriteConfig does nothing.
func (d *Device) WriteConfig(uint64, []byte) {}

// Start serves the queue until it stops.
func (d *Device) Start(_ uint64, queues []*virtio.Queue) error {
	if q := queues[0]; q != nil {
		d.workers.Go(func() { q.Serve(fill) })
	}
	return nil
}

// Stop waits for the worker.
func (d *Device) Stop() { d.workers.Wait() }

func fill(c *virtio.Chain) uint32 {
	n := 0
	for _, b := range c.Writable {
		b = b[:min(len(b), MaxRequest-n)]
		// It never fails (crypto/rand).
		_, _ = rand.Read(b)
		n += len(b)
	}
	return uint32(n)
}
