package virtiotest

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"disco/memory"
	"disco/virtio"
)

// Flags of a Descriptor (virtio 1.2 §2.7.5).
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// Descriptor is a struct virtq_desc, for tests that write bad ones.
type Descriptor struct {
	Addr  memory.GPA
	Len   uint32
	Flags uint16
	Next  uint16
}

// Used is one chain that the device gave back.
type Used struct {
	ID      int    // what Add returned
	Written uint32 // as the device said
	// Data are the writable buffers, whole, in order.
	Data [][]byte
}

// Ring is the driver's side of one split queue. It belongs to one goroutine,
// except Interrupts.
type Ring struct {
	// Queue is the device's side.
	Queue *virtio.Queue
	// Desc, Avail and Used are where the rings lie.
	Desc, Avail, Used memory.GPA

	driver     *Driver
	size       uint16
	event      bool
	free       []uint16
	chains     map[uint16]*chain
	added      uint16 // available index
	kicked     uint16 // available index at the last Kick
	seen       uint16 // used index
	interrupts atomic.Uint64
	notice     chan struct{}

	avail, used []byte // pinned
}

type chain struct {
	ids      []uint16
	buffers  []buffer
	writable []buffer
}

type buffer struct {
	addr memory.GPA
	n    int
}

func availLen(size uint16) int { return 6 + 2*int(size) }
func usedLen(size uint16) int  { return 6 + 8*int(size) }

func load16(b []byte, off int) uint16 {
	w := (*uint32)(unsafe.Pointer(&b[off&^3]))
	return uint16(atomic.LoadUint32(w) >> (off & 2 * 8))
}

func store16(b []byte, off int, v uint16) {
	w := (*uint32)(unsafe.Pointer(&b[off&^3]))
	for {
		old := atomic.LoadUint32(w)
		shift := off & 2 * 8
		if atomic.CompareAndSwapUint32(w, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}

// NewRing lays out an empty ring of size descriptors in the driver's memory,
// with the features that decide its format. Start does this for whole devices.
func (d *Driver) NewRing(size uint16, features uint64) *Ring {
	d.t.Helper()
	r := &Ring{
		driver: d, size: size, event: features&virtio.FeatureEventIndex != 0,
		chains: map[uint16]*chain{}, notice: make(chan struct{}, 1),
		Desc: d.Alloc(16 * int(size)), Avail: d.Alloc(availLen(size)), Used: d.Alloc(usedLen(size)),
	}
	r.avail = d.pin(r.Avail, (availLen(size)+3)&^3)
	r.used = d.pin(r.Used, (usedLen(size)+3)&^3)
	clear(r.avail) // memory that was in use before
	clear(r.used)
	for i := size; i > 0; i-- {
		r.free = append(r.free, i-1)
	}
	return r
}

// Interrupt is what the device's side calls to interrupt the driver.
func (r *Ring) Interrupt() {
	r.interrupts.Add(1)
	select {
	case r.notice <- struct{}{}:
	default:
	}
}

// Interrupts counts the interrupts so far.
func (r *Ring) Interrupts() uint64 { return r.interrupts.Load() }

// Free is the number of descriptors not in use.
func (r *Ring) Free() int { return len(r.free) }

func (r *Ring) place(readable [][]byte, writable []int) (*chain, []Descriptor) {
	c := &chain{}
	var ds []Descriptor
	for _, p := range readable {
		a := r.driver.Alloc(len(p))
		r.driver.Put(a, p)
		c.buffers = append(c.buffers, buffer{a, len(p)})
		ds = append(ds, Descriptor{Addr: a, Len: uint32(len(p))})
	}
	for _, n := range writable {
		a := r.driver.Alloc(n)
		c.buffers = append(c.buffers, buffer{a, n})
		c.writable = append(c.writable, buffer{a, n})
		ds = append(ds, Descriptor{Addr: a, Len: uint32(n), Flags: Write})
	}
	return c, ds
}

// Add makes one chain available: buffers that hold the bytes of readable, and
// then writable buffers of the given lengths. It returns the chain's ID. The
// device is not told before Kick.
func (r *Ring) Add(readable [][]byte, writable []int) int {
	r.driver.t.Helper()
	c, ds := r.place(readable, writable)
	return r.add(c, ds)
}

// AddIndirect is Add with the descriptors in an indirect table.
func (r *Ring) AddIndirect(readable [][]byte, writable []int) int {
	r.driver.t.Helper()
	c, ds := r.place(readable, writable)
	table := r.driver.Alloc(16 * len(ds))
	for i, d := range ds {
		if i+1 < len(ds) {
			d.Flags, d.Next = d.Flags|Next, uint16(i+1)
		}
		r.driver.PutDescriptor(table, i, d)
	}
	c.buffers = append(c.buffers, buffer{table, 16 * len(ds)})
	return r.add(c, []Descriptor{{Addr: table, Len: uint32(16 * len(ds)), Flags: Indirect}})
}

// AddRaw makes a chain of descriptors as they are available, each linked to the
// one after it unless its flags already have Next.
func (r *Ring) AddRaw(ds ...Descriptor) int {
	r.driver.t.Helper()
	return r.add(&chain{}, ds)
}

func (r *Ring) add(c *chain, ds []Descriptor) int {
	t := r.driver.t
	t.Helper()
	if len(ds) == 0 || len(ds) > len(r.free) {
		t.Fatalf("virtiotest: %d descriptors wanted, %d are free", len(ds), len(r.free))
	}
	for range ds {
		n := len(r.free) - 1
		c.ids = append(c.ids, r.free[n])
		r.free = r.free[:n]
	}
	for i, d := range ds {
		if i+1 < len(ds) && d.Flags&Next == 0 {
			d.Flags, d.Next = d.Flags|Next, c.ids[i+1]
		}
		r.driver.PutDescriptor(r.Desc, int(c.ids[i]), d)
	}
	head := c.ids[0]
	r.chains[head] = c
	r.Offer(head)
	return int(head)
}

// Offer puts a descriptor's number in the available ring, whatever it is.
func (r *Ring) Offer(head uint16) {
	store16(r.avail, 4+2*int(r.added%r.size), head)
	r.added++
	store16(r.avail, 2, r.added)
}

// SetAvailable writes the available index, whatever it is.
func (r *Ring) SetAvailable(index uint16) {
	r.added = index
	store16(r.avail, 2, index)
}

// Kick tells the device about the chains added since the last Kick, if it wants
// to know, and says whether it did (virtio 1.2 §2.7.13.4).
func (r *Ring) Kick() bool {
	old := r.kicked
	r.kicked = r.added
	if r.event {
		at := load16(r.used, 4+8*int(r.size))
		if r.added-at-1 >= r.added-old {
			return false
		}
	} else if load16(r.used, 0)&1 != 0 {
		return false
	}
	r.Queue.Kick()
	return true
}

// Quiet asks the device for no interrupts, or (false) for one at the next
// chain that it gives back (virtio 1.2 §2.7.7).
func (r *Ring) Quiet(on bool) {
	switch {
	case r.event && on:
		store16(r.avail, 4+2*int(r.size), r.seen-1)
	case r.event:
		store16(r.avail, 4+2*int(r.size), r.seen)
	case on:
		store16(r.avail, 0, 1)
	default:
		store16(r.avail, 0, 0)
	}
}

// Take takes the next chain that the device gave back; false if there is none.
// It asks for an interrupt at the one after it, as drivers do, unless Quiet.
func (r *Ring) Take() (Used, bool) {
	t := r.driver.t
	t.Helper()
	if load16(r.used, 2) == r.seen {
		return Used{}, false
	}
	at := 4 + 8*int(r.seen%r.size)
	head := binary.LittleEndian.Uint32(r.used[at:])
	u := Used{ID: int(head), Written: binary.LittleEndian.Uint32(r.used[at+4:])}
	quiet := r.event && load16(r.avail, 4+2*int(r.size)) != r.seen
	r.seen++
	if r.event && !quiet {
		store16(r.avail, 4+2*int(r.size), r.seen)
	}
	c := r.chains[uint16(head)]
	if head > 0xffff || c == nil {
		t.Fatalf("virtiotest: the device gave back chain %d, which it does not have", head)
	}
	delete(r.chains, uint16(head))
	for _, b := range c.writable {
		u.Data = append(u.Data, r.driver.Get(b.addr, b.n))
	}
	for _, b := range c.buffers {
		r.driver.release(b)
	}
	r.free = append(r.free, c.ids...)
	return u, true
}

// Wait takes the next chain, and fails the test if none comes within 10 s.
func (r *Ring) Wait() Used {
	t := r.driver.t
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		if u, ok := r.Take(); ok {
			return u
		}
		select {
		case <-r.notice:
		case <-time.After(time.Millisecond): // it may be Quiet
		case <-late:
			t.Fatalf("virtiotest: nothing came back from queue %d (device: %v)", r.Queue.Index(), r.driver.Failed())
		}
	}
}

// Do adds a chain, kicks, and waits for it to come back. No other may be under
// way.
func (r *Ring) Do(readable [][]byte, writable []int) Used {
	r.driver.t.Helper()
	id := r.Add(readable, writable)
	r.Kick()
	u := r.Wait()
	if u.ID != id {
		r.driver.t.Fatalf("virtiotest: chain %d came back, not %d", u.ID, id)
	}
	return u
}

func (d Descriptor) String() string {
	return fmt.Sprintf("%#x+%#x flags %d next %d", uint64(d.Addr), d.Len, d.Flags, d.Next)
}
