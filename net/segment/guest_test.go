package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/memory/arena"
	"disco/net/frame"
	"disco/net/segment"
	netdev "disco/virtio/net"
	"disco/virtio/virtiotest"
)

const page = arena.PageSize

// guest is a network device with a driver and memory of its own, on a segment.
type guest struct {
	t     testing.TB
	mac   [6]byte
	space *memory.Space
	port  *segment.Port
	dev   *netdev.Net
	drv   *virtiotest.Driver
	rx    *virtiotest.Ring
	tx    *virtiotest.Ring
}

func newSegment(t testing.TB, c segment.Config) *segment.Segment {
	t.Helper()
	c.Name, c.Patience = "test", time.Minute
	s, err := segment.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func macOf(i int) [6]byte { return [6]byte{2, 0, 0, 0, byte(i >> 8), byte(i)} }

// plug makes guest number i, whose memory can be shared, on a segment.
func plug(t testing.TB, s *segment.Segment, i int, c segment.PortConfig, o virtiotest.Options) *guest {
	t.Helper()
	return plugWith(t, s, i, c, o, memory.Options{Sharing: true})
}

// plugWith makes a guest with memory of a kind.
func plugWith(t testing.TB, s *segment.Segment, i int, c segment.PortConfig, o virtiotest.Options, m memory.Options) *guest {
	t.Helper()
	c.Name, c.MAC = fmt.Sprint("guest", i), macOf(i)
	port, err := s.Connect(c)
	if err != nil {
		t.Fatal(err)
	}
	return build(t, i, port, netdev.Config{Switch: port, Pairs: c.Queues}, o, m)
}

// build makes a guest at the end of some cable, of a port if that is not nil.
func build(t testing.TB, i int, port *segment.Port, c netdev.Config, o virtiotest.Options, m memory.Options) *guest {
	t.Helper()
	g := &guest{t: t, mac: macOf(i), port: port}
	var err error
	m.Name, m.RAM, m.Huge = fmt.Sprint("guest", i), []memory.Range{{Start: 0, Size: 32 << 20}}, memory.HugeOff
	if g.space, err = memory.Open(m); err != nil {
		t.Fatal(err)
	}
	c.MAC = g.mac
	if g.dev, err = netdev.New(c); err != nil {
		t.Fatal(err)
	}
	o.Space = g.space
	g.drv = virtiotest.Start(t, g.dev, o)
	g.rx, g.tx = g.drv.Rings[0], g.drv.Rings[1]
	t.Cleanup(g.unplug)
	return g
}

// unplug is the end of a guest.
func (g *guest) unplug() {
	if g.space == nil {
		return
	}
	g.drv.Stop()
	var err error
	if g.port != nil {
		err = g.port.Close()
	}
	if err := errors.Join(err, g.space.Close()); err != nil {
		g.t.Error(err)
	}
	g.space = nil
}

// post makes n receive buffers of size bytes.
func (g *guest) post(n, size int) {
	for range n {
		g.rx.Add(nil, []int{size})
	}
	g.rx.Kick()
}

// take is the next frame that came: its header and its bytes.
func (g *guest) take() (frame.Header, []byte) {
	g.t.Helper()
	u := g.rx.Wait()
	b := u.Data[0][:u.Written]
	h := frame.Parse(b)
	b = b[frame.HeaderLen:]
	for range int(h.NumBuffers) - 1 {
		u := g.rx.Wait()
		b = append(b, u.Data[0][:u.Written]...)
	}
	return h, b
}

// send sends a frame and waits until its buffers are back.
func (g *guest) send(h frame.Header, pieces ...[]byte) {
	g.t.Helper()
	var b [frame.HeaderLen]byte
	h.Put(b[:])
	g.tx.Do(append([][]byte{b[:]}, pieces...), nil)
}

// ethernet is the head of a frame.
func ethernet(dst, src [6]byte, kind uint16) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	return binary.BigEndian.AppendUint16(b, kind)
}

var broadcast = [6]byte{255, 255, 255, 255, 255, 255}

// tcp4 is the head of a TCP segment of n bytes over IPv4, with timestamps, its
// checksum that of the pseudo-header.
func tcp4(dst, src [6]byte, n int) []byte {
	b := append(ethernet(dst, src, 0x0800), make([]byte, 52)...)
	ip := b[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], uint16(52+n))
	copy(ip[12:], []byte{10, 0, 0, src[5], 10, 0, 0, dst[5]})
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	tcp := ip[20:]
	copy(tcp, []byte{0x12, 0x34, 0, 80})
	tcp[12], tcp[13] = 8<<4, 0x18
	sum = uint32(6 + 32 + n)
	for i := 12; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(tcp[16:], uint16(sum+sum>>16))
	return b
}

// tso is the header of such a frame with segments of a page.
var tso = frame.Header{Flags: frame.NeedsChecksum, GSOType: frame.GSOTCP4, GSOSize: page, CsumStart: 34, CsumOffset: 16}

// pool is an arena of n pages, each of its own bytes, that guests share.
func pool(t testing.TB, n int) *arena.Arena {
	t.Helper()
	a, err := arena.New("pool", uint64(n)*page, arena.HugeOff)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		fill(a.Bytes()[i*page:(i+1)*page], uint32(i))
	}
	t.Cleanup(func() { // after the guests
		for i := range uint64(n) {
			if a.Users(i) != 0 {
				t.Errorf("page %d still has %d users", i, a.Users(i))
				break
			}
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// fill writes what only seed gives.
func fill(b []byte, seed uint32) {
	x := seed*2654435761 + 1
	for len(b) >= 4 {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		binary.LittleEndian.PutUint32(b, x)
		b = b[4:]
	}
}

// load and store go through a View, as a guest does.
func load(s *memory.Space, p []byte, a memory.GPA) error {
	return access(unix.SYS_PROCESS_VM_READV, s, p, a)
}

func store(s *memory.Space, p []byte, a memory.GPA) error {
	return access(unix.SYS_PROCESS_VM_WRITEV, s, p, a)
}

func access(call uintptr, s *memory.Space, p []byte, a memory.GPA) error {
	window := s.View(0).Bytes()
	local := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	remote := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(unsafe.SliceData(window))) + uintptr(a), Len: len(p)}
	n, _, errno := unix.Syscall6(call, uintptr(os.Getpid()), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	if errno != 0 || int(n) != len(p) {
		return fmt.Errorf("guest access at %#x: %d of %d bytes, %v", uint64(a), n, len(p), errno)
	}
	return nil
}

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 10000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("never: ", what)
}

func mappings(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "/memfd:")
}

// TestHostDelivery sends the same frame from memory of all kinds, into buffers of
// all kinds.
func TestHostDelivery(t *testing.T) {
	const pages = 15
	a := pool(t, 64)
	for _, c := range []struct {
		name   string
		mode   segment.Mode
		share  bool
		buffer int
		refuse uint64
		mapped int
		reason string // of what is copied of the pages
	}{
		{"mapped", segment.MapAlways, true, page, 0, pages, "odd"},
		{"auto", segment.MapAuto, true, page, 0, pages, "odd"},
		{"large buffers", segment.MapAuto, true, 2 * page, 0, pages - 1, "buffers"},
		{"private", segment.MapAuto, false, page, 0, 0, "private"},
		{"off", segment.MapNever, true, page, 0, 0, "off"},
		{"small buffers", segment.MapAuto, true, 2048, 0, 0, "buffers"},
		{"one buffer", segment.MapAuto, true, 68 << 10, 1 << 15, 0, "buffers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSegment(t, segment.Config{})
			one := plug(t, s, 1, segment.PortConfig{}, virtiotest.Options{})
			two := plug(t, s, 2, segment.PortConfig{Map: c.mode}, virtiotest.Options{Refuse: c.refuse})
			two.post(128<<10/min(c.buffer, 64<<10), c.buffer)

			head := append(make([]byte, frame.HeaderLen), tcp4(two.mac, one.mac, pages*page+100)...)
			tso.Put(head)
			at := one.drv.Alloc(page)
			one.drv.Put(at, head)
			const data = 16 << 20
			want := append(bytes.Clone(head[frame.HeaderLen:]), a.Bytes()[8*page:(8+pages)*page+100]...)
			if c.share {
				if err := one.space.Share(data/page, memory.Run{Arena: a, Page: 8, N: pages + 1}); err != nil {
					t.Fatal(err)
				}
			} else {
				one.drv.Put(data, a.Bytes()[8*page:(8+pages+1)*page])
			}
			ds := []virtiotest.Descriptor{{Addr: at, Len: uint32(len(head))}}
			for i := range pages {
				ds = append(ds, virtiotest.Descriptor{Addr: memory.GPA(data + i*page), Len: page})
			}
			ds = append(ds, virtiotest.Descriptor{Addr: data + pages*page, Len: 100})
			pins := one.space.Pins() + two.space.Pins()
			one.tx.AddRaw(ds...)
			one.tx.Kick()
			one.tx.Wait()
			h, got := two.take()
			if !bytes.Equal(got, want) {
				t.Fatalf("%d other bytes, of %d", len(got), len(want))
			}
			if h.GSOType != frame.GSOTCP4 || h.GSOSize != page || h.Flags != frame.NeedsChecksum || h.HdrLen != 66 {
				t.Errorf("header %+v", h)
			}
			st := two.port.Stats()
			if st.Mapped.Bytes != uint64(c.mapped*page) || st.Copied+st.Mapped.Bytes != uint64(len(want)) ||
				st.CopiedBy[c.reason] == 0 || c.share && st.Eligible.Bytes != pages*page {
				t.Errorf("%+v", st)
			}
			if n := one.space.Pins() + two.space.Pins(); n != pins {
				t.Errorf("%d pins, %d before", n, pins)
			}
		})
	}
}
