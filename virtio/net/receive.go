package netdev

import (
	"encoding/binary"
	"fmt"

	"disco/net/frame"
	"disco/virtio"
)

const (
	maxFrame = frame.HeaderLen + frame.MaxLen
	// maxHeld is the most chains that are kept ready for frames to come: what
	// the longest frame takes in buffers of the 1.5 KiB that Linux gives least.
	maxHeld = 64
	// minWanted is the least room that is kept ready: a frame of an Ethernet's
	// usual MTU.
	minWanted = frame.HeaderLen + frame.MinLen + 4 + 1500
	// receiveBatch bounds the frames that the driver is told of at once.
	receiveBatch = 64
)

// receiver carries frames from one queue of the backend to the driver.
//
// How long a frame is shows only when it has been read, so chains are taken
// from the driver ahead, in number for frames like those of late, and what is
// longer spills into a buffer of the receiver's own and is copied from there.
type receiver struct {
	net    *Net
	pair   int
	queue  *virtio.Queue
	merge  bool // a frame may take up several chains
	marked bool // the driver takes marks of checksums

	held   [maxHeld]virtio.Chain // a ring: count chains from first
	first  int
	count  int
	room   int // bytes of the chains held
	wanted int // bytes of room to keep ready

	bufs   [][]byte // the first direct bytes of the chains held, then spill
	direct int
	spill  []byte

	unseen int   // frames since the last Flush
	mark   int64 // of Begin,
	paid   bool  // while what is done is paid for
}

func newReceiver(n *Net, pair int, q *virtio.Queue) *receiver {
	return &receiver{
		net: n, pair: pair, queue: q,
		merge:  n.features&featureMrgRxbuf != 0,
		marked: n.features&featureGuestCsum != 0,
		wanted: minWanted,
		bufs:   make([][]byte, 0, maxBuffers),
		spill:  make([]byte, maxFrame),
	}
}

func (r *receiver) run() {
	for r.net.waitActive(r.pair) {
		err := r.serve()
		if err == nil {
			break
		}
		// A pair that was taken out of use, or a device that stops, ends a
		// read with an error too.
		if r.net.isActive(r.pair) {
			r.net.log.Error("network device: receiving has ended", "queue", r.pair, "error", err)
			break
		}
	}
	for r.count > 0 {
		r.release(0)
	}
}

// chain is the i-th of the chains held.
func (r *receiver) chain(i int) *virtio.Chain { return &r.held[(r.first+i)%maxHeld] }

// release gives the first chain held back, n bytes of it filled.
func (r *receiver) release(n int) {
	c := r.chain(0)
	r.room -= virtio.Len(c.Writable)
	r.queue.Done(c, uint32(n))
	r.first = (r.first + 1) % maxHeld
	r.count--
}

// serve runs until the queue ends, or the backend with an error. What it takes to
// receive is paid for from the first frame of a batch on, which may have to be waited
// for.
func (r *receiver) serve() error {
	defer r.rest()
	for {
		r.fill(r.wanted)
		if r.count == 0 {
			r.rest()
			if !r.queue.Wait() {
				return nil
			}
			continue
		}
		r.gather()
		n, err := r.net.backend.ReadFrame(r.pair, r.bufs, r.unseen == 0)
		if err != nil {
			return err
		}
		if n == 0 {
			r.rest()
			continue
		}
		if !r.paid {
			r.mark, r.paid = r.queue.Begin(), true
		}
		r.deliver(n)
		if r.unseen >= receiveBatch || r.unseen == 0 {
			r.rest()
		}
	}
}

// rest ends a batch: the driver is told of it, and it is paid for.
func (r *receiver) rest() {
	r.queue.Flush()
	r.unseen = 0
	if r.paid {
		r.queue.End(r.mark)
		r.paid = false
	}
}

// fill takes chains until there is the wanted room, or no more of them.
func (r *receiver) fill(wanted int) {
	limit := maxHeld
	if !r.merge {
		limit = 1
	}
	for r.count < limit && r.room < wanted {
		c := r.chain(r.count)
		if !r.queue.Next(c) {
			return
		}
		n := virtio.Len(c.Writable)
		if n < frame.HeaderLen {
			r.queue.Done(c, 0)
			r.queue.Fail(fmt.Errorf("a receive buffer of %d bytes", n))
			return
		}
		r.count++
		r.room += n
	}
}

// gather lines up the buffers for the next frame.
func (r *receiver) gather() {
	r.bufs, r.direct = r.bufs[:0], 0
	for i := range r.count {
		for _, b := range r.chain(i).Writable {
			if r.direct >= maxFrame || len(r.bufs) == maxBuffers-1 {
				break
			}
			b = b[:min(len(b), maxFrame-r.direct)]
			r.bufs = append(r.bufs, b)
			r.direct += len(b)
		}
	}
	if r.direct < maxFrame {
		r.bufs = append(r.bufs, r.spill[:maxFrame-r.direct])
	}
}

// deliver gives the frame of n bytes, header and all, that was read into the
// gathered buffers to the driver, or drops it for want of room.
func (r *receiver) deliver(n int) {
	r.wanted = max(n, minWanted, r.wanted-(r.wanted-n)/16)
	if n < frame.HeaderLen+frame.MinLen || n > maxFrame {
		r.net.counters.receiveDropped.Add(1)
		return
	}
	if n > r.room {
		r.fill(n)
	}
	if n > r.room {
		r.net.counters.receiveDropped.Add(1)
		return
	}
	if n > r.direct {
		r.scatter(r.direct, r.spill[:n-r.direct])
	}

	used, sum := 0, 0
	for sum < n {
		sum += virtio.Len(r.chain(used).Writable)
		used++
	}
	if !r.marked {
		r.scatter(0, []byte{0}) // Header.Flags
	}
	var buffers [2]byte
	binary.LittleEndian.PutUint16(buffers[:], uint16(used))
	r.scatter(frame.HeaderLen-len(buffers), buffers[:]) // Header.NumBuffers

	r.net.counters.received.Add(1)
	r.net.counters.receivedBytes.Add(uint64(n - frame.HeaderLen))
	for range used {
		m := min(n, virtio.Len(r.chain(0).Writable))
		r.release(m)
		n -= m
	}
	r.unseen++
}

// scatter copies p to the chains held, from a byte offset on.
func (r *receiver) scatter(offset int, p []byte) {
	for i := 0; i < r.count && len(p) > 0; i++ {
		for _, b := range r.chain(i).Writable {
			if offset >= len(b) {
				offset -= len(b)
				continue
			}
			p = p[copy(b[offset:], p):]
			offset = 0
		}
	}
}
