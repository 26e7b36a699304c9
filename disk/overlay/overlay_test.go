package overlay

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"disco/memory"
)

// base is a Base in memory, all of which it lends.
type base struct {
	data []byte
	err  error
}

func (b *base) Size() int64 { return int64(len(b.data)) }

func (b *base) ReadV(bufs [][]byte, off int64) error {
	for _, p := range bufs {
		off += int64(copy(p, b.data[off:]))
	}
	return b.err
}

func (b *base) Lend(off, n int64) (memory.Run, int64) {
	return memory.Run{Page: uint64(off / BlockSize), N: int(n / BlockSize)}, 0
}

func (b *base) Return(memory.Run, int) {}

func random(n int) []byte {
	r := rand.New(rand.NewPCG(3, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func opened(t testing.TB, b Base) *Overlay {
	t.Helper()
	o, err := New(b, "test-overlay")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(o.Close(), o.Close()); err != nil {
			t.Error(err)
		}
	})
	return o
}

// split cuts p into uneven pieces, some of them empty.
func split(p []byte) [][]byte {
	var v [][]byte
	for i := 1; len(p) > 0; i++ {
		n := min(len(p), i*1777%6000/512*512)
		v, p = append(v, p[:n]), p[n:]
	}
	return v
}

// TestModel does what a guest may, to an overlay and to plain bytes.
func TestModel(t *testing.T) {
	for seed := range uint64(4) {
		b := &base{data: random(3<<20 + 5*512)}
		o := opened(t, b)
		want, origin := bytes.Clone(b.data), bytes.Clone(b.data)
		r := rand.New(rand.NewPCG(seed, 1))
		for range 600 {
			n := 512 * (1 + r.Int64N(40))
			if r.IntN(8) == 0 {
				n *= 20
			}
			off := 512 * r.Int64N((o.Size()-n)/512+1)
			if r.IntN(2) == 0 { // whole blocks
				off, n = off&^(BlockSize-1), max(BlockSize, n&^(BlockSize-1))
			}
			n = min(n, o.Size()-off)
			var err error
			switch r.IntN(6) {
			case 0, 1:
				p := random(int(n))
				err = o.WriteV(split(p), off)
				copy(want[off:], p)
			case 2:
				err = o.WriteZeroes(off, n, r.IntN(2) == 0)
				clear(want[off : off+n])
			case 3:
				err = o.Discard(off, n)
				if first, end := o.whole(off, n); first < end {
					clear(want[first*BlockSize : min(end*BlockSize, o.Size())])
				}
			default:
				p := make([]byte, n)
				if err = o.ReadV(split(p), off); !bytes.Equal(p, want[off:off+n]) {
					t.Fatalf("seed %d: other bytes in %d at %d", seed, n, off)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		p := make([]byte, len(want))
		if err := o.ReadV([][]byte{p}, 0); err != nil || !bytes.Equal(p, want) {
			t.Errorf("seed %d: other bytes in the end (%v)", seed, err)
		}
		if !bytes.Equal(b.data, origin) {
			t.Error("the base was written to")
		}
		var st unix.Stat_t
		if err := unix.Fstat(o.pages.FD(), &st); err != nil || uint64(st.Blocks*512) != o.Memory() {
			t.Errorf("%d bytes of memory, counted %d (%v)", st.Blocks*512, o.Memory(), err)
		}
		if err := o.Discard(0, o.Size()); err != nil || o.Memory() != 0 {
			t.Errorf("%d bytes are left of nothing (%v)", o.Memory(), err)
		}
	}
}

// TestSectorsOfOneBlock has many write their own sectors of the same blocks at
// once, while others read.
func TestSectorsOfOneBlock(t *testing.T) {
	b := &base{data: random(256 << 10)}
	o := opened(t, b)
	const writers = 8
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(w)}, 512)
			for off := w * 512; off < o.Size(); off += writers * 512 {
				if err := o.WriteV([][]byte{p}, off); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p := make([]byte, o.Size())
	if err := o.ReadV([][]byte{p}, 0); err != nil {
		t.Fatal(err)
	}
	for i, c := range p {
		if c != byte(i/512%writers) {
			t.Fatalf("byte %d is %d", i, c)
		}
	}
}

func TestLend(t *testing.T) {
	b := &base{data: random(64 * BlockSize)}
	o := opened(t, b)
	p := [][]byte{make([]byte, 512)}
	for _, err := range []error{o.WriteV(p, 10*BlockSize+512), o.WriteV(p, 11*BlockSize), o.Discard(12*BlockSize, BlockSize)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		off, n, lent, skip int64 // blocks
	}{{0, 64, 10, 0}, {10, 54, 0, 2}, {11, 1, 0, 1}, {12, 2, 0, 1}, {13, 5, 5, 0}, {60, 5, 0, 5}, {9, 1, 1, 0}} {
		r, skip := o.Lend(c.off*BlockSize, c.n*BlockSize)
		if int64(r.N) != c.lent || skip != c.skip*BlockSize || r.N > 0 && r.Page != uint64(c.off) {
			t.Errorf("%d blocks at %d: lent %+v, to be read %d bytes", c.n, c.off, r, skip)
		}
	}
}

func TestErrors(t *testing.T) {
	b := &base{data: random(64 * BlockSize)}
	o := opened(t, b)
	one := [][]byte{make([]byte, 512)}
	for _, off := range []int64{-512, o.Size(), o.Size() + 512, -1 << 63, 1<<63 - 512} {
		for name, err := range map[string]error{
			"read": o.ReadV(one, off), "write": o.WriteV(one, off), "discard": o.Discard(off, 512), "zeroes": o.WriteZeroes(off, 512, true),
		} {
			if !errors.Is(err, unix.EINVAL) {
				t.Errorf("%s at %d: %v", name, off, err)
			}
		}
	}
	b.err = unix.EIO
	if err := o.WriteV(one, 512); !errors.Is(err, unix.EIO) {
		t.Errorf("a block that can not be completed: %v", err)
	}
	if err := o.ReadV(one, 512); !errors.Is(err, unix.EIO) || o.of(0) != ofBase {
		t.Errorf("read: %v", err)
	}
	if err := o.WriteV([][]byte{make([]byte, BlockSize)}, 0); err != nil {
		t.Errorf("a whole block needs no base: %v", err)
	}
	if _, err := New(&base{data: make([]byte, 100)}, "x"); err == nil {
		t.Error("took a base with half a sector")
	}
}

func TestDoesNotAllocate(t *testing.T) {
	o := opened(t, &base{data: random(1 << 20)})
	p := split(make([]byte, 64<<10))
	off := int64(0)
	act := func() {
		off = (off + 4096) % (512 << 10)
		for _, err := range []error{o.WriteV(p, off), o.ReadV(p, off+512), o.WriteZeroes(off, 64<<10, true)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	act()
	if n := testing.AllocsPerRun(100, act); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
