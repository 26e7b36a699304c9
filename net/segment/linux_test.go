package segment_test

import (
	"bytes"
	"testing"

	"disco/memory"
	"disco/net/frame"
	"disco/net/segment"
	"disco/virtio/virtiotest"
)

// fragment is how much memory Linux takes at once to cut receive buffers from.
const fragment = 8 * page

// linux posts receive buffers as virtio_net of Linux 6.1 does: of the average
// length of frames, up to a page, cut from fragments one after the other.
type linux struct {
	g       *guest
	average int
	free    []int // fragments, the last freed at the end
	current int
	offset  int
	users   map[int]int // of fragments
	posts   map[int]virtiotest.Descriptor
}

const linuxAt = 16 << 20 // where the fragments are

func newLinux(g *guest, fragments int) *linux {
	l := &linux{g: g, current: -1, users: map[int]int{}, posts: map[int]virtiotest.Descriptor{}}
	for i := range fragments {
		l.free = append(l.free, i)
	}
	return l
}

func (l *linux) put(f int) {
	if l.users[f]--; l.users[f] == 0 {
		l.free = append(l.free, f)
	}
}

// refill posts buffers until there is no room for more.
func (l *linux) refill() {
	for l.g.rx.Free() > 0 {
		n := (frame.HeaderLen + min(max(l.average, 1518), page-frame.HeaderLen) + 63) &^ 63
		if l.current < 0 || l.offset+n > fragment {
			if l.current >= 0 {
				l.put(l.current)
			}
			l.current, l.offset = l.free[len(l.free)-1], 0
			l.free = l.free[:len(l.free)-1]
			l.users[l.current] = 1
		}
		at := memory.GPA(linuxAt + l.current*fragment + l.offset)
		l.offset += n
		if hole := fragment - l.offset; hole < n {
			n, l.offset = n+hole, fragment
		}
		d := virtiotest.Descriptor{Addr: at, Len: uint32(n), Flags: virtiotest.Write}
		l.posts[l.g.rx.AddRaw(d)] = d
		l.users[l.current]++
	}
	l.g.rx.Kick()
}

// take is the next frame, which is read and freed.
func (l *linux) take() (data []byte) {
	l.g.t.Helper()
	for left := 1; left > 0; left-- {
		u := l.g.rx.Wait()
		d := l.posts[u.ID]
		delete(l.posts, u.ID)
		b := make([]byte, u.Written)
		if err := load(l.g.space, b, d.Addr); err != nil {
			l.g.t.Fatal(err)
		}
		if len(data) == 0 {
			left = int(frame.Parse(b).NumBuffers)
		}
		data = append(data, b...)
		l.put(int(d.Addr-linuxAt) / fragment)
	}
	data = data[frame.HeaderLen:]
	if l.average == 0 {
		l.average = len(data)
	}
	l.average = (l.average*63 + len(data)) / 64
	return data
}

// TestHostLinuxIsMapped has a guest with Linux's buffers take streams of pages: from
// the first byte on, and after the header of an answer of NFS; in frames of two
// segments and of three, with some short ones between. Once its buffers are pages,
// at most a quarter is copied.
func TestHostLinuxIsMapped(t *testing.T) {
	const filePages, answer = 256, 256 * page
	for _, c := range []struct {
		name            string
		header, payload int // bytes before each answer, bytes in each frame
	}{
		{"sendfile, slow", 0, 10 * page}, {"sendfile, fast", 0, 15 * page},
		{"NFS, slow", 132, 10 * page}, {"NFS, fast", 132, 15 * page},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := pool(t, filePages)
			s := newSegment(t, segment.Config{})
			one := plug(t, s, 1, segment.PortConfig{}, virtiotest.Options{})
			two := plug(t, s, 2, segment.PortConfig{}, virtiotest.Options{})
			const data = 16 << 20
			if err := one.space.Share(data/page, memory.Run{Arena: a, Page: 0, N: filePages}); err != nil {
				t.Fatal(err)
			}
			l := newLinux(two, 100)
			at, rpc := one.drv.Alloc(page), one.drv.Alloc(page)
			want := append(one.drv.Get(rpc, c.header), a.Bytes()[:answer]...)
			var before segment.PortStats
			for round := range 12 {
				if round == 4 {
					before = two.port.Stats()
				}
				var got []byte
				for off := 0; off < len(want); {
					n := min(c.payload, len(want)-off)
					head := append(make([]byte, frame.HeaderLen), tcp4(two.mac, one.mac, n)...)
					h := tso
					h.GSOSize = 5 * page
					h.Put(head)
					one.drv.Put(at, head)
					ds := []virtiotest.Descriptor{{Addr: at, Len: uint32(len(head))}}
					from, to := off-c.header, off-c.header+n
					if from < 0 {
						ds = append(ds, virtiotest.Descriptor{Addr: rpc, Len: uint32(-from)})
						from = 0
					}
					for from < to { // page by page, as the page cache has them
						m := min(to-from, page-from%page)
						ds = append(ds, virtiotest.Descriptor{Addr: memory.GPA(data + from), Len: uint32(m)})
						from += m
					}
					l.refill()
					one.tx.AddRaw(ds...)
					one.tx.Kick()
					one.tx.Wait()
					got = append(got, l.take()[len(head)-frame.HeaderLen:]...)
					off += n
				}
				if !bytes.Equal(got, want) {
					t.Fatal("other bytes")
				}
				one.send(frame.Header{}, tcp4(two.mac, one.mac, 10), make([]byte, 10))
				l.take()
			}
			st := two.port.Stats()
			copied, received := st.Copied-before.Copied, st.Received.Bytes-before.Received.Bytes
			t.Logf("%.3f copied: %v", float64(copied)/float64(received), st.CopiedBy)
			if copied > received/4 {
				t.Errorf("%d bytes copied of %d: %+v", copied, received, st)
			}
			if st.Paused != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}
