package cache

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// image is a Base in memory.
type image struct {
	data  []byte
	reads atomic.Int64
	most  atomic.Int64 // bytes of the longest

	mu      sync.Mutex
	bad     [2]int64 // a range that can not be read
	gate    chan struct{}
	forgot  int64
	entered chan struct{}
}

var errBad = errors.New("bad sector")

func (m *image) Size() int64 { return int64(len(m.data)) }

func (m *image) ReadAt(p []byte, off int64) (int, error) {
	m.reads.Add(1)
	m.most.Store(max(m.most.Load(), int64(len(p))))
	m.mu.Lock()
	bad, gate := m.bad, m.gate
	m.mu.Unlock()
	if gate != nil {
		m.entered <- struct{}{}
		<-gate
	}
	if off < bad[1] && bad[0] < off+int64(len(p)) {
		n := copy(p, m.data[off:max(off, bad[0])])
		return n, errBad
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *image) Forget(_, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgot += n
}

func newImage(size int) *image {
	m := &image{data: make([]byte, size), entered: make(chan struct{}, 100)}
	r, word := rand.New(rand.NewPCG(1, uint64(size))), uint64(0)
	for i := range m.data {
		if i%8 == 0 {
			word = r.Uint64()
		}
		m.data[i] = byte(word >> (i % 8 * 8))
	}
	return m
}

func opened(t testing.TB, m *image, size uint64) (*Cache, *File) {
	t.Helper()
	c, err := New(Config{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Open(m, "test-cache")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.Close() == nil {
			t.Error("closed with an image open")
		}
		for _, k := range c.ring {
			if k.pins != 0 || k.filling != 0 {
				t.Errorf("chunk %d is still in use", k.index)
			}
		}
		if err := errors.Join(f.Close(), f.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		if n := c.Stats().Pages; n != 0 {
			t.Errorf("%d pages are left", n)
		}
	})
	return c, f
}

func read(t testing.TB, f *File, off, n int64) {
	t.Helper()
	b := make([]byte, n)
	cut := n / 3
	if err := f.ReadV([][]byte{b[:cut], nil, b[cut:]}, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, f.base.(*image).data[off:off+n]) {
		t.Fatalf("other bytes in %d at %d", n, off)
	}
}

// resident is what the arena's file really takes, in pages.
func resident(t testing.TB, f *File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(f.stores[0].arena.FD(), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512 / BlockSize
}

func TestReadsInOrderAreFewFills(t *testing.T) {
	const size = 8 << 20
	m := newImage(size + 1000*512) // the last block is not whole
	c, f := opened(t, m, 64<<20)
	for off := int64(0); off < size; off += 128 << 10 {
		read(t, f, off, 128<<10)
	}
	s := c.Stats()
	if s.Fills > 12 || m.most.Load() != mostAhead*BlockSize {
		t.Errorf("%d fills, of %d bytes at most", s.Fills, m.most.Load())
	}
	if s.Hits+s.Misses != size/BlockSize || s.BytesCopied != size || s.Misses > s.Hits || s.BytesFilled < size {
		t.Errorf("%+v", s)
	}
	if m.forgot != int64(s.BytesFilled) {
		t.Errorf("%d bytes filled, the host was told to forget %d", s.BytesFilled, m.forgot)
	}
	for off := int64(0); off+100*512 <= m.Size(); off += 99 * 512 {
		read(t, f, off, 100*512)
	}
	read(t, f, m.Size()-512, 512)
	read(t, f, 0, m.Size())
	if r := resident(t, f); r != int64(c.Stats().Pages) || r != f.blocks {
		t.Errorf("%d pages are there, counted %d", r, c.Stats().Pages)
	}
	b := make([]byte, 1000)
	if n, err := f.ReadAt(b, m.Size()-300); n != 300 || err != io.EOF || !bytes.Equal(b[:n], m.data[len(m.data)-300:]) {
		t.Errorf("read %d at the end, %v", n, err)
	}
	for _, off := range []int64{-512, m.Size(), m.Size() + 512} {
		if err := f.ReadV([][]byte{b[:512]}, off); !errors.Is(err, unix.EINVAL) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
}

func TestScatteredReadsAreShortFills(t *testing.T) {
	m := newImage(56 << 20)
	c, f := opened(t, m, 64<<20)
	for i := range int64(100) {
		read(t, f, i*37%100*(512<<10), BlockSize)
	}
	if s := c.Stats(); s.Fills != 100 || s.Pages != 100*leastFill {
		t.Errorf("%+v", s)
	}
}

// TestFillsJoin has many want the same block while it is read.
func TestFillsJoin(t *testing.T) {
	m := newImage(1 << 20)
	c, f := opened(t, m, 64<<20)
	gate := make(chan struct{})
	m.gate = gate
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { read(t, f, 4*BlockSize, 2*BlockSize) })
	}
	<-m.entered
	// Somebody else's blocks are read at the same time.
	wg.Go(func() { read(t, f, 100*BlockSize, BlockSize) })
	<-m.entered
	close(gate)
	wg.Wait()
	if n := m.reads.Load(); n != 2 {
		t.Errorf("%d reads of the image", n)
	}
	if s := c.Stats(); s.Misses != 3 || s.Hits != 14 {
		t.Errorf("%+v", s)
	}
}

func TestErrorsAreTheAskers(t *testing.T) {
	m := newImage(1 << 20)
	c, f := opened(t, m, 64<<20)
	m.bad = [2]int64{20 * BlockSize, 21 * BlockSize}
	b := make([]byte, 8*BlockSize)
	if err := f.ReadV([][]byte{b}, 16*BlockSize); !errors.Is(err, errBad) {
		t.Errorf("read over a bad sector: %v", err)
	}
	if s := c.Stats(); s.Pages != 0 || resident(t, f) != 0 {
		t.Errorf("%d pages are kept of a read that failed, %d are there", s.Pages, resident(t, f))
	}
	if r, skip := f.Lend(16*BlockSize, 8*BlockSize); r.N != 0 || skip != 8*BlockSize {
		t.Errorf("lent %d pages, to be read %d bytes", r.N, skip)
	}
	read(t, f, 18*BlockSize, 2*BlockSize) // and the bad one is what comes after
	read(t, f, 21*BlockSize, 2*BlockSize)
	m.bad = [2]int64{}
	read(t, f, 16*BlockSize, 8*BlockSize)
	if c.Stats().Pages != uint64(resident(t, f)) {
		t.Errorf("%d pages are there, counted %d", resident(t, f), c.Stats().Pages)
	}
}

func TestEvictionSparesWhatGuestsMap(t *testing.T) {
	const budget = 4 << 20
	m := newImage(12 << 20)
	c, f := opened(t, m, budget)
	r, _ := f.Lend(0, 100*BlockSize)
	if r.N != 100 || r.Page != 0 || !bytes.Equal(r.Arena.Bytes()[:100*BlockSize], m.data[:100*BlockSize]) {
		t.Fatalf("lent %+v", r)
	}
	r.Arena.Hold(r.Page, 50) // as Share does
	f.Return(r, 50)
	lent, _ := f.Lend(1<<20, 64<<10)
	for range 2 {
		for off := int64(0); off < m.Size(); off += 1 << 20 {
			read(t, f, off, 1<<20)
			if n := c.Stats().Pages; n > budget/BlockSize {
				t.Fatalf("%d pages of %d", n, budget/BlockSize)
			}
		}
	}
	if s := c.Stats(); s.Evictions == 0 || s.BytesMapped != 50*BlockSize || int64(s.Pages) != resident(t, f) {
		t.Errorf("%+v, %d pages are there", s, resident(t, f))
	}
	before := m.reads.Load()
	read(t, f, 0, 50*BlockSize)
	read(t, f, 1<<20, 64<<10)
	if m.reads.Load() != before {
		t.Error("pages that are in use were evicted")
	}
	f.Return(lent, 0)
	r.Arena.Release(0, 50)
	// All in use: the budget must give way.
	var all []int64
	for off := int64(0); off < m.Size(); off += 1 << 20 {
		r, _ := f.Lend(off, 1<<20)
		r.Arena.Hold(r.Page, r.N)
		f.Return(r, r.N)
		all = append(all, off)
	}
	if n := c.Stats().Pages; n != 12<<20/BlockSize {
		t.Errorf("%d pages", n)
	}
	for _, off := range all {
		f.stores[0].arena.Release(uint64(off/BlockSize), 1<<20/BlockSize)
	}
	read(t, f, 0, BlockSize)
}

// TestManyReaders reads at random through a cache that is much too small.
func TestManyReaders(t *testing.T) {
	m := newImage(16 << 20)
	c, f := opened(t, m, 4<<20)
	var wg sync.WaitGroup
	for seed := range uint64(6) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 7))
			for range 100 {
				n := 512 * (1 + r.Int64N(600))
				off := 512 * r.Int64N((m.Size()-n)/512)
				if r.IntN(3) > 0 {
					read(t, f, off, n)
					continue
				}
				off, n = off&^(BlockSize-1), max(BlockSize, n&^(BlockSize-1))
				run, _ := f.Lend(off, n)
				if run.N == 0 {
					t.Errorf("nothing lent of %d at %d", n, off)
					return
				}
				got := run.Arena.Bytes()[run.Page*BlockSize:][:run.N*BlockSize]
				if run.Page != uint64(off/BlockSize) || !bytes.Equal(got, m.data[off:][:len(got)]) {
					t.Errorf("other bytes lent at %d", off)
				}
				f.Return(run, 0)
			}
		})
	}
	wg.Wait()
	if s := c.Stats(); int64(s.Pages) != resident(t, f) || s.Evictions == 0 {
		t.Errorf("%+v, %d pages are there", s, resident(t, f))
	}
}

func TestHitsDoNotAllocate(t *testing.T) {
	m := newImage(4 << 20)
	_, f := opened(t, m, 64<<20)
	b := [][]byte{make([]byte, 100<<10), make([]byte, 28<<10)}
	act := func() {
		if err := f.ReadV(b, 1<<20+512); err != nil {
			t.Fatal(err)
		}
		r, _ := f.Lend(1<<20, 128<<10)
		f.Return(r, 0)
	}
	act()
	if n := testing.AllocsPerRun(100, act); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHit(b *testing.B) {
	m := newImage(4 << 20)
	_, f := opened(b, m, 64<<20)
	for b.Loop() {
		r, _ := f.Lend(1<<20, 128<<10)
		f.Return(r, 0)
	}
}

// nodes are as many as this host need not have: both are its first.
func nodes(t *testing.T, size uint64) (*Cache, *File, []byte) {
	t.Helper()
	c, err := New(Config{Size: size, Nodes: []int{0, 0}})
	if err != nil {
		t.Fatal(err)
	}
	m := newImage(4 << 20)
	f, err := c.Open(m, "nodes")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(f.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	return c, f, m.data
}

// TestHostNodes: a block is on the node that asked first; others get it from there, or a
// copy of their own, which is made of it and not read again.
func TestHostNodes(t *testing.T) {
	c, f, m := nodes(t, 64<<20)
	here, there, near := f.From(0, false), f.From(1, false), f.From(1, true)
	lend := func(r *Reader, block, n int64) *store {
		t.Helper()
		run, skip := r.Lend(block*BlockSize, n*BlockSize)
		if run.N != int(n) || skip != 0 {
			t.Fatalf("%d pages, skip %d", run.N, skip)
		}
		defer r.Return(run, 0)
		off := int64(run.Page) * BlockSize
		if off != block*BlockSize || !bytes.Equal(run.Arena.Bytes()[off:off+n*BlockSize], m[off:off+n*BlockSize]) {
			t.Fatalf("block %d: other bytes", block)
		}
		for _, s := range f.stores {
			if s.arena == run.Arena {
				return s
			}
		}
		t.Fatal("pages of nobody")
		return nil
	}
	first, second := f.stores[0], f.stores[1]
	if lend(here, 100, 20) != first || lend(there, 100, 20) != first || lend(there, 300, 8) != second || lend(here, 304, 2) != second {
		t.Error("blocks are not where they were asked for first")
	}
	before := c.Stats()
	if lend(near, 96, 30) != second || lend(near, 100, 20) != second {
		t.Error("no copies are made")
	}
	after := c.Stats()
	if n := after.Copies - before.Copies; n < 20 || n > 40 {
		t.Errorf("%d copies", n)
	}
	if lend(there, 100, 20) != second || lend(here, 100, 20) != first {
		t.Error("what is near is not used")
	}
	near.Move(0, true)
	if lend(near, 100, 20) != first {
		t.Error("who has moved reads where he was")
	}
}

// TestHostNodesModel: whatever is asked for from which node, and however little room there
// is, all read the same.
func TestHostNodesModel(t *testing.T) {
	c, f, m := nodes(t, leastBudget*BlockSize/2)
	c.budget = 300
	var readers []*Reader
	for i := range 4 {
		readers = append(readers, f.From(i%2, i > 1))
	}
	var all sync.WaitGroup
	for k, r := range readers {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(k)))
			buf := make([]byte, 300*BlockSize)
			for range 2000 {
				off := rng.Int64N(int64(len(m)))
				n := min(1+rng.Int64N(int64(len(buf))), int64(len(m))-off)
				if rng.IntN(20) == 0 {
					r.Move(rng.IntN(2), rng.IntN(2) == 0)
				}
				if err := r.ReadV([][]byte{buf[:n/2], buf[n/2 : n]}, off); err != nil || !bytes.Equal(buf[:n], m[off:off+n]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
					return
				}
			}
		})
	}
	all.Wait()
	if s := c.Stats(); s.Copies == 0 || s.Evictions == 0 {
		t.Errorf("%+v", s)
	}
}
