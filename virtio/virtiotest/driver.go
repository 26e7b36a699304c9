// Package virtiotest is the driver's side of virtio queues, for tests of
// devices: it lays out rings in a guest's memory, makes chains available,
// kicks, and takes back what the device answers. It sees to it that workers end what
// they have their guest pay for. It can also misbehave.
//
// Not done here: PCI. The queues are handed to the device as the transport
// would, but without one.
package virtiotest

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"testing"
	"time"

	"disco/memory"
	"disco/virtio"
)

// Options say how a driver differs from one that takes all that it is offered.
type Options struct {
	// Memory is the guest's RAM in bytes; 0 for 64 MiB. RAM begins at 0.
	Memory uint64
	// Refuse are features that the driver does not take, the device's own or
	// virtio.FeatureIndirect and virtio.FeatureEventIndex.
	Refuse uint64
	// Size, unless 0, is the size of all queues in place of the device's largest.
	Size uint16
	// Space is memory of the caller's own, in place of Memory bytes.
	Space *memory.Space
	// Disabled queues are not enabled: the device gets nil for them.
	Disabled []int
}

// Driver drives one device. It belongs to one goroutine; each of its Rings may
// be driven by another.
type Driver struct {
	// Space is the guest's memory.
	Space *memory.Space
	// Rings has one entry per queue of the device, nil where disabled.
	Rings []*Ring
	// Features are those that were negotiated.
	Features uint64

	t      testing.TB
	dev    virtio.Device
	queues []*virtio.Queue
	pins   []buffer
	payer  payer

	mu     sync.Mutex
	top    memory.GPA
	spare  map[int][]memory.GPA // by size
	failed error
}

// New makes a guest's memory without a device, for tests of queues alone. It
// is freed, and must have no pin left, when the test ends.
func New(t testing.TB, o Options) *Driver {
	t.Helper()
	if o.Memory == 0 {
		o.Memory = 64 << 20
	}
	d := &Driver{Space: o.Space, t: t, payer: payer{t: t}, top: 0x10000, spare: map[int][]memory.GPA{}}
	if o.Space == nil {
		var err error
		if d.Space, err = memory.New("virtiotest", []memory.Range{{Start: 0, Size: o.Memory}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Space.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(d.Stop)
	return d
}

// Start makes a guest's memory and starts dev with its queues in it. The device
// is stopped when the test ends, unless Stop did.
func Start(t testing.TB, dev virtio.Device, o Options) *Driver {
	t.Helper()
	d := New(t, o)
	d.Restart(dev, o)
	return d
}

// Restart starts dev, stopped before, with fresh queues in the same memory.
func (d *Driver) Restart(dev virtio.Device, o Options) {
	d.t.Helper()
	d.dev, d.failed = dev, nil
	d.Features = (dev.Features() | virtio.TransportFeatures) &^ o.Refuse
	disabled := map[int]bool{}
	for _, i := range o.Disabled {
		disabled[i] = true
	}
	sizes := dev.QueueSizes()
	d.Rings, d.queues = make([]*Ring, len(sizes)), make([]*virtio.Queue, len(sizes))
	for i, size := range sizes {
		if disabled[i] {
			continue
		}
		if o.Size != 0 {
			size = o.Size
		}
		d.Rings[i] = d.NewRing(size, d.Features)
		d.queues[i] = d.Queue(d.Rings[i], i)
	}
	if err := dev.Start(d.Features, d.queues); err != nil {
		d.dev = nil
		d.t.Fatalf("start: %v", err)
	}
}

// Queue makes the device's side of a ring. The caller closes it, if it is not
// one that Start made.
func (d *Driver) Queue(r *Ring, index int) *virtio.Queue {
	d.t.Helper()
	q, err := virtio.NewQueue(virtio.QueueConfig{
		Index: index, Size: r.size, Desc: r.Desc, Avail: r.Avail, Used: r.Used,
		Features: d.Features, Space: d.Space, Interrupt: r.Interrupt, Failed: d.fail, Payer: &d.payer,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	r.Queue = q
	return q
}

func (d *Driver) fail(err error) {
	d.mu.Lock()
	if d.failed == nil {
		d.failed = err
	}
	d.mu.Unlock()
	for _, q := range d.queues {
		if q != nil {
			q.Stop()
		}
	}
}

// Failed says why the device stopped, nil if it runs.
func (d *Driver) Failed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

// WaitFailed waits until the device stopped because of its driver, and fails
// the test if it does not within 10 s.
func (d *Driver) WaitFailed() error {
	d.t.Helper()
	for range 10000 {
		if err := d.Failed(); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	d.t.Fatal("virtiotest: the device did not stop")
	return nil
}

// Stop stops the device as a reset does, and checks that no pin is left.
func (d *Driver) Stop() {
	d.t.Helper()
	for _, q := range d.queues {
		if q != nil {
			q.Stop()
		}
	}
	if d.dev != nil {
		d.dev.Stop()
		d.dev = nil
		d.payer.over()
	}
	for _, q := range d.queues {
		if q != nil {
			q.Close()
		}
	}
	d.queues = nil
	for _, b := range d.pins {
		d.Space.Unpin(b.addr, b.n, memory.Write)
	}
	d.pins = nil
	if n := d.Space.Pins(); n != 0 {
		d.t.Errorf("virtiotest: %d pins are left after the device stopped", n)
	}
}

// Alloc takes n bytes of guest memory, zeroed when first used, aligned to their
// size rounded up to a power of two, up to a page.
func (d *Driver) Alloc(n int) memory.GPA {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	size := class(n)
	if s := d.spare[size]; len(s) > 0 {
		d.spare[size] = s[:len(s)-1]
		return s[len(s)-1]
	}
	align := memory.GPA(min(size, 4096))
	a := (d.top + align - 1) &^ (align - 1)
	d.top = a + memory.GPA(size)
	if ram := d.Space.RAM(); d.top > ram[len(ram)-1].End() {
		d.t.Fatal("virtiotest: out of guest memory")
	}
	return a
}

func class(n int) int { return max(64, 1<<bits.Len(uint(n-1))) }

func (d *Driver) release(b buffer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.spare[class(b.n)] = append(d.spare[class(b.n)], b.addr)
}

func (d *Driver) pin(a memory.GPA, n int) []byte {
	d.t.Helper()
	s, err := d.Space.Pin(nil, a, n, memory.Write)
	if err != nil || len(s) != 1 {
		d.t.Fatalf("virtiotest: pin: %v", err)
	}
	d.pins = append(d.pins, buffer{a, n})
	return s[0]
}

// Put writes guest memory.
func (d *Driver) Put(a memory.GPA, p []byte) {
	d.t.Helper()
	if err := d.Space.WriteAt(p, a); err != nil {
		d.t.Fatal(err)
	}
}

// Get reads guest memory.
func (d *Driver) Get(a memory.GPA, n int) []byte {
	d.t.Helper()
	p := make([]byte, n)
	if err := d.Space.ReadAt(p, a); err != nil {
		d.t.Fatal(err)
	}
	return p
}

// PutDescriptor writes entry i of the descriptor table at a.
func (d *Driver) PutDescriptor(a memory.GPA, i int, e Descriptor) {
	d.t.Helper()
	var b [16]byte
	binary.LittleEndian.PutUint64(b[0:], uint64(e.Addr))
	binary.LittleEndian.PutUint32(b[8:], e.Len)
	binary.LittleEndian.PutUint16(b[12:], e.Flags)
	binary.LittleEndian.PutUint16(b[14:], e.Next)
	d.Put(a+memory.GPA(16*i), b[:])
}
