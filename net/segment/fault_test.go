package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"disco/memory"
	"disco/memory/arena"
	"disco/net/frame"
	"disco/net/segment"
	"disco/numa"
	"disco/virtio"
	"disco/virtio/virtiotest"
)

// TestHostGuests has guests greet each other, with and without what drivers may
// refuse.
func TestHostGuests(t *testing.T) {
	for _, refuse := range []uint64{0, 1 << 1, 1<<1 | 1<<7 | 1<<8, 1 << 15, virtio.FeatureEventIndex, virtio.FeatureIndirect} {
		t.Run(fmt.Sprintf("%#x", refuse), func(t *testing.T) {
			s := newSegment(t, segment.Config{})
			one := plug(t, s, 1, segment.PortConfig{}, virtiotest.Options{Refuse: refuse})
			two := plug(t, s, 2, segment.PortConfig{}, virtiotest.Options{Refuse: refuse})
			for i := range 600 { // the rings go round
				from, to := one, two
				if i%2 == 1 {
					from, to = two, one
				}
				to.post(1, 9000)
				head, body := tcp4(to.mac, from.mac, 3000), make([]byte, 3000)
				fill(body, uint32(i))
				h := frame.Header{}
				if refuse&1 == 0 && i%3 == 0 {
					h = frame.Header{Flags: frame.NeedsChecksum, CsumStart: 34, CsumOffset: 16}
				}
				from.send(h, head, body[:i], body[i:])
				g, got := to.take()
				marked := refuse&(1<<1) == 0 && h.Flags != 0
				if !bytes.Equal(got[len(head):], body) || g.NumBuffers != 1 || (g.Flags != 0) != marked {
					t.Fatalf("frame %d: %d bytes, %+v", i, len(got), g)
				}
				if h.Flags != 0 && !marked {
					var sum uint32
					tcp := got[34:]
					for k := 0; k < len(tcp); k += 2 {
						sum += uint32(binary.BigEndian.Uint16(tcp[k:]))
					}
					for k := 26; k < 34; k += 2 {
						sum += uint32(binary.BigEndian.Uint16(got[k:]))
					}
					sum += 6 + uint32(len(tcp))
					for sum > 0xffff {
						sum = sum>>16 + sum&0xffff
					}
					if sum != 0xffff {
						t.Fatalf("frame %d: sum %#x", i, sum)
					}
				}
			}
		})
	}
}

// TestHostSenderDies has a guest end while another has its pages mapped.
func TestHostSenderDies(t *testing.T) {
	a := pool(t, 32)
	s := newSegment(t, segment.Config{})
	one := plug(t, s, 1, segment.PortConfig{}, virtiotest.Options{})
	two := plug(t, s, 2, segment.PortConfig{}, virtiotest.Options{})
	const data, room = 16 << 20, 20 << 20
	if err := one.space.Share(data/page, memory.Run{Arena: a, Page: 0, N: 16}); err != nil {
		t.Fatal(err)
	}
	for i := range 32 {
		two.rx.AddRaw(virtiotest.Descriptor{Addr: memory.GPA(room + i*page), Len: page, Flags: virtiotest.Write})
	}
	two.rx.Kick()
	head := append(make([]byte, frame.HeaderLen), tcp4(two.mac, one.mac, 15*page)...)
	tso.Put(head)
	at := one.drv.Alloc(page)
	one.drv.Put(at, head)
	one.tx.AddRaw(virtiotest.Descriptor{Addr: at, Len: uint32(len(head))}, virtiotest.Descriptor{Addr: data, Len: 15 * page})
	one.tx.Kick()
	for range 16 {
		two.rx.Wait()
	}
	one.unplug()
	got, want := make([]byte, 15*page), a.Bytes()[:15*page]
	if err := load(two.space, got, room+page); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("other bytes after the sender's end (%v)", err)
	}
	if a.Users(3) != 1 {
		t.Errorf("%d users", a.Users(3))
	}
	// The guest writes to one of them.
	if err := store(two.space, []byte("mine"), room+4*page+8); err != nil {
		t.Fatal(err)
	}
	if string(a.Bytes()[3*page+8:][:4]) == "mine" {
		t.Error("the store went to the pool")
	}
	if err := load(two.space, got, room+page); err != nil || string(got[3*page+8:][:4]) != "mine" ||
		!bytes.Equal(got[:3*page], want[:3*page]) || !bytes.Equal(got[4*page:], want[4*page:]) {
		t.Errorf("other bytes after a store (%v)", err)
	}
	if st := two.port.Stats(); st.Mapped.Bytes != 15*page || st.CopiedBy["written"] != page || st.Copied != uint64(len(head)-frame.HeaderLen)+page {
		t.Errorf("%+v", st)
	}
}

// TestHostKindsOfMemory sends shared pages between guests on one node, on two, and
// those whose memory has no states, there and back.
func TestHostKindsOfMemory(t *testing.T) {
	real, err := numa.Read(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := real.Fake(2)
	if err != nil {
		t.Fatal(err)
	}
	kinds := []struct {
		name string
		m    memory.Options
	}{
		{"thin", memory.Options{}},
		{"sharing", memory.Options{Sharing: true}},
		{"tracked", memory.Options{Tracked: true, Topology: two, Nodes: two.Nodes()}},
	}
	for _, from := range kinds {
		for _, to := range kinds {
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				const pages, data, room = 10, 16 << 20, 20 << 20
				a := pool(t, 32)
				s := newSegment(t, segment.Config{})
				one := plugWith(t, s, 1, segment.PortConfig{}, virtiotest.Options{}, from.m)
				two := plugWith(t, s, 2, segment.PortConfig{}, virtiotest.Options{}, to.m)
				one.drv.Put(data, a.Bytes()[:pages*page])
				shared := one.space.CanShare()
				if shared {
					if err := one.space.Share(data/page, memory.Run{Arena: a, Page: 0, N: pages}); err != nil {
						t.Fatal(err)
					}
				}
				head := append(make([]byte, frame.HeaderLen), tcp4(two.mac, one.mac, pages*page)...)
				tso.Put(head)
				at := one.drv.Alloc(page)
				one.drv.Put(at, head)
				for round := range 4 {
					for i := range pages + 1 {
						two.rx.AddRaw(virtiotest.Descriptor{Addr: memory.GPA(room + (i+round)%(pages+1)*page), Len: page, Flags: virtiotest.Write})
					}
					two.rx.Kick()
					one.tx.AddRaw(virtiotest.Descriptor{Addr: at, Len: uint32(len(head))}, virtiotest.Descriptor{Addr: data, Len: pages * page})
					one.tx.Kick()
					one.tx.Wait()
					var got []byte
					for i := range pages + 1 {
						u := two.rx.Wait()
						b := make([]byte, u.Written)
						if err := load(two.space, b, memory.GPA(room+(i+round)%(pages+1)*page)); err != nil {
							t.Fatal(err)
						}
						got = append(got, b...)
					}
					if want := append(bytes.Clone(head[frame.HeaderLen:]), a.Bytes()[:pages*page]...); !bytes.Equal(got[frame.HeaderLen:], want) {
						t.Fatalf("round %d: %d other bytes", round, len(got))
					}
				}
				st := two.port.Stats()
				if maps := st.Mapped.Bytes > 0; maps != (shared && two.space.CanShare()) {
					t.Errorf("%+v", st)
				}
				if st.Mapped.Bytes+st.Copied-st.CopiedBy["written"] != st.Received.Bytes {
					t.Errorf("the counts do not add up: %+v", st)
				}
			})
		}
	}
}

// TestHostReceiverStops has a receiver stop posting buffers, with frames for it on
// their way, and end.
func TestHostReceiverStops(t *testing.T) {
	for _, how := range []string{"it posts again", "it resets", "it ends", "the sender ends"} {
		t.Run(how, func(t *testing.T) {
			s := newSegment(t, segment.Config{})
			one := plug(t, s, 1, segment.PortConfig{}, virtiotest.Options{})
			two := plug(t, s, 2, segment.PortConfig{}, virtiotest.Options{})
			three := plug(t, s, 3, segment.PortConfig{}, virtiotest.Options{})
			three.post(100, 2048)
			body := make([]byte, 1000)
			var h [frame.HeaderLen]byte
			for range 50 {
				one.tx.Add([][]byte{h[:], ethernet(two.mac, one.mac, 0x88b5), body}, nil)
			}
			one.tx.Kick()
			eventually(t, "frames wait", func() bool { return two.port.Stats().Waited == 50 })
			for range 10 {
				one.tx.Add([][]byte{h[:], ethernet(three.mac, one.mac, 0x88b5), body}, nil)
			}
			one.tx.Kick()
			for range 10 {
				three.take() // others do not wait
			}
			switch how {
			case "it posts again":
				two.post(60, 2048)
				for range 50 {
					two.take()
				}
			case "it resets":
				two.drv.Stop()
				two.drv.Restart(two.dev, virtiotest.Options{})
			case "it ends":
				two.unplug()
			case "the sender ends":
				one.unplug()
				if n := two.port.Stats().Received.Frames; n != 0 {
					t.Errorf("%d frames came", n)
				}
				return
			}
			for range 60 {
				one.tx.Wait()
			}
			one.tx.Add([][]byte{h[:], ethernet(three.mac, one.mac, 0x88b5), body}, nil)
			one.tx.Kick()
			three.take()
		})
	}
}

// TestHostHostile has a guest send what it may not, and post what is of no use.
func TestHostHostile(t *testing.T) {
	s := newSegment(t, segment.Config{MTU: 4148})
	two := plug(t, s, 2, segment.PortConfig{}, virtiotest.Options{})
	two.post(64, 2048)
	good := tcp4(two.mac, macOf(1), 2000)
	put := func(h frame.Header) []byte {
		b := make([]byte, frame.HeaderLen)
		h.Put(b)
		return b
	}
	one := plug(t, s, 1, segment.PortConfig{}, virtiotest.Options{})
	for name, pieces := range map[string][][]byte{
		"no frame":               {put(frame.Header{})},
		"half a head":            {put(frame.Header{}), good[:13]},
		"many buffers":           {put(frame.Header{NumBuffers: 0xffff, Flags: 0x80}), good},
		"unknown segments":       {put(frame.Header{GSOType: 0x77, GSOSize: 100, Flags: 1, CsumStart: 34, CsumOffset: 16}), good},
		"no size":                {put(frame.Header{GSOType: 1, Flags: 1, CsumStart: 34, CsumOffset: 16}), good},
		"tiny size":              {put(frame.Header{GSOType: 1, GSOSize: 1, Flags: 1, CsumStart: 34, CsumOffset: 16}), good},
		"sum outside":            {put(frame.Header{Flags: 1, CsumStart: 34, CsumOffset: 0xffff}), good},
		"sum at the end":         {put(frame.Header{Flags: 1, CsumStart: 65, CsumOffset: 0}), good},
		"sum before the packet":  {put(frame.Header{Flags: 1, CsumStart: 2, CsumOffset: 0}), good},
		"segments of no TCP":     {put(frame.Header{GSOType: 1, GSOSize: 100, Flags: 1, CsumStart: 34, CsumOffset: 16}), append(ethernet(two.mac, macOf(1), 0x0800), make([]byte, 2000)...)},
		"too long":               {put(frame.Header{}), good, make([]byte, 66000)},
		"longer than the MTU":    {put(frame.Header{}), good, make([]byte, 5000)},
		"another's address":      {put(frame.Header{}), ethernet(two.mac, two.mac, 0x88b5), make([]byte, 100)},
		"headers cut into bytes": {put(frame.Header{GSOType: 1, GSOSize: 100, Flags: 1, CsumStart: 34, CsumOffset: 16}), good[:1], good[1:2], good[2:14], good[14:45]},
	} {
		var all [][]byte
		for _, p := range pieces {
			if len(p) > 0 {
				all = append(all, p)
			}
		}
		one.tx.Do(all, nil)
		if u, ok := two.rx.Take(); ok {
			t.Errorf("%s: %d bytes came", name, u.Written)
		}
	}
	// Buffers without bytes among others are none.
	at := one.drv.Alloc(4096)
	one.drv.Put(at, append(put(frame.Header{}), good...))
	n := uint32(frame.HeaderLen + len(good))
	one.tx.AddRaw(
		virtiotest.Descriptor{Addr: at}, virtiotest.Descriptor{Addr: at, Len: 5}, virtiotest.Descriptor{Addr: at},
		virtiotest.Descriptor{Addr: at + 5, Len: n - 5}, virtiotest.Descriptor{Addr: at})
	one.tx.Kick()
	one.tx.Wait()
	if _, got := two.take(); !bytes.Equal(got, good) {
		t.Errorf("%d bytes of %d", len(got), len(good))
	}
	for name, act := range map[string]func(g *guest){
		"no header": func(g *guest) { g.tx.Add([][]byte{make([]byte, 11)}, nil); g.tx.Kick() },
		"empty":     func(g *guest) { g.tx.AddRaw(virtiotest.Descriptor{Addr: 0x1000}); g.tx.Kick() },
		"outside RAM": func(g *guest) {
			g.tx.AddRaw(virtiotest.Descriptor{Addr: 1 << 40, Len: 100})
			g.tx.Kick()
		},
		"a receive buffer without room": func(g *guest) {
			g.rx.Add(nil, []int{11})
			g.rx.Kick()
			two.send(frame.Header{}, tcp4(g.mac, two.mac, 100), make([]byte, 100))
		},
		"a receive buffer outside RAM": func(g *guest) {
			g.rx.AddRaw(virtiotest.Descriptor{Addr: 1 << 40, Len: 100, Flags: virtiotest.Write})
			g.rx.Kick()
			two.send(frame.Header{}, tcp4(g.mac, two.mac, 100), make([]byte, 100))
		},
	} {
		g := plug(t, s, 7, segment.PortConfig{}, virtiotest.Options{})
		act(g)
		g.drv.WaitFailed()
		g.unplug()
		one.send(frame.Header{}, good) // the others go on
		if _, got := two.take(); !bytes.Equal(got, good) {
			t.Errorf("%s: others", name)
		}
	}
	// A frame does not fit: buffers that are too many, or one that is too small.
	for _, refuse := range []uint64{0, 1 << 15} {
		g := plug(t, s, 7, segment.PortConfig{}, virtiotest.Options{Refuse: refuse})
		g.post(200, 16)
		one.send(frame.Header{}, tcp4(g.mac, one.mac, 3000), make([]byte, 3000))
		if st := g.port.Stats(); st.Dropped["tooLong"] != 1 {
			t.Errorf("%+v", st)
		}
		g.unplug()
	}
}

// TestHostMappedOverMapped gives a guest frames in the same buffers again and
// again, which are mapped, overwritten in part, and whole.
func TestHostMappedOverMapped(t *testing.T) {
	a := pool(t, 128)
	s := newSegment(t, segment.Config{})
	one := plug(t, s, 1, segment.PortConfig{}, virtiotest.Options{})
	two := plug(t, s, 2, segment.PortConfig{Map: segment.MapAlways}, virtiotest.Options{})
	const data, room = 16 << 20, 20 << 20
	if err := one.space.Share(data/page, memory.Run{Arena: a, Page: 0, N: 128}); err != nil {
		t.Fatal(err)
	}
	at := one.drv.Alloc(page)
	base := arena.VMAs.Used()
	copies := uint64(0)
	for round := range 40 {
		n := 1 + round%7
		for i := range 9 {
			two.rx.AddRaw(virtiotest.Descriptor{Addr: memory.GPA(room + (round+i)%9*page), Len: page, Flags: virtiotest.Write})
		}
		two.rx.Kick()
		head := append(make([]byte, frame.HeaderLen), tcp4(two.mac, one.mac, n*page)...)
		tso.Put(head)
		one.drv.Put(at, head)
		one.tx.AddRaw(virtiotest.Descriptor{Addr: at, Len: uint32(len(head))},
			virtiotest.Descriptor{Addr: memory.GPA(data + round*page), Len: uint32(n * page)})
		one.tx.Kick()
		one.tx.Wait()
		for i := range n + 1 {
			u := two.rx.Wait()
			want := head[frame.HeaderLen:]
			p := make([]byte, u.Written)
			if err := load(two.space, p, memory.GPA(room+(round+i)%9*page)); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				p = p[frame.HeaderLen:]
			} else {
				want = a.Bytes()[(round+i-1)*page:][:page]
			}
			if !bytes.Equal(p, want) {
				t.Fatalf("round %d, buffer %d: other bytes", round, i)
			}
		}
		if round%3 == 0 {
			if err := store(two.space, []byte{1}, memory.GPA(room+(round+1)%9*page)); err != nil {
				t.Fatal(err)
			}
			copies++
		}
		// The rest of the buffers take small frames.
		for range 8 - n {
			one.send(frame.Header{}, tcp4(two.mac, one.mac, 100), make([]byte, 100))
			two.rx.Wait()
		}
	}
	st := two.port.Stats()
	if st.CopiedBy["written"] != copies*page || two.space.Stats().BytesCopied != copies*page {
		t.Errorf("%d bytes copied for %d stores: %+v", two.space.Stats().BytesCopied, copies, st)
	}
	if _, err := two.space.Collapse(room/page, 9); err != nil {
		t.Fatal(err)
	}
	if n := arena.VMAs.Used(); n != base {
		t.Errorf("%d mappings counted, %d at first", n, base)
	}
}

// TestHostCopiedOverMapped gives a guest a frame that is copied in neighbouring buffers
// that pages are mapped in: they are all mapped back at once.
func TestHostCopiedOverMapped(t *testing.T) {
	a := pool(t, 16)
	s := newSegment(t, segment.Config{})
	one := plug(t, s, 1, segment.PortConfig{}, virtiotest.Options{})
	two := plug(t, s, 2, segment.PortConfig{Map: segment.MapAlways}, virtiotest.Options{})
	const data, own, room, n = 16 << 20, 18 << 20, 20 << 20, 15
	if err := one.space.Share(data/page, memory.Run{Arena: a, Page: 0, N: n}); err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte("its own "), n*page/8)
	one.drv.Put(own, payload)
	head := append(make([]byte, frame.HeaderLen), tcp4(two.mac, one.mac, n*page)...)
	tso.Put(head)
	at := one.drv.Alloc(page)
	one.drv.Put(at, head)
	base := arena.VMAs.Used()
	for _, from := range []memory.GPA{data, own} {
		for i := range n + 1 {
			two.rx.AddRaw(virtiotest.Descriptor{Addr: memory.GPA(room + i*page), Len: page, Flags: virtiotest.Write})
		}
		two.rx.Kick()
		one.tx.AddRaw(virtiotest.Descriptor{Addr: at, Len: uint32(len(head))}, virtiotest.Descriptor{Addr: from, Len: n * page})
		one.tx.Kick()
		one.tx.Wait()
		for range n + 1 {
			two.rx.Wait()
		}
	}
	got := make([]byte, len(head)+len(payload))
	if err := load(two.space, got, room); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[len(head):], payload) {
		t.Error("other bytes than were sent")
	}
	st := two.space.Stats()
	if st.Received != n || st.Discarded != n || st.DiscardedRuns != 1 || st.SharedPages != 0 || st.BytesCopied != 0 {
		t.Errorf("%+v", st)
	}
	if used := arena.VMAs.Used(); used != base {
		t.Errorf("%d mappings counted, %d at first", used, base)
	}
}

// unhelped lets what a fuzz target shares be used inside.
type unhelped struct{ testing.TB }

func (unhelped) Helper() {}

// FuzzSend has a guest send any header and frame, in pieces of any size, into
// buffers of any size: nothing panics, and what comes is what was sent.
func FuzzSend(f *testing.F) {
	good := tcp4(macOf(2), macOf(1), 2000)
	f.Add(tcp4(macOf(2), macOf(1), 1), []byte{1, 1, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0}, uint16(1), uint16(2048), uint16(3000), false)
	f.Add(good, make([]byte, 12), uint16(0), uint16(100), uint16(100), true)
	f.Add(good[:14], []byte{0, 4, 0, 0, 100, 0, 54, 0, 16, 0, 1, 0}, uint16(7), uint16(12), uint16(0), false)
	f.Add(ethernet(broadcast, macOf(1), 0x0806), []byte{0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0}, uint16(3), uint16(4096), uint16(9), true)
	s, err := segment.New(segment.Config{Name: "fuzz", MTU: 9000})
	if err != nil {
		f.Fatal(err)
	}
	one := plug(unhelped{f}, s, 1, segment.PortConfig{}, virtiotest.Options{})
	two := plug(unhelped{f}, s, 2, segment.PortConfig{}, virtiotest.Options{})
	plain := plug(unhelped{f}, s, 3, segment.PortConfig{Trusted: true}, virtiotest.Options{Refuse: 1<<1 | 1<<7 | 1<<8})
	f.Fuzz(func(t *testing.T, head, header []byte, cut, size, more uint16, far bool) {
		if len(header) != frame.HeaderLen || len(head) == 0 || len(head) > 300 {
			return
		}
		buffer := max(12, int(size)%8192)
		for _, g := range []*guest{two, plain} {
			for g.rx.Free() > 0 {
				g.rx.Add(nil, []int{buffer})
			}
			g.rx.Kick()
		}
		b := append(bytes.Clone(head), make([]byte, int(more)%60000)...)
		fill(b[len(head):], uint32(cut))
		c := 1 + int(cut)%len(b)
		pieces := [][]byte{header, b[:c]}
		if far {
			pieces = [][]byte{append(bytes.Clone(header), b[:c]...)}
		}
		if c < len(b) {
			pieces = append(pieces, b[c:])
		}
		one.tx.Do(pieces, nil)
		for _, g := range []*guest{two, plain} {
			for {
				u, ok := g.rx.Take()
				if !ok {
					break
				}
				h := frame.Parse(u.Data[0])
				got := bytes.Clone(u.Data[0][frame.HeaderLen:u.Written])
				for range int(h.NumBuffers) - 1 {
					u, ok := g.rx.Take()
					if !ok {
						t.Fatal("buffers are missing")
					}
					got = append(got, u.Data[0][:u.Written]...)
				}
				if g == two && !bytes.Equal(got, b) {
					t.Fatalf("%d bytes came of %d", len(got), len(b))
				}
				if g == plain && (h.Flags != 0 || h.GSOType != 0 || len(got) > 9000+18) {
					t.Fatalf("%d bytes came to one who takes whole packets: %+v", len(got), h)
				}
			}
		}
		if err := errors.Join(one.drv.Failed(), two.drv.Failed(), plain.drv.Failed()); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzRings has a guest make any descriptors available, to be sent and to be
// filled: its device may stop, and the others go on.
func FuzzRings(f *testing.F) {
	entry := func(where, n, flags, next byte) []byte { return []byte{where, n, flags, next} }
	f.Add(bytes.Join([][]byte{entry(1, 2, 1, 1), entry(3, 200, 0, 0)}, nil), bytes.Join([][]byte{entry(8, 255, 2, 0), entry(9, 255, 2, 0)}, nil))
	f.Add(entry(0, 0, 1, 0), entry(255, 255, 3, 0))
	f.Add(entry(200, 1, 4, 0), entry(4, 0, 2, 0))
	f.Add(bytes.Repeat(entry(5, 60, 3, 0), 20), bytes.Repeat(entry(16, 16, 2, 0), 40))
	s, err := segment.New(segment.Config{Name: "fuzz", Patience: 5 * time.Millisecond})
	if err != nil {
		f.Fatal(err)
	}
	a := pool(unhelped{f}, 16)
	two := plug(unhelped{f}, s, 2, segment.PortConfig{Map: segment.MapAlways}, virtiotest.Options{})
	if err := two.space.Share(5120, memory.Run{Arena: a, Page: 0, N: 16}); err != nil {
		f.Fatal(err)
	}
	pins, at := two.space.Pins(), two.drv.Alloc(page)
	f.Fuzz(func(t *testing.T, sent, filled []byte) {
		if len(sent) > 4*64 || len(filled) > 4*64 {
			return
		}
		one := plug(t, s, 1, segment.PortConfig{Map: segment.MapAlways, Trusted: true}, virtiotest.Options{Size: 64})
		if err := one.space.Share(64, memory.Run{Arena: a, Page: 0, N: 16}); err != nil {
			t.Fatal(err)
		}
		one.drv.Put(0x8000, append(make([]byte, frame.HeaderLen), tcp4(two.mac, one.mac, 4000)...))
		put := func(r *virtiotest.Ring, b []byte) (i int) {
			for ; len(b) >= 4; b = b[4:] {
				// Around what means something, in and out of RAM.
				d := virtiotest.Descriptor{Addr: memory.GPA(b[0]) * 0x800, Len: uint32(b[1]) * 16, Flags: uint16(b[2]) & 7, Next: uint16(b[3])}
				if b[0] > 250 {
					d.Addr, d.Len = 32<<20-memory.GPA(b[1]), uint32(b[2])<<24
				}
				one.drv.PutDescriptor(r.Desc, i, d)
				i++
			}
			for head := range i {
				r.Offer(uint16(head))
			}
			r.Queue.Kick()
			return i
		}
		for two.rx.Free() > 0 {
			two.rx.Add(nil, []int{page})
		}
		two.rx.Kick()
		put(one.rx, filled)
		n := put(one.tx, sent)
		eventually(t, "all is sent, or the device has stopped", func() bool {
			var used [2]byte
			if err := one.space.ReadAt(used[:], one.tx.Used+2); err != nil {
				t.Fatal(err)
			}
			return int(used[0]) == n || one.drv.Failed() != nil
		})
		head := append(make([]byte, frame.HeaderLen), tcp4(one.mac, two.mac, 10*page)...)
		tso.Put(head)
		two.drv.Put(at, head)
		two.tx.AddRaw(virtiotest.Descriptor{Addr: at, Len: uint32(len(head))}, virtiotest.Descriptor{Addr: 5120 * page, Len: 10 * page})
		two.tx.Kick()
		one.unplug() // nothing waits for it any more
		two.tx.Wait()
		for {
			if _, ok := two.rx.Take(); !ok {
				break
			}
		}
		if err := two.drv.Failed(); err != nil {
			t.Fatal(err)
		}
		if n := two.space.Pins(); n != pins {
			t.Fatalf("%d pins, %d at first", n, pins)
		}
	})
}
