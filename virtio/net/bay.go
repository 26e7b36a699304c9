package netdev

import (
	"fmt"

	"disco/memory"
	"disco/memory/arena"
	"disco/net/frame"
	"disco/virtio"
)

// maxRoom is the most chains that one frame may take up: the longest frame in
// buffers of the 1.5 KiB that Linux gives least, with some to spare for those that
// are not filled because a page is mapped after them.
const maxRoom = 96

// bay is a receive queue that a Switch puts frames into. It has no lock: the
// Switch calls for one queue at a time.
//
// Buffers are pinned only after it is decided which are to be written and which
// take mapped pages, and then no longer than for one frame.
type bay struct {
	net   *Net
	queue *virtio.Queue
	space *memory.Space
	merge bool // a frame may take up several chains

	held      [maxRoom]virtio.Chain // a ring: count chains from first
	first     int
	count     int
	listening bool

	fills []fill // the plan for a frame, by chain held
	room  int    // of the chain of the last fill, bytes left
	note  frame.Delivery
	bufs  [][]byte
	head  [frame.HeaderLen]byte
}

// fill is what goes into one chain.
type fill struct {
	n      int // bytes
	mapped bool
}

func newBay(n *Net, q *virtio.Queue) *bay {
	return &bay{
		net: n, queue: q, space: q.Space(), merge: n.features&featureMrgRxbuf != 0,
		fills: make([]fill, 0, maxRoom),
	}
}

// Deliver puts a frame into the buffers of a receive queue (frame.Sink).
func (n *Net) Deliver(queue int, f *frame.Frame, p frame.Policy, d *frame.Delivery) frame.Verdict {
	if queue >= len(n.bays) || n.bays[queue] == nil {
		return frame.Gone
	}
	return n.bays[queue].deliver(f, p, d)
}

// Flush shows the driver what came (frame.Sink).
func (n *Net) Flush(queue int) {
	if queue < len(n.bays) && n.bays[queue] != nil {
		n.bays[queue].queue.Flush()
	}
}

// Collapsed is how many pages that came by mapping were copied since (frame.Sink).
func (n *Net) Collapsed() uint64 {
	for _, b := range n.bays {
		if b != nil {
			return b.space.ReceivedCopied()
		}
	}
	return 0
}

// chain is the i-th of the chains held.
func (b *bay) chain(i int) *virtio.Chain { return &b.held[(b.first+i)%maxRoom] }

// release gives the first chain held back, n bytes of it filled.
func (b *bay) release(n int) {
	b.queue.Done(b.chain(0), uint32(n))
	b.first = (b.first + 1) % maxRoom
	b.count--
}

// clear gives back what is held, when the device stops.
func (b *bay) clear() {
	for b.count > 0 {
		b.release(0)
	}
}

func (b *bay) deliver(f *frame.Frame, p frame.Policy, d *frame.Delivery) frame.Verdict {
	if v := b.plan(f, p); v != frame.Delivered {
		if v == frame.TooLong {
			b.net.counters.receiveDropped.Add(1)
		}
		return v
	}
	h := f.Header
	h.NumBuffers = uint16(len(b.fills))
	h.Put(b.head[:])
	if err := b.put(f); err != nil {
		b.queue.Fail(err)
		return frame.Gone
	}
	for i := range b.fills {
		b.release(b.fills[i].n)
	}
	d.Add(&b.note)
	b.net.counters.received.Add(1)
	b.net.counters.receivedBytes.Add(uint64(f.Len))
	return frame.Delivered
}

// plan decides what goes into which chain, and takes the chains that it needs.
// Nothing is lost by a plan that is not carried out.
func (b *bay) plan(f *frame.Frame, p frame.Policy) frame.Verdict {
	b.fills, b.room, b.note = b.fills[:0], 0, frame.Delivery{}
	if v := b.copied(frame.HeaderLen); v != frame.Delivered {
		return v
	}
	for i := range f.Pieces {
		l := &f.Pieces[i]
		before, whole, after := split(l)
		b.note.Copied[frame.Odd] += before + after
		v := b.copied(before)
		if v == frame.Delivered && whole > 0 {
			v = b.pages(l.Run.Arena != nil, whole, p)
		}
		if v == frame.Delivered {
			v = b.copied(after)
		}
		if v != frame.Delivered {
			return v
		}
	}
	return frame.Delivered
}

// split is how many bytes of a piece there are before its whole pages, how many
// pages, and how many bytes after them.
func split(l *memory.Loan) (before, whole, after int) {
	before = min(len(l.Bytes), -l.Offset&(arena.PageSize-1))
	whole = (len(l.Bytes) - before) / arena.PageSize
	return before, whole, len(l.Bytes) - before - whole*arena.PageSize
}

// pages plans for whole pages that follow one another: of a pool if they can be
// mapped as far as the sender is concerned.
func (b *bay) pages(pool bool, n int, p frame.Policy) frame.Verdict {
	var why frame.Reason
	mapped := 0
	switch {
	case !pool:
		why = frame.Private
	case p.Least == 0:
		why = p.Why
	case n < p.Least:
		why = frame.Short
	case !b.merge:
		why = frame.Buffers
	default:
		why = frame.Buffers
		var v frame.Verdict
		if mapped, v = b.mapped(n); v != frame.Delivered {
			return v
		}
	}
	if pool {
		b.note.Eligible += n * arena.PageSize
	}
	b.note.Mapped += mapped * arena.PageSize
	rest := (n - mapped) * arena.PageSize
	b.note.Copied[why] += rest
	return b.copied(rest)
}

// mapped plans for up to n pages to be mapped, as long as there are chains of
// whole pages and nothing else, and says how many.
func (b *bay) mapped(n int) (done int, v frame.Verdict) {
	for done < n {
		if v := b.need(len(b.fills)); v != frame.Delivered {
			return done, v
		}
		room := b.chain(len(b.fills)).Room
		if len(room) != 1 || room[0].Addr%arena.PageSize != 0 || room[0].Len%arena.PageSize != 0 ||
			room[0].Len > (n-done)*arena.PageSize {
			break
		}
		b.fills = append(b.fills, fill{room[0].Len, true})
		b.room = 0
		done += room[0].Len / arena.PageSize
	}
	return done, frame.Delivered
}

// copied plans for n bytes to be copied, after what there is.
func (b *bay) copied(n int) frame.Verdict {
	for n > 0 {
		if b.room == 0 {
			if len(b.fills) > 0 && !b.merge {
				return frame.TooLong
			}
			if v := b.need(len(b.fills)); v != frame.Delivered {
				return v
			}
			b.room = length(b.chain(len(b.fills)).Room)
			b.fills = append(b.fills, fill{})
		}
		m := min(n, b.room)
		b.fills[len(b.fills)-1].n += m
		b.room, n = b.room-m, n-m
	}
	return frame.Delivered
}

func length(room []virtio.Buffer) int {
	n := 0
	for i := range room {
		n += room[i].Len
	}
	return n
}

// need has chain i be there.
func (b *bay) need(i int) frame.Verdict {
	if i >= maxRoom {
		return frame.TooLong
	}
	for b.count <= i {
		c := b.chain(b.count)
		if !b.queue.NextRoom(c) {
			if b.queue.Stopping() {
				return frame.Gone
			}
			b.listening = true
			if b.queue.Listen() {
				continue
			}
			return frame.Full
		}
		if b.listening {
			b.listening = false
			b.queue.Ignore()
		}
		b.count++
		if n := length(c.Room); n < frame.HeaderLen {
			b.queue.Fail(fmt.Errorf("a receive buffer of %d bytes", n))
			return frame.Gone
		}
	}
	return frame.Delivered
}

// source is how far a frame has been read.
type source struct {
	pieces []memory.Loan
	off    int // in the first
}

func (s *source) skip(n int) {
	if s.off += n; s.off == len(s.pieces[0].Bytes) {
		s.pieces, s.off = s.pieces[1:], 0
	}
}

// put carries out the plan.
func (b *bay) put(f *frame.Frame) error {
	from := source{pieces: f.Pieces}
	for i, vacated := 0, 0; i < len(b.fills); {
		if !b.fills[i].mapped {
			if i >= vacated {
				vacated = b.vacate(i)
			}
			var head []byte
			if i == 0 {
				head = b.head[:]
			}
			if err := b.copyTo(i, head, &from); err != nil {
				return err
			}
			i++
			continue
		}
		n, bytes := b.alike(i, &from)
		if b.receive(i, bytes, &from) {
			from.skip(bytes)
			i += n
			continue
		}
		b.note.Mapped -= bytes
		b.note.Copied[frame.Refused] += bytes
		for ; n > 0; n-- {
			if err := b.copyTo(i, nil, &from); err != nil {
				return err
			}
			i++
		}
	}
	return nil
}

// vacate discards at once what is in chain i and those after it that are its neighbours
// in the guest's memory and to be copied to, and says which is the next.
func (b *bay) vacate(i int) (next int) {
	room := b.chain(i).Room
	end := room[0].Addr
	for next = i; next < len(b.fills) && !b.fills[next].mapped; next++ {
		r := b.chain(next).Room
		if len(r) != 1 || r[0].Addr != end {
			break
		}
		end += memory.GPA(r[0].Len)
	}
	if next > i+1 {
		// What it could not do Replace tries again, and has the error of.
		_ = b.space.Discard(room[0].Addr, int(end-room[0].Addr))
	}
	return max(next, i+1)
}

// alike is how many chains from i on, and how many bytes, are neighbours in the
// guest's memory and to be mapped from one piece.
func (b *bay) alike(i int, from *source) (chains, bytes int) {
	left := len(from.pieces[0].Bytes) - from.off
	next := b.chain(i).Room[0].Addr
	for ; i < len(b.fills) && b.fills[i].mapped; i++ {
		r := b.chain(i).Room[0]
		if r.Addr != next || r.Len > left {
			break
		}
		next += memory.GPA(r.Len)
		left -= r.Len
		chains, bytes = chains+1, bytes+r.Len
	}
	return chains, bytes
}

// receive maps pages in the buffers from chain i on.
func (b *bay) receive(i, bytes int, from *source) bool {
	l := &from.pieces[0]
	return b.space.Receive(memory.PPN(b.chain(i).Room[0].Addr/arena.PageSize), memory.Run{
		Arena: l.Run.Arena, Page: l.Run.Page + uint64(l.Offset+from.off)/arena.PageSize, N: bytes / arena.PageSize,
	}) == nil
}

// copyTo copies head, and then what comes next, into chain i.
func (b *bay) copyTo(i int, head []byte, from *source) error {
	c, n := b.chain(i), b.fills[i].n
	for _, r := range c.Room {
		if n == 0 {
			break
		}
		var err error
		if b.bufs, err = c.Replace(b.bufs[:0], r); err != nil {
			return err
		}
		for _, to := range b.bufs {
			to = to[:min(len(to), n)]
			n -= len(to)
			m := copy(to, head)
			head, to = head[m:], to[m:]
			for len(to) > 0 {
				m := copy(to, from.pieces[0].Bytes[from.off:])
				from.skip(m)
				to = to[m:]
			}
		}
	}
	return nil
}
