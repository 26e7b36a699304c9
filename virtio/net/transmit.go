package netdev

import (
	"errors"

	"disco/net/frame"
	"disco/virtio"
)

// maxBuffers bounds the pieces of one frame: IOV_MAX of Linux.
const maxBuffers = 1024

// transmitter carries frames from one queue of the driver to the backend.
type transmitter struct {
	net    *Net
	pair   int
	queue  *virtio.Queue
	header [frame.HeaderLen]byte
	bufs   [][]byte
}

func (t *transmitter) run() { t.queue.Serve(t.send) }

// send sends one frame. The header is copied before it is checked, so that the
// backend sees what was checked; the frame itself is not copied.
func (t *transmitter) send(c *virtio.Chain) uint32 {
	counters := &t.net.counters
	if c.Read(t.header[:]) < frame.HeaderLen {
		t.queue.Fail(errors.New("a frame without its header"))
		return 0
	}
	n := virtio.Len(c.Readable)
	h := frame.Parse(t.header[:])
	if h.Check(n, t.net.allowed) != nil || 1+len(c.Readable) > maxBuffers {
		counters.sendRefused.Add(1)
		return 0
	}
	t.bufs = append(t.bufs[:0], t.header[:])
	t.bufs = append(t.bufs, c.Readable...)
	if t.net.backend.WriteFrame(t.pair, t.bufs) != nil {
		counters.sendDropped.Add(1)
		return 0
	}
	counters.sent.Add(1)
	counters.sentBytes.Add(uint64(n))
	return 0
}
