package virtio

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"

	"disco/memory"
)

// MaxQueueSize is the largest size of a split queue (virtio 1.2 §2.7).
const MaxQueueSize = 32768

// Offsets in the available and the used ring (virtio 1.2 §2.7.6, §2.7.8).
const (
	ringFlags   = 0
	ringIndex   = 2
	ringEntries = 4
)

// The driver sets availNoInterrupt, the device usedNoNotify, in ringFlags.
const (
	availNoInterrupt = 1
	usedNoNotify     = 1
)

// batch bounds the chains that Serve handles before it tells the driver.
const batch = 32

// QueueConfig is what a driver and a transport agreed on for one queue.
type QueueConfig struct {
	Index    int
	Size     uint16     // a power of two up to MaxQueueSize
	Desc     memory.GPA // 16-byte aligned
	Avail    memory.GPA // 2-byte aligned
	Used     memory.GPA // 4-byte aligned
	Features uint64     // as negotiated: FeatureEventIndex and FeatureIndirect matter here
	Space    *memory.Space

	// Interrupt tells the driver that chains were given back. Like Failed it
	// comes from the queue's workers, and must not block or take a lock that
	// is held while a worker is waited for.
	Interrupt func()
	// Failed is called once, when the driver broke the queue.
	Failed func(err error)
	// Payer pays for the CPU time of the queue's workers; nil for nobody.
	Payer Payer
}

// Payer pays for the CPU time that workers use for a guest. Its methods are called
// from many goroutines, with no lock held, and do not wait or allocate.
type Payer interface {
	// Begin has the calling goroutine keep to its thread and counts what it uses from
	// now on.
	Begin() (mark int64)
	// Lap pays for what was used since the mark, and gives the next.
	Lap(mark int64) int64
	// End pays, and lets the goroutine go.
	End(mark int64)
}

// Queue is the device's side of one split virtqueue (virtio 1.2 §2.7).
//
// Next and Wait belong to one goroutine at a time, and so do Done, Flush, Show and
// Untold; the two may differ. Stop, Kick and Fail may be called from anywhere.
// Nothing here allocates in steady state.
type Queue struct {
	index     int
	size      uint16
	event     bool // FeatureEventIndex
	indirect  bool // FeatureIndirect
	space     *memory.Space
	interrupt func()
	failed    func(error)
	payer     Payer // or nil
	bell      *doorbell

	desc, avail, used pages

	stopping atomic.Bool // no more chains
	broken   atomic.Bool // by the driver

	// Of the goroutine that calls Next and Wait.
	next  uint16 // the available index that comes next
	entry [descriptorSize]byte

	givesWay bool        // of the goroutine that calls Rest or Heard
	listen   func() bool // is Listen

	// Of the goroutine that calls Done and Flush.
	done      uint16        // the used index that comes next
	told      uint16        // the one up to which the driver was told, or knows
	published atomic.Uint32 // the used index that the driver sees; Next reads it
}

// NewQueue takes a queue into use: it checks its addresses, pins its rings and
// makes its doorbell. The caller owns it and ends it with Stop and Close.
func NewQueue(c QueueConfig) (*Queue, error) {
	q := &Queue{
		index: c.Index, size: c.Size, space: c.Space, interrupt: c.Interrupt, failed: c.Failed, payer: c.Payer,
		event: c.Features&FeatureEventIndex != 0, indirect: c.Features&FeatureIndirect != 0,
	}
	if c.Size == 0 || c.Size > MaxQueueSize || bits.OnesCount16(c.Size) != 1 {
		return nil, fmt.Errorf("queue %d: size %d is no power of two up to %d", c.Index, c.Size, MaxQueueSize)
	}
	n := int(c.Size)
	var err error
	for _, r := range []struct {
		name  string
		pages *pages
		addr  memory.GPA
		align memory.GPA
		n     int
		acc   memory.Access
	}{
		{"descriptor table", &q.desc, c.Desc, 16, descriptorSize * n, memory.Read},
		{"available ring", &q.avail, c.Avail, 2, ringEntries + 2*n + 2, memory.Read},
		{"used ring", &q.used, c.Used, 4, ringEntries + 8*n + 2, memory.Write},
	} {
		if r.addr%r.align != 0 {
			err = fmt.Errorf("%#x is not aligned to %d", uint64(r.addr), r.align)
		} else {
			*r.pages, err = pinPages(c.Space, r.addr, r.n, r.acc)
		}
		if err != nil {
			q.unpin()
			return nil, fmt.Errorf("queue %d: %s: %w", c.Index, r.name, err)
		}
	}
	q.listen = q.Listen
	if q.bell, err = newDoorbell(); err != nil {
		q.unpin()
		return nil, fmt.Errorf("queue %d: %w", c.Index, err)
	}
	return q, nil
}

func (q *Queue) unpin() {
	q.desc.unpin(q.space)
	q.avail.unpin(q.space)
	q.used.unpin(q.space)
}

// Index is the queue's number on its device.
func (q *Queue) Index() int { return q.index }

// Space is the guest's memory.
func (q *Queue) Space() *memory.Space { return q.space }

// Size is the number of descriptors.
func (q *Queue) Size() uint16 { return q.size }

// Next takes the next available chain. It returns false when there is none, or
// when the device is stopping. If the driver broke the ring, the device stops
// (NEEDS_RESET) and Next returns false from then on. Every chain taken must be
// given back with Done, also after Stop began.
func (q *Queue) Next(c *Chain) bool { return q.nextChain(c, false, false) }

// NextRoom is Next for a device that need not write all that it fills: the
// writable buffers are in Chain.Room, for the device to share pages with, or to
// Claim.
func (q *Queue) NextRoom(c *Chain) bool { return q.nextChain(c, true, false) }

// NextLoan is Next for a device that only reads, and can do with memory that
// others have too: the readable buffers are in Chain.Loans, the others in Room.
func (q *Queue) NextLoan(c *Chain) bool { return q.nextChain(c, true, true) }

func (q *Queue) nextChain(c *Chain, roomy, lent bool) bool {
	if c.taken {
		panic("virtio: Next on a chain that was not given back")
	}
	if !q.ready() {
		return false
	}
	c.clear()
	c.space, c.roomy, c.lent = q.space, roomy, lent
	if err := q.take(c); err != nil {
		c.clear()
		q.Fail(err)
		return false
	}
	c.taken = true
	return true
}

// ready says whether a chain is available.
func (q *Queue) ready() bool {
	return !q.stopping.Load() && q.avail.load16(ringIndex) != q.next
}

func (q *Queue) take(c *Chain) error {
	// A driver has at most size chains with the device, so its index is never
	// further than that ahead of what it got back.
	index := q.avail.load16(ringIndex)
	if index-q.next > q.size || index-uint16(q.published.Load()) > q.size {
		return fmt.Errorf("available index %d is more than the queue size %d ahead of %d", index, q.size, uint16(q.published.Load()))
	}
	c.head = q.avail.load16(ringEntries + 2*uint32(q.next%q.size))
	q.next++

	// A chain is no longer than the queue (virtio 1.2 §2.7.5.2), so counting
	// its descriptors also ends a loop.
	left := q.size
	for i := c.head; ; left-- {
		if i >= q.size {
			return fmt.Errorf("descriptor %d of %d", i, q.size)
		}
		if left == 0 {
			return fmt.Errorf("chain %d loops or is longer than the queue size %d", c.head, q.size)
		}
		d := q.desc.descriptor(descriptorSize * uint32(i))
		if d.flags&flagIndirect != 0 {
			if err := q.takeIndirect(c, d, left); err != nil {
				return err
			}
			break
		}
		if err := c.add(d); err != nil {
			return err
		}
		if d.flags&flagNext == 0 {
			break
		}
		i = d.next
	}
	c.Readable = c.segments[:c.readable:c.readable]
	c.Writable = c.segments[c.readable:]
	return nil
}

// takeIndirect adds the chain in the table of t, of at most left descriptors
// (virtio 1.2 §2.7.5.3). The table may lie anywhere, so its entries are copied
// out rather than pinned.
func (q *Queue) takeIndirect(c *Chain, t descriptor, left uint16) error {
	switch {
	case !q.indirect:
		return errors.New("indirect descriptor without the feature")
	case t.flags&flagNext != 0:
		return errors.New("indirect descriptor with a next one")
	case t.len == 0 || t.len%descriptorSize != 0:
		return fmt.Errorf("indirect table of %d bytes", t.len)
	}
	n := t.len / descriptorSize
	for i := uint32(0); ; left-- {
		if left == 0 {
			return fmt.Errorf("indirect chain loops or is longer than the queue size %d", q.size)
		}
		if i >= n {
			return fmt.Errorf("descriptor %d of an indirect table of %d", i, n)
		}
		at := t.addr + memory.GPA(i)*descriptorSize
		if at < t.addr {
			return fmt.Errorf("indirect table %#x: %w", uint64(t.addr), memory.ErrNotRAM)
		}
		if err := q.space.ReadAt(q.entry[:], at); err != nil {
			return fmt.Errorf("indirect table %#x: %w", uint64(t.addr), err)
		}
		d := parseDescriptor(&q.entry)
		if d.flags&flagIndirect != 0 {
			return errors.New("indirect descriptor inside an indirect table")
		}
		if err := c.add(d); err != nil {
			return err
		}
		if d.flags&flagNext == 0 {
			return nil
		}
		i = uint32(d.next)
	}
}

// Done gives a chain back, written bytes of its writable buffers filled, and
// unpins it. The driver sees it, and is told, by the next Flush: chains given
// back between two Flushes appear to it all at once, in the order of Done.
func (q *Queue) Done(c *Chain, written uint32) {
	if !c.taken {
		panic("virtio: Done on a chain that was not taken")
	}
	head := c.head
	c.clear()
	if q.broken.Load() {
		return
	}
	at := ringEntries + 8*uint32(q.done%q.size)
	q.used.store32(at, uint32(head))
	q.used.store32(at+4, written)
	q.done++
}

// Flush shows the driver the chains given back since the last Flush, if any,
// and interrupts it if it wants to know (virtio 1.2 §2.7.7.2, §2.7.10).
func (q *Queue) Flush() {
	q.Show()
	before := q.told
	if before == q.done || q.broken.Load() {
		return
	}
	q.told = q.done
	if q.event {
		if q.done-q.usedEvent()-1 < q.done-before {
			q.interrupt()
		}
	} else if q.avail.load16(ringFlags)&availNoInterrupt == 0 {
		q.interrupt()
	}
}

// Show is Flush without the interrupt, which is put off until the next Flush. If the
// driver has looked by itself until then, there is none.
func (q *Queue) Show() {
	if uint16(q.published.Load()) == q.done || q.broken.Load() {
		return
	}
	q.published.Store(uint32(q.done))
	q.used.store16(ringIndex, q.done)
}

// EventIndex says whether the driver says which chain it wants to be told of.
func (q *Queue) EventIndex() bool { return q.event }

// Untold is how many chains the driver may not know to be given back: since the last
// Flush, or the last one that it asks to be told of the next after.
func (q *Queue) Untold() int {
	if q.event {
		if at := q.usedEvent(); at-q.told <= q.done-q.told {
			q.told = at
		}
	}
	return int(q.done - q.told)
}

// usedEvent is the used index after which the driver wants an interrupt.
func (q *Queue) usedEvent() uint16 { return q.avail.load16(ringEntries + 2*uint32(q.size)) }

// Wait blocks until a chain may be available, and returns false when the
// device is stopping. It enables the driver's kicks only while it waits.
func (q *Queue) Wait() bool {
	for !q.ready() {
		if !q.Rest(true) {
			return false
		}
	}
	return true
}

// Rest blocks until a chain is available, if chains are asked for, or there was a
// kick, by the driver or by Kick; not every return has a reason. It returns false when
// the device is stopping. It enables the driver's kicks only while it waits.
func (q *Queue) Rest(chains bool) bool {
	there := q.listen
	if !chains {
		there = never
	}
	if q.stopping.Load() || q.bell.wait(q.givesWay, there) != nil {
		return false
	}
	q.Ignore()
	return !q.stopping.Load()
}

func never() bool { return false }

// Listen has the driver kick when it makes the next chain available, and says
// whether there is one already. It is for who calls Next, where somebody else
// waits, with Heard.
func (q *Queue) Listen() bool {
	q.notify(true)
	return q.ready()
}

// Ignore ends Listen: chains are looked for anyway.
func (q *Queue) Ignore() { q.notify(false) }

// Heard blocks until there was a kick, by the driver or by Kick, since it
// returned last. It returns false when the device is stopping. It is for one
// goroutine at a time, which need not be the one that calls Next.
func (q *Queue) Heard() bool {
	return !q.stopping.Load() && q.bell.wait(q.givesWay, nil) == nil && !q.stopping.Load()
}

// notify asks for kicks, or to be spared them. With the event index a kick is
// asked for once: the index that was asked for stays behind by itself.
func (q *Queue) notify(on bool) {
	switch {
	case q.event && on:
		q.used.store16(ringEntries+8*uint32(q.size), q.next)
	case q.event:
	case on:
		q.used.store16(ringFlags, 0)
	default:
		q.used.store16(ringFlags, usedNoNotify)
	}
}

// Serve runs a worker: it hands each chain to handle, gives it back with the
// count that handle returns, and flushes when the queue runs empty or after a
// few dozen chains, until Stop. It suits handlers that take microseconds: the
// driver sees the first chain of a batch when the last is done.
func (q *Queue) Serve(handle func(c *Chain) (written uint32)) {
	var c Chain
	for q.Wait() {
		mark := q.Begin()
		for n := 0; n < batch && q.Next(&c); n++ {
			q.Done(&c, handle(&c))
		}
		q.Flush()
		q.End(mark)
	}
}

// Begin has what the calling goroutine does from now on, until End, be paid for by
// the guest. Workers other than Serve's call it when there is something to do, and
// End before they wait for the driver. It costs a system call, as Lap and End do.
func (q *Queue) Begin() (mark int64) {
	if q.payer == nil {
		return 0
	}
	return q.payer.Begin()
}

// Lap is an End and a Begin, for a worker that has gone on for a while.
func (q *Queue) Lap(mark int64) int64 {
	if q.payer == nil {
		return 0
	}
	return q.payer.Lap(mark)
}

// End ends what Begin began, on the same goroutine. Mark is what Begin, or the last
// Lap, gave.
func (q *Queue) End(mark int64) {
	if q.payer != nil {
		q.payer.End(mark)
	}
}

// Fail stops the device because its driver misbehaved: NEEDS_RESET is set, the
// configuration interrupt raised, and err logged once. Chains that were taken
// are still to be given to Done, which then only unpins them.
func (q *Queue) Fail(err error) {
	if q.broken.Swap(true) {
		return
	}
	q.Stop()
	q.failed(fmt.Errorf("queue %d: %w", q.index, err))
}

// Kick does what a driver's notification does.
func (q *Queue) Kick() { q.bell.ring() }

// Doorbell is the eventfd that Kick adds to; it stays the queue's own.
func (q *Queue) Doorbell() int { return q.bell.fd }

// Stopping says whether Stop was called, or the driver broke the queue.
func (q *Queue) Stopping() bool { return q.stopping.Load() }

// Stop makes Next and Wait return false from now on. It does not wait for the
// queue's workers.
func (q *Queue) Stop() {
	q.stopping.Store(true)
	q.bell.silence()
}

// Close unpins the rings and frees the doorbell. No worker may use the queue
// any more; Kick does nothing.
func (q *Queue) Close() {
	q.Stop()
	q.bell.close()
	q.unpin()
}
