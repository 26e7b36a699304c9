package turns

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"disco/disk"
	"disco/disk/limit"
	"disco/memory"
	"disco/scheduler/flow"
)

// slow is a disk that does one request at a time, each for a while.
type slow struct {
	disk.Disk
	slot chan struct{} // of one element
	took time.Duration
	done atomic.Int64
	err  error
}

func (s *slow) do() error {
	s.slot <- struct{}{}
	defer func() { <-s.slot }()
	time.Sleep(s.took)
	s.done.Add(1)
	return s.err
}

func (s *slow) ReadV([][]byte, int64) error          { return s.do() }
func (s *slow) WriteV([][]byte, int64) error         { return s.do() }
func (s *slow) Discard(_, _ int64) error             { return s.do() }
func (s *slow) WriteZeroes(_, _ int64, _ bool) error { return s.do() }

// TestTurns: two guests with tickets 3:1 on one slow device get 3:1 of its requests,
// each from one worker, and from several; and all of them when they are alone.
func TestTurns(t *testing.T) {
	b := [][]byte{make([]byte, 4096)}
	calls := map[string]func(disk.Disk) error{
		"read":    func(d disk.Disk) error { return d.ReadV(b, 0) },
		"write":   func(d disk.Disk) error { return d.WriteV(b, 0) },
		"discard": func(d disk.Disk) error { return d.Discard(0, 1<<20) },
		"zeroes":  func(d disk.Disk) error { return d.WriteZeroes(0, 1<<20, true) },
	}
	for name, call := range calls {
		for _, workers := range []int{1, 4} {
			synctest.Test(t, func(t *testing.T) {
				g := flow.New(flow.Config{})
				device := make(chan struct{}, 1)
				var below [2]*slow
				var all sync.WaitGroup
				var stop [2]atomic.Bool
				for i, weight := range []uint64{3, 1} {
					below[i] = &slow{slot: device, took: time.Millisecond, err: errors.New("as below")}
					d := New(below[i], g.NewFlow(weight))
					for range workers {
						all.Go(func() {
							for !stop[i].Load() {
								if err := call(d); err != below[i].err {
									t.Error(err)
								}
							}
						})
					}
				}
				time.Sleep(10 * time.Second)
				x, y := below[0].done.Load(), below[1].done.Load()
				if r := float64(x) / float64(y); r < 2.8 || r > 3.2 || x+y < 9700 {
					t.Errorf("%s, %d workers each: %d and %d requests of 10000, %.2f:1, want 3:1", name, workers, x, y, r)
				}
				stop[0].Store(true)
				time.Sleep(100 * time.Millisecond)
				y = below[1].done.Load()
				time.Sleep(time.Second)
				if alone := below[1].done.Load() - y; alone < 990 {
					t.Errorf("%s, %d workers: alone it has %d requests a second, want 1000", name, workers, alone)
				}
				stop[1].Store(true)
				all.Wait()
			})
		}
	}
}

// openImage opens an image of 1 MiB of zeroes, for as long as the test runs.
func openImage(t *testing.T) disk.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := disk.Open(path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// TestHostTurns: the same with an image, on a device that does so many requests a
// second, in real time.
func TestHostTurns(t *testing.T) {
	img := openImage(t)
	device := limit.New(img, 2000, 0)
	for range 300 { // at once: then it is full
		if err := device.ReadV([][]byte{make([]byte, 512)}, 0); err != nil {
			t.Fatal(err)
		}
	}
	g := flow.New(flow.Config{Depth: 1})
	var had [2]atomic.Int64
	var all sync.WaitGroup
	for i, weight := range []uint64{3, 1} {
		d := New(device, g.NewFlow(weight))
		for range 3 {
			all.Go(func() {
				b := [][]byte{make([]byte, 4096)}
				for had[0].Load()+had[1].Load() < 2000 {
					if err := d.ReadV(b, 8192); err != nil {
						t.Error(err)
						return
					}
					had[i].Add(1)
				}
			})
		}
	}
	all.Wait()
	r := float64(had[0].Load()) / float64(had[1].Load())
	t.Logf("%d and %d requests, %.2f:1", had[0].Load(), had[1].Load(), r)
	if r < 2.7 || r > 3.3 {
		t.Error("want 3:1")
	}
}

// lent is a disk that lends.
type lent struct{ disk.Disk }

func (lent) Lend(_, n int64) (memory.Run, int64) { return memory.Run{N: int(n / 4096)}, 0 }
func (lent) Return(memory.Run, int)              {}

// TestLayers: a disk that lends does so still, one without a flow is itself, and a
// limit below is told of a hurry.
func TestLayers(t *testing.T) {
	img := openImage(t)
	f := flow.New(flow.Config{}).NewFlow(1)
	if New(img, nil) != disk.Disk(img) {
		t.Error("a disk without a flow is wrapped")
	}
	if _, ok := New(img, f).(lender); ok {
		t.Error("a disk that lends nothing lends")
	}
	d := New(lent{img}, f)
	if r, _ := d.(lender).Lend(0, 8192); r.N != 2 {
		t.Error("a disk that lends does not")
	}
	if d.Size() != 1<<20 || d.ReadOnly() || d.BlockSize() != img.BlockSize() || d.Flush() != nil {
		t.Error("the disk is another")
	}
	synctest.Test(t, func(t *testing.T) {
		l := New(limit.New(&slow{slot: make(chan struct{}, 1)}, 1, 0), f)
		hurry := l.(interface{ Hurry(bool) })
		start := time.Now()
		done := make(chan bool)
		go func() {
			for range 10 {
				l.ReadV(nil, 0)
			}
			close(done)
		}()
		time.Sleep(time.Second)
		hurry.Hurry(true)
		<-done
		hurry.Hurry(false)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("in a hurry it took %v", d)
		}
	})
}

// TestTurnsDoNotAllocate: nor when others are there.
func TestTurnsDoNotAllocate(t *testing.T) {
	g := flow.New(flow.Config{Depth: 2})
	d := New(&slow{slot: make(chan struct{}, 1)}, g.NewFlow(1))
	b := [][]byte{make([]byte, 4096)}
	g.NewFlow(1).Enter(1)
	if n := testing.AllocsPerRun(1000, func() { d.ReadV(b, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
