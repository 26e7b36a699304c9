// Package console is the virtio console device (virtio 1.2 §5.3): one port, the
// guest's hvc0, with its window size.
//
// Done: input that waits until the guest takes it, output as it comes, window
// size changes, the emergency write for a guest that dies early.
//
// Not done: more ports (MULTIPORT). Bytes are never looked at in either
// direction: what a guest sends reaches the terminal as it is.
package console

import (
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"

	"disco/devices"
	"disco/virtio"
)

const (
	queueReceive  = 0
	queueTransmit = 1
	queueSize     = 128

	backlog = 4096
)

// Feature bits and config space (virtio 1.2 §5.3.3, §5.3.4).
const (
	featureSize           = 1 << 0
	featureEmergencyWrite = 1 << 2

	configColumns   = 0
	configRows      = 2
	configPorts     = 4
	configEmergency = 8
	configSize      = 12
)

// Device is a console. It is a virtio.Device.
type Device struct {
	out *devices.Output
	in  *devices.Pipe

	size    atomic.Uint32 // columns, rows << 16
	changed atomic.Pointer[func()]

	past    chan struct{} // closed: a Put that does not wait
	stop    chan struct{} // closed by Stop; one for each Start
	queues  []*virtio.Queue
	workers sync.WaitGroup
}

// New makes a console that sends to out, which the caller keeps.
func New(out *devices.Output) *Device {
	d := &Device{out: out, in: devices.NewPipe(backlog), past: make(chan struct{})}
	close(d.past)
	return d
}

// Input is what the terminal sends to the guest. It waits while 4 KiB wait for
// the guest, be its driver up or not, and fails with io.ErrClosedPipe after
// Close.
func (d *Device) Input(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := d.in.Put(p[done:], nil)
		if n == 0 {
			return done, io.ErrClosedPipe
		}
		done += n
	}
	return done, nil
}

// Close frees whoever waits in Input. The guest still gets what waits for it.
// Closing twice is harmless.
func (d *Device) Close() { d.in.Close() }

// OnResize has f called at each change of the window size, to tell the driver
// that config space has changed. It is the transport's ConfigChanged.
func (d *Device) OnResize(f func()) { d.changed.Store(&f) }

// Resize sets the size of the terminal's window in characters. 0 by 0, the
// first value, means that it is not known.
func (d *Device) Resize(columns, rows uint16) {
	v := uint32(columns) | uint32(rows)<<16
	if f := d.changed.Load(); d.size.Swap(v) != v && f != nil {
		(*f)()
	}
}

// ID is virtio.IDConsole.
func (d *Device) ID() virtio.DeviceID { return virtio.IDConsole }

// Features are the window size and the emergency write.
func (d *Device) Features() uint64 { return featureSize | featureEmergencyWrite }

// QueueSizes are those of the receive and the transmit queue.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize} }

// ReadConfig reads struct virtio_console_config.
func (d *Device) ReadConfig(offset uint64, p []byte) {
	clear(p)
	var c [configSize]byte
	binary.LittleEndian.PutUint32(c[configColumns:], d.size.Load())
	binary.LittleEndian.PutUint32(c[configPorts:], 1)
	if offset < configSize {
		copy(p, c[offset:])
	}
}

// WriteConfig takes an emergency write: one character, from a driver that has
// no queues yet or can use them no more. It is dropped where it would wait.
func (d *Device) WriteConfig(offset uint64, p []byte) {
	if offset == configEmergency && len(p) > 0 {
		d.out.Put(p[:1], d.past)
	}
}

// Start runs a worker for each direction. Linux reads the window size only when
// it is told of a change, so a size known beforehand is told as one.
func (d *Device) Start(_ uint64, queues []*virtio.Queue) error {
	d.stop, d.queues = make(chan struct{}), queues
	if q := queues[queueReceive]; q != nil {
		d.workers.Go(func() { d.receive(q, d.stop) })
	}
	if q := queues[queueTransmit]; q != nil {
		d.workers.Go(func() { d.transmit(q, d.stop) })
	}
	if f := d.changed.Load(); d.size.Load() != 0 && f != nil {
		(*f)()
	}
	return nil
}

// Stop ends both workers. Input that the guest has not taken is kept.
func (d *Device) Stop() {
	close(d.stop)
	for _, q := range d.queues {
		if q != nil {
			q.Stop()
		}
	}
	d.workers.Wait()
}

// receive takes a buffer only when there is input for it, so that an idle
// console pins nothing.
func (d *Device) receive(q *virtio.Queue, stop chan struct{}) {
	var c virtio.Chain
	for d.in.Wait(stop) && q.Wait() {
		mark := q.Begin()
		for d.in.Len() > 0 && q.Next(&c) {
			n := 0
			for _, b := range c.Writable {
				n += d.in.TakeNow(b)
			}
			q.Done(&c, uint32(n))
		}
		q.Flush()
		q.End(mark)
	}
}

func (d *Device) transmit(q *virtio.Queue, stop chan struct{}) {
	var c virtio.Chain
	for q.Wait() {
		mark := q.Begin()
		for q.Next(&c) {
			for _, b := range c.Readable {
				d.out.Put(b, stop)
			}
			q.Done(&c, 0)
			q.Flush()
			mark = q.Lap(mark)
		}
		q.End(mark)
	}
}
