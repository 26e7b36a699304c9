package limit

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"disco/disk"
	"disco/memory"
)

// nothing is a disk of zeroes.
type nothing struct{ disk.Disk }

func (nothing) ReadV([][]byte, int64) error          { return nil }
func (nothing) WriteV([][]byte, int64) error         { return nil }
func (nothing) Discard(_, _ int64) error             { return nil }
func (nothing) WriteZeroes(_, _ int64, _ bool) error { return nil }
func (nothing) Lend(_, n int64) (memory.Run, int64)  { return memory.Run{N: int(n / pageSize)}, 0 }
func (nothing) Return(memory.Run, int)               {}

// took is how long n calls take; time is the bubble's own.
func took(n int, call func()) time.Duration {
	start := time.Now()
	for range n {
		call()
	}
	return time.Since(start)
}

func TestLimits(t *testing.T) {
	b := [][]byte{make([]byte, 4096), make([]byte, 4096)}
	for _, c := range []struct {
		name      string
		iops, bps uint64
		call      func(disk.Disk)
		n         int
		want      time.Duration
	}{
		{"requests", 100, 0, func(d disk.Disk) { d.ReadV(b, 0) }, 1000, 10 * time.Second},
		{"bytes read", 0, 1 << 20, func(d disk.Disk) { d.ReadV(b, 0) }, 1280, 10 * time.Second},
		{"bytes written", 1 << 20, 1 << 20, func(d disk.Disk) { d.WriteV(b, 0) }, 1280, 10 * time.Second},
		{"discards", 10, 1, func(d disk.Disk) { d.Discard(0, 1<<40) }, 100, 10 * time.Second},
		{"zeroes", 10, 1, func(d disk.Disk) { d.WriteZeroes(0, 1<<40, true) }, 100, 10 * time.Second},
		{"mapped", 0, 1 << 20, func(d disk.Disk) {
			r, _ := d.(lender).Lend(0, 8192)
			d.(lender).Return(r, r.N)
		}, 1280, 10 * time.Second},
		{"lent, and read", 0, 1 << 20, func(d disk.Disk) {
			r, _ := d.(lender).Lend(0, 8192)
			d.(lender).Return(r, 0)
			d.ReadV(b, 0)
		}, 1280, 10 * time.Second},
		{"tiny", 0, 3, func(d disk.Disk) { d.ReadV([][]byte{b[0][:30]}, 0) }, 2, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := New(nothing{}, c.iops, c.bps)
				if got := took(c.n, func() { c.call(d) }); got > c.want || got < c.want-2*burst {
					t.Errorf("%d calls took %v, want about %v", c.n, got, c.want)
				}
				time.Sleep(time.Hour)
				// What was not used for long is there for a moment only.
				if got := took(c.n, func() { c.call(d) }); got > c.want || got < c.want-2*burst {
					t.Errorf("later, %d calls took %v, want about %v", c.n, got, c.want)
				}
			})
		})
	}
}

// TestHurry: who stops a device does not wait for what its limits hold up, and
// that is owed still.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(nothing{}, 1, 0).(*lending)
		d.Discard(0, 512)
		d.Discard(0, 512)
		done := make(chan time.Duration)
		go func() { done <- took(20, func() { d.Discard(0, 512) }) }()
		time.Sleep(2500 * time.Millisecond)
		d.Hurry(true)
		d.Hurry(true)
		if got := <-done; got != 2500*time.Millisecond {
			t.Errorf("it took %v", got)
		}
		d.Hurry(false)
		if got := took(1, func() { d.Discard(0, 512) }); got < 15*time.Second {
			t.Errorf("the next one took %v", got)
		}
	})
}

func TestNoLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<20)); err != nil {
		t.Fatal(err)
	}
	img, err := disk.Open(path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if New(img, 0, 0) != img {
		t.Error("an image without limits is wrapped")
	}
	if _, ok := New(img, 1, 1).(lender); ok {
		t.Error("a disk that does not lend seems to")
	}
	d := New(img, 1<<40, 1<<60)
	b := [][]byte{make([]byte, 4096)}
	if n := testing.AllocsPerRun(100, func() {
		if d.ReadV(b, 0) != nil {
			t.Fatal("failed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
