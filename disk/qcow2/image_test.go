package qcow2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// locked is a memory for many goroutines.
type locked struct {
	mu sync.Mutex
	memory
}

func newLocked(b []byte) *locked { return &locked{memory: *newMemory(b)} }

func (f *locked) Size() (int64, error) { f.mu.Lock(); defer f.mu.Unlock(); return f.memory.Size() }
func (f *locked) Sync() error          { f.mu.Lock(); defer f.mu.Unlock(); return f.memory.Sync() }

func (f *locked) ReadV(b [][]byte, off int64) error {
	defer runtime.Gosched() // others go on meanwhile
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.memory.ReadV(b, off)
}

func (f *locked) WriteV(b [][]byte, off int64) error {
	runtime.Gosched()
	defer runtime.Gosched()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.memory.WriteV(b, off)
}

func (f *locked) Zero(off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.memory.Zero(off, n)
}

func (f *locked) Punch(off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.memory.Punch(off, n)
}

func created(t testing.TB, o CreateOptions) *locked {
	t.Helper()
	f := newLocked(nil)
	if err := Create(f, o); err != nil {
		t.Fatal(err)
	}
	return f
}

func opened(t testing.TB, f File, base pattern) *Image {
	t.Helper()
	i, err := Open(f, options(base))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func isSound(t testing.TB, f File) {
	t.Helper()
	if r, err := Check(f); err != nil || r.Corruptions+r.Leaks > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestConcurrent: workers that write next to one another, in one cluster too,
// while others flush, discard and read, get what they wrote.
func TestConcurrent(t *testing.T) {
	const workers, sectors, rounds = 8, 64, 60
	for _, cluster := range []int64{512, 4096, 64 << 10} {
		f := created(t, CreateOptions{Size: workers * sectors * sectorSize, ClusterSize: cluster, Backing: "base"})
		i := opened(t, f, workers*sectors*sectorSize/2)
		var wg sync.WaitGroup
		for w := range int64(workers) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(w), 0))
				// Every eighth sector is this worker's own.
				own := make([]uint64, sectors)
				for k := range own {
					if v := k*workers + int(w); v < workers*sectors/2 {
						own[k] = baseStamp + uint64(v)
					}
				}
				b := make([]byte, sectorSize)
				for n := range uint64(rounds) {
					k := rng.Int64N(sectors)
					off := (k*workers + w) * sectorSize
					var err error
					switch rng.IntN(8) {
					case 0:
						err = i.Flush()
					case 1:
						err = i.WriteZeroes(off, sectorSize, rng.IntN(2) == 0)
						own[k] = 0
					default:
						own[k] = uint64(w)<<32 | n<<8 | 1
						stamp(b, own[k])
						err = i.WriteV([][]byte{b}, off)
					}
					if err != nil {
						t.Error(err)
						return
					}
					k = rng.Int64N(sectors)
					if err := i.ReadV([][]byte{b}, (k*workers+w)*sectorSize); err != nil {
						t.Error(err)
					}
					if v, ok := stamped(b); !ok || v != own[k] {
						t.Errorf("worker %d: sector %d is %#x, want %#x", w, k, v, own[k])
						return
					}
				}
			})
		}
		wg.Wait()
		if err := i.Close(); err != nil {
			t.Error(err)
		}
		isSound(t, f)
	}
}

// TestConcurrentDiscards: clusters that are given up are not used again while a
// request that found them still moves data.
func TestConcurrentDiscards(t *testing.T) {
	const cluster, clusters = 4096, 64
	f := created(t, CreateOptions{Size: cluster * clusters, ClusterSize: cluster})
	i := opened(t, f, 0)
	var wg sync.WaitGroup
	for w := range int64(4) {
		wg.Go(func() {
			// Each has clusters of its own, and sees only its own data there.
			rng := rand.New(rand.NewPCG(uint64(w), 0))
			b := make([]byte, cluster)
			for n := range uint64(200) {
				off := (rng.Int64N(clusters/4)*4 + w) * cluster
				var err error
				switch rng.IntN(4) {
				case 0:
					err = i.Discard(off, cluster)
				case 1:
					err = i.Flush()
				case 2:
					stamp(b, n<<8|uint64(w)+1)
					err = i.WriteV([][]byte{b}, off)
				default:
					err = i.ReadV([][]byte{b}, off)
					if v, ok := stamped(b); !ok || v != 0 && v&255 != uint64(w)+1 {
						t.Errorf("worker %d read %#x", w, v)
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	isSound(t, f)
}

// TestFreedLater: a flush does not free a cluster that a request is reading.
func TestFreedLater(t *testing.T) {
	f := created(t, CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	i := opened(t, f, 0)
	b := bytes.Repeat([]byte{1}, 4096)
	if err := errors.Join(i.WriteV([][]byte{b}, 8192), i.Flush()); err != nil {
		t.Fatal(err)
	}
	var flushed atomic.Bool
	var wg sync.WaitGroup
	i.file = &delayed{f, func() {
		wg.Go(func() {
			if err := errors.Join(i.Discard(8192, 4096), i.Flush()); err != nil {
				t.Error(err)
			}
			flushed.Store(true)
		})
		for range 2000 {
			runtime.Gosched()
		}
		if flushed.Load() {
			t.Error("the cluster is free, and is being read")
		}
	}}
	got := make([]byte, 4096)
	if err := i.ReadV([][]byte{got}, 8192); err != nil || !bytes.Equal(got, b) {
		t.Errorf("it reads as something else (%v)", err)
	}
	wg.Wait()
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	isSound(t, f)
}

// delayed has something happen during its first read.
type delayed struct {
	File
	during func()
}

func (f *delayed) ReadV(b [][]byte, off int64) error {
	if during := f.during; during != nil {
		f.during = nil
		during()
	}
	return f.File.ReadV(b, off)
}

// TestFaults: a host that fails at any point leaves an image that is sound, and
// one that can be used on, but after it has lost writes.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		what  string
		errno error
		ends  bool // until the image is opened again
	}{
		{"write", unix.ENOSPC, false}, {"zero", unix.ENOSPC, false}, {"write", unix.EIO, false}, {"read", unix.EIO, false},
		{"punch", unix.EIO, false}, {"sync", unix.EIO, true},
	} {
		t.Run(c.what+" "+c.errno.Error(), func(t *testing.T) {
			for seed := range uint64(12) {
				const size = 200 * 1024
				rng := rand.New(rand.NewPCG(seed, 3))
				f := created(t, CreateOptions{Size: size, ClusterSize: 1024, Backing: "base"})
				i := opened(t, f, size/2)
				m := newModel(size, size/2)
				bad, failed := false, 0
				f.fault = func(what string, _, _ int64) error {
					if bad && what == c.what {
						return c.errno
					}
					return nil
				}
				broken := false
				for n := uint64(1); n < 60; n++ {
					bad = rng.IntN(4) == 0
					off := rng.Int64N(size/sectorSize) * sectorSize
					n64 := min((1+rng.Int64N(20))*sectorSize, size-off)
					b := make([]byte, n64)
					stamp(b, n)
					var err error
					switch rng.IntN(6) {
					case 0:
						m.wrote(off, n64, 0)
						err = i.WriteZeroes(off, n64, true)
					case 1:
						m.wrote(off, n64, 0)
						err = i.Discard(off, n64)
					case 2:
						err = i.Flush()
						broken = broken || err != nil && c.ends
					case 3:
						bad = bad && c.what == "read"
						err = i.ReadV([][]byte{b}, off)
					default:
						m.wrote(off, n64, n)
						err = i.WriteV([][]byte{b}, off)
					}
					if err != nil {
						failed++
						if !errors.Is(err, c.errno) {
							t.Fatalf("seed %d: %v", seed, err)
						}
						if !bad && !broken {
							t.Fatalf("seed %d: it fails without a fault: %v", seed, err)
						}
					}
				}
				bad = false
				now, err := contents(i)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				for s, v := range now {
					if !slices.Contains(m.may[s], v) {
						t.Fatalf("seed %d: sector %d is %#x, not of %#x", seed, s, v, m.may[s])
					}
				}
				if err := i.Close(); (err != nil) != broken && failed > 0 && !broken {
					t.Errorf("seed %d: %v", seed, err)
				}
				if r, err := Check(f); err != nil || r.Corruptions > 0 {
					t.Fatalf("seed %d: %+v, %v", seed, r, err)
				}
				if c.ends {
					continue
				}
				i = opened(t, f, size/2)
				if again, err := contents(i); err != nil || !slices.Equal(again, now) {
					t.Errorf("seed %d: opened again, it is something else (%v)", seed, err)
				}
			}
		})
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, c := range []struct {
		o    CreateOptions
		want string
	}{
		{CreateOptions{}, "a disk of 0 bytes"},
		{CreateOptions{Size: 1000}, "a disk of 1000 bytes"},
		{CreateOptions{Size: -512}, "a disk of -512"},
		{CreateOptions{Size: 512, ClusterSize: 1000}, "clusters of 1000 bytes"},
		{CreateOptions{Size: 512, ClusterSize: 256}, "clusters of 256 bytes"},
		{CreateOptions{Size: 512, ClusterSize: 4 << 20}, "clusters of 4194304 bytes"},
		{CreateOptions{Size: 1 << 50, ClusterSize: 512}, "too large for clusters of 512"},
		{CreateOptions{Size: 512, Backing: strings.Repeat("x", 2000)}, "is too long"},
		{CreateOptions{Size: 512, ClusterSize: 512, Backing: strings.Repeat("x", 600)}, "is too long"},
	} {
		if err := Create(newMemory(nil), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

func TestRequestsOutside(t *testing.T) {
	f := created(t, CreateOptions{Size: 8192, ClusterSize: 512})
	i := opened(t, f, 0)
	for _, c := range []struct{ off, n int64 }{{8192, 512}, {-512, 512}, {0, 8704}, {100, 512}, {0, 100}, {1 << 62, 512}} {
		b := [][]byte{make([]byte, c.n)}
		for what, err := range map[string]error{
			"read": i.ReadV(b, c.off), "write": i.WriteV(b, c.off), "discard": i.Discard(c.off, c.n), "zeroing": i.WriteZeroes(c.off, c.n, true),
		} {
			if !errors.Is(err, unix.EINVAL) {
				t.Errorf("%s of %d at %d: %v", what, c.n, c.off, err)
			}
		}
	}
	o := options(0)
	o.ReadOnly = true
	i, err := Open(f, o)
	if err != nil {
		t.Fatal(err)
	}
	b := [][]byte{make([]byte, 512)}
	for what, err := range map[string]error{"write": i.WriteV(b, 0), "discard": i.Discard(0, 512), "zeroing": i.WriteZeroes(0, 512, false)} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := errors.Join(i.Flush(), i.ReadV(b, 0)); err != nil {
		t.Error(err)
	}
}

// TestWriteThrough: what has been written is stable without a flush.
func TestWriteThrough(t *testing.T) {
	f := created(t, CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	o := options(0)
	o.WriteThrough = true
	i, err := Open(f, o)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{1}, 512)
	if err := i.WriteV([][]byte{b}, 5120); err != nil {
		t.Fatal(err)
	}
	i = opened(t, newMemory(f.stable), 0)
	got := make([]byte, 512)
	if err := i.ReadV([][]byte{got}, 5120); err != nil || !bytes.Equal(got, b) {
		t.Errorf("after a power cut it is gone (%v)", err)
	}
}

// empties is a file whose reads and writes cost nothing.
type empties struct{ File }

func (empties) ReadV([][]byte, int64) error  { return nil }
func (empties) WriteV([][]byte, int64) error { return nil }

func TestDoesNotAllocate(t *testing.T) {
	f := created(t, CreateOptions{Size: 1 << 30, Backing: "base"})
	i := opened(t, f, 1<<20)
	b := [][]byte{make([]byte, 4096), make([]byte, 60<<10)}
	small := [][]byte{make([]byte, 4096)}
	if err := errors.Join(i.WriteV(b, 1<<20), i.WriteV(b, 5<<20+4096), i.Flush()); err != nil {
		t.Fatal(err)
	}
	i.file = empties{f}
	for what, call := range map[string]func() error{
		"reading what is there":      func() error { return i.ReadV(b, 1<<20) },
		"reading across clusters":    func() error { return i.ReadV(b, 5<<20) },
		"reading nothing":            func() error { return i.ReadV(b, 512<<20) },
		"reading the base":           func() error { return i.ReadV(small, 8192) },
		"writing over what is there": func() error { return i.WriteV(b, 1<<20) },
	} {
		if n := testing.AllocsPerRun(100, func() {
			if call() != nil {
				t.Fatal("failed")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
	off := int64(64 << 20)
	if n := testing.AllocsPerRun(500, func() {
		if err := i.WriteV(small, off); err != nil {
			t.Fatal(err)
		}
		off += 64 << 10
	}); n > 0.5 {
		t.Errorf("writing what is new: %v allocations", n)
	}
}
