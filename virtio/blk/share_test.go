package blk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/disk/cache"
	"disco/disk/overlay"
	"disco/memory"
	"disco/memory/arena"
	"disco/virtio/virtiotest"
)

// image is the base of disks.
type image []byte

func (m image) Size() int64 { return int64(len(m)) }

func (m image) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func newImage(size int) image {
	m := make(image, size)
	r := rand.New(rand.NewPCG(9, uint64(size)))
	for i := 0; i+8 <= size; i += 8 {
		*(*uint64)(unsafe.Pointer(&m[i])) = r.Uint64()
	}
	return m
}

// guest is one of several whose disks lie over the same image.
type guest struct {
	t     testing.TB
	space *memory.Space
	disk  *overlay.Overlay
	dev   *Device
	drv   *virtiotest.Driver
	table memory.GPA // of descriptors
	head  memory.GPA
	state memory.GPA
}

func cached(t testing.TB, m image, size uint64) (*cache.Cache, *cache.File) {
	t.Helper()
	c, err := cache.New(cache.Config{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Open(m, "share-cache")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the guests
		if err := errors.Join(f.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	return c, f
}

func newGuest(t testing.TB, base overlay.Base, share Share) *guest {
	t.Helper()
	s, err := memory.Open(memory.Options{
		Name: "share", RAM: []memory.Range{{Start: 0, Size: 16 << 20}}, Sharing: true, Huge: memory.HugeOff,
	})
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, space: s}
	if g.disk, err = overlay.New(base, "share-overlay"); err != nil {
		t.Fatal(err)
	}
	g.dev = New(Config{Backend: g.disk, Share: share})
	g.drv = virtiotest.Start(t, g.dev, virtiotest.Options{Space: s})
	g.table, g.head, g.state = g.drv.Alloc(4096), g.drv.Alloc(headerSize), g.drv.Alloc(1)
	t.Cleanup(func() {
		g.drv.Stop()
		if err := errors.Join(s.Close(), g.disk.Close()); err != nil {
			t.Error(err)
		}
	})
	return g
}

// do is one request for data at off, in pieces of guest memory.
func (g *guest) do(kind uint32, off int64, pieces ...virtiotest.Descriptor) {
	g.t.Helper()
	g.drv.Put(g.head, header(kind, uint64(off/SectorSize)))
	list := append([]virtiotest.Descriptor{{Addr: g.head, Len: headerSize}}, pieces...)
	list = append(list, virtiotest.Descriptor{Addr: g.state, Len: 1, Flags: virtiotest.Write})
	for i, d := range list {
		if i+1 < len(list) {
			d.Flags, d.Next = d.Flags|virtiotest.Next, uint16(i+1)
		}
		if kind == typeIn && i > 0 {
			d.Flags |= virtiotest.Write
		}
		g.drv.PutDescriptor(g.table, i, d)
	}
	r := g.drv.Rings[0]
	r.AddRaw(virtiotest.Descriptor{Addr: g.table, Len: uint32(16 * len(list)), Flags: virtiotest.Indirect})
	r.Kick()
	r.Wait()
	if s := g.drv.Get(g.state, 1)[0]; s != statusOK {
		g.t.Fatalf("request %d at %d: status %d", kind, off, s)
	}
}

func (g *guest) load(a memory.GPA, n int) []byte {
	t, ok := g.t.(*testing.T)
	if !ok {
		return nil
	}
	return seen(t, g.space.View(0), a, n)
}

// store writes as the guest's CPU does.
func (g *guest) store(a memory.GPA, p []byte) {
	g.t.Helper()
	local := []unix.Iovec{{Base: &p[0], Len: uint64(len(p))}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&g.space.View(0).Bytes()[0])) + uintptr(a), Len: len(p)}}
	if n, err := unix.ProcessVMWritev(os.Getpid(), local, remote, 0); err != nil || n != len(p) {
		g.t.Fatalf("stored %d of %d bytes at %#x: %v", n, len(p), uint64(a), err)
	}
}

const data = memory.GPA(8 << 20) // where the tests have their buffers

func in(a memory.GPA, n int) virtiotest.Descriptor {
	return virtiotest.Descriptor{Addr: a, Len: uint32(n)}
}

// TestHostReadsAreMapped has two guests read the same blocks: nothing is copied,
// and there is one page of each.
func TestHostReadsAreMapped(t *testing.T) {
	m := newImage(4 << 20)
	c, f := cached(t, m, 64<<20)
	one, two := newGuest(t, f, ShareAlways), newGuest(t, f, ShareAlways)
	for i, g := range []*guest{one, two} {
		// Neighbours in pieces, and a piece elsewhere.
		g.do(typeIn, 1<<20, in(data, 4096), in(data+4096, 60<<10), in(data+1<<20, 64<<10))
		want := m[1<<20:][:128<<10]
		if !bytes.Equal(g.load(data, 64<<10), want[:64<<10]) || !bytes.Equal(g.load(data+1<<20, 64<<10), want[64<<10:]) {
			t.Error("the guest has other bytes")
		}
		if g.dev.Mapped() != 128<<10 || g.dev.Copied() != 0 {
			t.Errorf("%d bytes mapped, %d copied", g.dev.Mapped(), g.dev.Copied())
		}
		if st := g.space.Stats(); st.Shared != 32 || st.SharedPages != 32 || st.VMAs != uint64(4*(i+1)) {
			t.Errorf("%+v", st)
		}
	}
	if s := c.Stats(); s.BytesMapped != 256<<10 || s.BytesCopied != 0 {
		t.Errorf("%+v", s)
	}
	// DMA out of shared pages is free.
	before := one.space.Stats()
	one.do(typeOut, 2<<20, in(data+8192, 16<<10))
	if st := one.space.Stats(); st.Unshared != before.Unshared || st.BytesCopied != before.BytesCopied {
		t.Errorf("a write to the disk copied: %+v", st)
	}
	one.do(typeIn, 2<<20, in(data+2<<20, 16<<10))
	if !bytes.Equal(one.load(data+2<<20, 16<<10), m[1<<20+8192:][:16<<10]) {
		t.Error("the disk does not have what was written from shared pages")
	}
	two.do(typeIn, 2<<20, in(data+2<<20, 16<<10))
	if !bytes.Equal(two.load(data+2<<20, 16<<10), m[2<<20:][:16<<10]) {
		t.Error("the other guest sees what one wrote")
	}
	// DMA into shared pages, by part of a block of the overlay, and stores.
	one.do(typeIn, 2<<20, in(data+512, 512))
	one.store(data+5*4096+7, []byte("mine"))
	want := bytes.Clone(m[1<<20:][:64<<10])
	copy(want[512:1024], m[1<<20+8192:])
	copy(want[5*4096+7:], "mine")
	if !bytes.Equal(one.load(data, 64<<10), want) {
		t.Error("the guest does not see what it and the disk wrote")
	}
	if !bytes.Equal(two.load(data, 64<<10), m[1<<20:][:64<<10]) {
		t.Error("the other guest was harmed")
	}
	if st := one.space.Stats(); st.Unshared != 2 {
		t.Errorf("%d pages were made private, not 2", st.Unshared)
	}
}

func TestHostReadsOfAnyShape(t *testing.T) {
	m := newImage(4 << 20)
	_, f := cached(t, m, 64<<20)
	g := newGuest(t, f, ShareAlways)
	for _, c := range []struct {
		name   string
		off    int64
		pieces []virtiotest.Descriptor
		mapped uint64
	}{
		{"a page", 0, []virtiotest.Descriptor{in(data, 4096)}, 4096},
		{"a sector", 512, []virtiotest.Descriptor{in(data, 512)}, 0},
		{"at a sector of the disk", 512, []virtiotest.Descriptor{in(data, 8192)}, 0},
		{"in the middle of pages", 4096, []virtiotest.Descriptor{in(data+512, 8192)}, 0},
		{"more than pages", 8192, []virtiotest.Descriptor{in(data, 10<<10)}, 8192},
		{"a sector in between", 8192, []virtiotest.Descriptor{in(data, 8192), in(data+1<<20, 512), in(data+2<<20, 4096)}, 8192},
		{"pages after two halves", 0, []virtiotest.Descriptor{in(data, 2048), in(data+2048, 2048+8192)}, 12 << 10},
		{"two halves apart", 0, []virtiotest.Descriptor{in(data, 2048), in(data+1<<20, 2048), in(data+2<<20, 4096)}, 4096},
		{"the same page twice", 0, []virtiotest.Descriptor{in(data, 4096), in(data, 4096)}, 8192},
		{"nothing", 0, nil, 0},
		{"two megabytes", 1 << 20, []virtiotest.Descriptor{in(data, 2<<20)}, 2 << 20},
	} {
		before := g.dev.Mapped()
		g.do(typeIn, c.off, c.pieces...)
		if n := g.dev.Mapped() - before; n != c.mapped {
			t.Errorf("%s: %d bytes mapped, not %d", c.name, n, c.mapped)
		}
		off := c.off
		for i, p := range c.pieces {
			if c.name != "the same page twice" || i == 1 {
				if !bytes.Equal(g.load(p.Addr, int(p.Len)), m[off:off+int64(p.Len)]) {
					t.Errorf("%s: other bytes in piece %d", c.name, i)
				}
			}
			off += int64(p.Len)
		}
	}
	// The status may lie in a page that is read into.
	g.state = data + 4095
	g.do(typeIn, 0, in(data, 4095+1-512))
	g.do(typeIn, 0, in(data-4096, 4096), in(data, 512))
	if !bytes.Equal(g.load(data-4096, 4096+512), m[:4096+512]) {
		t.Error("other bytes beside the status")
	}
}

// TestHostModel has two guests of one image do at random what guests do, with a
// cache that is too small, and compares each with plain bytes.
func TestHostModel(t *testing.T) {
	const memSize, diskSize = 2 << 20, 6 << 20
	m := newImage(diskSize)
	origin := sha256.Sum256(m)
	c, f := cached(t, m, 4<<20)
	type plain struct {
		*guest
		mem, disk []byte
	}
	var guests []*plain
	for _, share := range []Share{ShareAlways, ShareAuto} {
		g := &plain{newGuest(t, f, share), make([]byte, memSize), bytes.Clone(m)}
		guests = append(guests, g)
	}
	r := rand.New(rand.NewPCG(4, 5))
	for range 1500 {
		g := guests[r.IntN(2)]
		// Pieces that do not overlap, and a place on the disk.
		var pieces []virtiotest.Descriptor
		unit := []int{512, 4096, 4096, 4096}[r.IntN(4)]
		at, n := r.IntN(memSize/4/unit)*unit, 0
		for range 1 + r.IntN(5) {
			size := unit * (1 + r.IntN(16))
			pieces, n = append(pieces, in(data+memory.GPA(at), size)), n+size
			at += size + r.IntN(3)*unit*r.IntN(9)
		}
		off := r.IntN((diskSize-n)/unit) * unit
		switch r.IntN(8) {
		case 0, 1, 2, 3:
			g.do(typeIn, int64(off), pieces...)
			for _, p := range pieces {
				off += copy(g.mem[p.Addr-data:][:p.Len], g.disk[off:])
			}
		case 4:
			g.do(typeOut, int64(off), pieces...)
			for _, p := range pieces {
				off += copy(g.disk[off:], g.mem[p.Addr-data:][:p.Len])
			}
		case 5, 6:
			for _, p := range pieces {
				b := bytes.Repeat([]byte{byte(r.Uint32())}, 1+r.IntN(int(p.Len)))
				g.store(p.Addr, b)
				copy(g.mem[p.Addr-data:], b)
			}
		default:
			b := []byte{byte(r.Uint32()), 2, 3}
			a := r.IntN(memSize - len(b))
			g.drv.Put(data+memory.GPA(a), b)
			copy(g.mem[a:], b)
		}
		for _, p := range pieces {
			if !bytes.Equal(g.load(p.Addr, int(p.Len)), g.mem[p.Addr-data:][:p.Len]) {
				t.Fatal("the guest has other bytes")
			}
		}
	}
	for i, g := range guests {
		if !bytes.Equal(g.load(data, memSize), g.mem) || !bytes.Equal(g.drv.Get(data, memSize), g.mem) {
			t.Errorf("guest %d has other bytes in the end", i)
		}
		b := make([]byte, diskSize)
		if err := g.guest.disk.ReadV([][]byte{b}, 0); err != nil || !bytes.Equal(b, g.disk) {
			t.Errorf("the disk of guest %d has other bytes in the end (%v)", i, err)
		}
		if g.dev.Mapped() == 0 || g.dev.Copied() == 0 {
			t.Errorf("guest %d: %d bytes mapped, %d copied", i, g.dev.Mapped(), g.dev.Copied())
		}
	}
	if sha256.Sum256(m) != origin {
		t.Error("the image was changed")
	}
	if s := c.Stats(); s.Evictions == 0 {
		t.Errorf("%+v", s)
	}
}

// TestHostGuestThatRewrites reads blocks and writes to every page, again and
// again: no more is copied than without sharing, and no mapping is left.
func TestHostGuestThatRewrites(t *testing.T) {
	const size = 1 << 20
	m := newImage(size)
	_, f := cached(t, m, 64<<20)
	copied := map[Share]uint64{}
	for _, share := range []Share{ShareNever, ShareAlways, ShareAuto} {
		g := newGuest(t, f, share)
		used := arena.VMAs.Used()
		const rounds = 6
		for i := range byte(rounds) {
			g.do(typeIn, 0, in(data, size))
			for a := memory.GPA(0); a < size; a += 4096 {
				g.store(data+a, []byte{i})
			}
		}
		st := g.space.Stats()
		copied[share] = g.dev.Copied() + st.BytesCopied
		if st.VMAs != 0 || arena.VMAs.Used() != used || st.SharedPages != 0 {
			t.Errorf("%v: %+v", share, st)
		}
		if share == ShareAuto && g.dev.Mapped() > 2*size {
			t.Errorf("%d bytes were mapped to be overwritten", g.dev.Mapped())
		}
		g.drv.Stop()
	}
	if n := copied[ShareNever]; copied[ShareAuto]*10 > n*12 || copied[ShareAlways]*10 > n*12 || n == 0 {
		t.Errorf("bytes copied: %v", copied)
	}
}

func TestPolicy(t *testing.T) {
	var broken uint32
	used, limit := int64(0), int64(100)
	y := &policy{
		regions: make([]region, 4), broken: func(memory.PPN) uint32 { return broken },
		crowded: func() (int64, int64) { return used, limit },
	}
	now := time.Duration(0)
	want := func(n int, ok bool, why string) {
		t.Helper()
		if y.worth(600, n, now) != ok {
			t.Errorf("%s: %d pages are shared: %v", why, n, !ok)
		}
	}
	want(1, true, "at first")
	used = 60
	want(3, false, "half of the mappings are taken")
	want(4, true, "half of the mappings are taken")
	used = 80
	want(15, false, "few mappings are left")
	want(16, true, "few mappings are left")
	used = 0

	want(200, true, "again")
	broken += 30
	want(1, true, "some pages were written to")
	broken += 100
	want(1, false, "most pages were written to")
	if !y.worth(0, 1, now) {
		t.Error("another region suffers")
	}
	now += shortPause + 1
	want(200, true, "after a pause")
	broken += 200
	want(1, false, "written to again")
	now += shortPause + 1
	want(1, false, "the second pause is longer")
	now += shortPause
	want(200, true, "after the second pause")
	// Much later: what goes then has lived long.
	now += time.Hour
	broken += 200
	want(200, true, "old pages are written to")
	broken += 150
	want(1, false, "young ones are")
	if p := y.regions[1].pause; p != shortPause {
		t.Errorf("the pause after good times is %v", p)
	}
}

// TestHostReadDoesNotAllocate counts what mapping and copying take.
func TestHostReadDoesNotAllocate(t *testing.T) {
	m := newImage(2 << 20)
	_, f := cached(t, m, 64<<20)
	g := newGuest(t, f, ShareAuto)
	table := []virtiotest.Descriptor{{Addr: g.head, Len: headerSize}, in(data, 64<<10), in(data+1<<20+512, 4096), {Addr: g.state, Len: 1}}
	for i, d := range table {
		if i+1 < len(table) {
			d.Flags, d.Next = virtiotest.Next, uint16(i+1)
		}
		if i > 0 {
			d.Flags |= virtiotest.Write
		}
		g.drv.PutDescriptor(g.table, i, d)
	}
	g.drv.Put(g.head, header(typeIn, 0))
	// The queue is served here, not by the device's worker.
	r := g.drv.NewRing(64, g.drv.Features)
	q := g.drv.Queue(r, 1)
	defer q.Close()
	lender, policy := g.dev.sharing(g.space)
	w := &worker{d: g.dev, q: q, features: g.drv.Features, lender: lender, policy: policy}
	head := uint16(r.AddRaw(virtiotest.Descriptor{Addr: g.table, Len: uint32(16 * len(table)), Flags: virtiotest.Indirect}))
	act := func() {
		if !w.next() {
			t.Fatal("no request")
		}
		n, err := w.serve(&w.chain)
		if err != nil || n != 68<<10+1 {
			t.Fatal(n, err)
		}
		q.Done(&w.chain, n)
		q.Flush()
		r.Offer(head)
	}
	act()
	if n := testing.AllocsPerRun(100, act); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if g.dev.Mapped() == 0 || g.dev.Copied() == 0 {
		t.Errorf("%d bytes mapped, %d copied", g.dev.Mapped(), g.dev.Copied())
	}
}

func BenchmarkHostRead(b *testing.B) {
	m := newImage(8 << 20)
	_, f := cached(b, m, 64<<20)
	for _, n := range []int{4, 128, 1024} {
		for _, share := range []Share{ShareAlways, ShareNever} {
			b.Run(fmt.Sprintf("%dKiB/%s", n, map[Share]string{ShareAlways: "mapped", ShareNever: "copied"}[share]), func(b *testing.B) {
				g := newGuest(b, f, share)
				b.SetBytes(int64(n) << 10)
				for i := int64(0); b.Loop(); i++ {
					g.do(typeIn, i%4<<20, in(data+memory.GPA(i%4<<20), n<<10))
				}
			})
		}
	}
}

// TestTopology: a driver is told to use whole pages, whatever the logical block.
func TestTopology(t *testing.T) {
	for block, want := range map[int][4]byte{512: {3, 0, 8, 0}, 4096: {0, 0, 1, 0}, 16384: {0, 0, 1, 0}} {
		d := New(Config{Backend: &sized{&fake{data: make([]byte, 1<<20)}, block}})
		var got [4]byte
		d.ReadConfig(24, got[:])
		if got != want || d.Features()&featureTopology == 0 {
			t.Errorf("blocks of %d: %v, want %v", block, got, want)
		}
	}
}

type sized struct {
	*fake
	block int
}

func (s *sized) BlockSize() int { return s.block }
