package segment_test

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/memory/arena"
	"disco/net/frame"
	"disco/net/segment"
	"disco/virtio/virtiotest"
)

// wire is a driver's side of a ring that costs nothing: it offers the same chains
// again and again. Nothing of it allocates or waits.
type wire struct {
	r           *virtiotest.Ring
	avail, used []byte
	size        int
	added, seen uint16
	kicked      uint16
}

func newWire(g *guest, r *virtiotest.Ring, size int) *wire {
	g.t.Helper()
	w := &wire{r: r, size: size}
	for _, m := range []struct {
		b *[]byte
		a memory.GPA
		n int
	}{{&w.avail, r.Avail, 8 + 2*size}, {&w.used, r.Used, 8 + 8*size}} {
		p, err := g.space.Pin(nil, m.a, m.n, memory.Write)
		if err != nil {
			g.t.Fatal(err)
		}
		*m.b = p[0]
		g.t.Cleanup(func() {
			if g.space != nil {
				g.space.Unpin(m.a, m.n, memory.Write)
			}
		})
	}
	w.added, w.seen = w.index(w.avail), w.index(w.used)
	return w
}

func (w *wire) index(b []byte) uint16 {
	return uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&b[0]))) >> 16)
}

// offer makes a chain available.
func (w *wire) offer(head uint16) {
	binary.LittleEndian.PutUint16(w.avail[4+2*(int(w.added)%w.size):], head)
	w.added++
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&w.avail[0])), uint32(w.added)<<16|1)
}

// kick tells the device, if it asked.
func (w *wire) kick() {
	at := binary.LittleEndian.Uint16(w.used[4+8*w.size:])
	old := w.kicked
	w.kicked = w.added
	if w.added-at-1 < w.added-old {
		w.r.Queue.Kick()
	}
}

// next is the next chain that came back.
func (w *wire) next() (head uint16, n int, ok bool) {
	if w.index(w.used) == w.seen {
		return 0, 0, false
	}
	at := 4 + 8*(int(w.seen)%w.size)
	head, n = uint16(binary.LittleEndian.Uint32(w.used[at:])), int(binary.LittleEndian.Uint32(w.used[at+4:]))
	w.seen++
	return head, n, true
}

// wait waits for it.
func (w *wire) wait() (head uint16, n int) {
	for {
		if head, n, ok := w.next(); ok {
			return head, n
		}
		runtime.Gosched()
	}
}

// pair is two guests, one of which sends to the other, over and over, the same
// frame of whole pages.
type pair struct {
	one, two *guest
	tx, rx   *wire
	frames   []uint16 // chains
}

func newPair(t testing.TB, mode segment.Mode, pages int) *pair {
	a := pool(t, 256)
	s := newSegment(t, segment.Config{})
	one := plug(t, s, 1, segment.PortConfig{}, virtiotest.Options{})
	two := plug(t, s, 2, segment.PortConfig{Map: mode}, virtiotest.Options{})
	return pairOf(t, a, one, two, pages)
}

// pairOf has a guest send pages of a pool to another.
func pairOf(t testing.TB, a *arena.Arena, one, two *guest, pages int) *pair {
	p := &pair{one: one, two: two}
	head := append(make([]byte, frame.HeaderLen), tcp4(p.two.mac, p.one.mac, max(1, pages*page))...)
	if pages > 0 {
		tso.Put(head)
	} else {
		head = append(head, 1)
	}
	at := p.one.drv.Alloc(page)
	p.one.drv.Put(at, head)
	const data = 16 << 20
	if err := p.one.space.Share(data/page, memory.Run{Arena: a, Page: 0, N: 256}); err != nil {
		t.Fatal(err)
	}
	p.tx, p.rx = newWire(p.one, p.one.tx, 256), newWire(p.two, p.two.rx, 256)
	for i := 0; (i+1)*(pages+1) < 240 && i < 16; i++ {
		ds := []virtiotest.Descriptor{{Addr: at, Len: uint32(len(head))}}
		for k := range pages {
			ds = append(ds, virtiotest.Descriptor{Addr: memory.GPA(data + (i*pages+k)%256*page), Len: page})
		}
		p.frames = append(p.frames, uint16(p.one.tx.AddRaw(ds...)))
	}
	// The one that sends has not been told yet.
	for range 256 {
		p.two.rx.AddRaw(virtiotest.Descriptor{Addr: p.two.drv.Alloc(page), Len: page, Flags: virtiotest.Write})
	}
	p.two.rx.Kick()
	p.tx.added, p.rx.added = p.tx.index(p.tx.avail), p.rx.index(p.rx.avail)
	p.tx.kicked, p.rx.kicked = p.tx.added, p.rx.added
	p.one.tx.Kick()
	for range p.frames {
		p.tx.wait()
	}
	p.recycle()
	return p
}

// recycle gives all buffers that came back to the receiver.
func (p *pair) recycle() (n int) {
	for {
		head, m, ok := p.rx.next()
		if !ok {
			p.rx.kick()
			return n
		}
		n += m
		p.rx.offer(head)
	}
}

// batch sends all frames once.
func (p *pair) batch() {
	for _, f := range p.frames {
		p.tx.offer(f)
	}
	p.tx.kick()
	for range p.frames {
		p.tx.wait()
	}
	p.recycle()
}

// TestHostPathDoesNotAllocate sends frames, copied and mapped, from queue to queue.
func TestHostPathDoesNotAllocate(t *testing.T) {
	for _, c := range []struct {
		name  string
		mode  segment.Mode
		pages int
	}{{"small", segment.MapAuto, 0}, {"copied", segment.MapNever, 15}, {"mapped", segment.MapAuto, 15}} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, c.mode, c.pages)
			for range 20 {
				p.batch()
			}
			if n := testing.AllocsPerRun(100, p.batch); n != 0 {
				t.Errorf("%v allocations for %d frames", n, len(p.frames))
			}
			st := p.two.port.Stats()
			if got, want := st.Received.Frames, uint64(122*len(p.frames)); got != want {
				t.Errorf("%d frames of %d, %+v", got, want, st)
			}
			if (st.Mapped.Bytes > 0) != (c.name == "mapped") {
				t.Errorf("%+v", st)
			}
		})
	}
}

// BenchmarkDelivery is frames of 1 byte and of so many pages of payload, without
// the queue that they come from and its worker.
func BenchmarkDelivery(b *testing.B) {
	for _, c := range []struct {
		name  string
		mode  segment.Mode
		pages int
	}{
		{"small", segment.MapNever, 0},
		{"copied-1", segment.MapNever, 1}, {"mapped-1", segment.MapAlways, 1},
		{"copied-4", segment.MapNever, 4}, {"mapped-4", segment.MapAlways, 4},
		{"copied-8", segment.MapNever, 8}, {"mapped-8", segment.MapAlways, 8},
		{"copied-15", segment.MapNever, 15}, {"mapped-15", segment.MapAlways, 15},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := newPair(b, c.mode, c.pages)
			head := tcp4(p.two.mac, p.one.mac, max(1, c.pages*page))
			f := frame.Frame{Header: tso, Len: len(head) + c.pages*page}
			if c.pages == 0 {
				head = append(head, 1)
				f.Header, f.Len = frame.Header{}, len(head)
			}
			f.Pieces = []memory.Loan{{Bytes: head}}
			if c.pages > 0 {
				var err error
				if f.Pieces, err = p.one.space.Borrow(f.Pieces, 16<<20, c.pages*page); err != nil {
					b.Fatal(err)
				}
				defer p.one.space.Return(f.Pieces[1])
			}
			b.SetBytes(int64(max(1, c.pages*page)))
			n, before := 0, cpu(b)
			for b.Loop() {
				h := f.Header
				if p.one.port.Send(0, &f) {
					b.Fatal("kept")
				}
				f.Header = h
				if n++; n%8 == 0 {
					p.one.port.Flush(0)
					p.recycle()
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(n), "cpu-ns/op")
		})
	}
}

// cpu is the time that all threads have run.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
