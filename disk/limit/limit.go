// Package limit holds a disk to so many requests and bytes a second.
//
// Done: a limit of each, as token buckets that hold what a tenth of a second
// brings, over all requests alike.
//
// Not done: limits apart for reads and writes, bursts of more, shares of a limit
// between disks. Flushes are not counted: they are the price of what was.
package limit

import (
	"sync"
	"time"

	"disco/disk"
	"disco/disk/vector"
	"disco/memory"
)

// burst is for how long what is not used adds up.
const burst = 100 * time.Millisecond

// lender is what it may be besides (blk.Lender).
type lender interface {
	Lend(off, n int64) (r memory.Run, skip int64)
	Return(r memory.Run, mapped int)
}

// Limited is a disk with limits. A request waits until those before it are paid
// for. Its methods may be called as those of the disk below.
type Limited struct {
	disk.Disk
	ops, bytes bucket

	mu     sync.Mutex
	hurry  chan struct{} // closed while nobody is to wait
	timers sync.Pool     // of *time.Timer, stopped
}

// lending is a Limited that lends pages. What of them is mapped counts.
type lending struct {
	*Limited
	lender
}

// New puts limits on a disk: of requests and of bytes a second; 0 for none.
// Without any it is the disk itself.
func New(d disk.Disk, iops, bps uint64) disk.Disk {
	if iops == 0 && bps == 0 {
		return d
	}
	l := &Limited{Disk: d, ops: bucket{rate: iops}, bytes: bucket{rate: bps}, hurry: make(chan struct{})}
	l.timers.New = func() any {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	if by, ok := d.(lender); ok {
		return &lending{l, by}
	}
	return l
}

// Hurry has the requests that wait, and those that come, not wait any more, or
// again. What they take is still owed. A device is stopped so.
func (l *Limited) Hurry(on bool) {
	if below, ok := l.Disk.(interface{ Hurry(on bool) }); ok {
		below.Hurry(on)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.hurry:
		if !on {
			l.hurry = make(chan struct{})
		}
	default:
		if on {
			close(l.hurry)
		}
	}
}

// pay waits until one more request, of n bytes, is within the limits.
func (l *Limited) pay(n int64) {
	now := time.Now()
	wait := max(l.ops.take(now, 1), l.bytes.take(now, n))
	if wait <= 0 {
		return
	}
	l.mu.Lock()
	hurry := l.hurry
	l.mu.Unlock()
	t := l.timers.Get().(*time.Timer)
	defer l.timers.Put(t)
	t.Reset(wait)
	select {
	case <-t.C:
	case <-hurry:
		t.Stop()
	}
}

// bucket is a token bucket, kept as the time at which what was taken is paid for.
type bucket struct {
	rate uint64 // a second; 0 for no limit
	mu   sync.Mutex
	due  time.Time
}

// take takes n and says how long to wait first.
func (b *bucket) take(now time.Time, n int64) time.Duration {
	if b.rate == 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if least := now.Add(-burst); b.due.Before(least) {
		b.due = least
	}
	wait := b.due.Sub(now)
	b.due = b.due.Add(time.Duration(float64(n) / float64(b.rate) * float64(time.Second)))
	return wait
}

// ReadV reads within the limits.
func (l *Limited) ReadV(bufs [][]byte, off int64) error {
	l.pay(vector.Len(bufs))
	return l.Disk.ReadV(bufs, off)
}

// WriteV writes within the limits.
func (l *Limited) WriteV(bufs [][]byte, off int64) error {
	l.pay(vector.Len(bufs))
	return l.Disk.WriteV(bufs, off)
}

// Discard counts as a request of no bytes.
func (l *Limited) Discard(off, n int64) error {
	l.pay(0)
	return l.Disk.Discard(off, n)
}

// WriteZeroes counts as a request of no bytes.
func (l *Limited) WriteZeroes(off, n int64, unmap bool) error {
	l.pay(0)
	return l.Disk.WriteZeroes(off, n, unmap)
}

// Return counts what is mapped. What is not is read, and counts then.
func (l *lending) Return(r memory.Run, mapped int) {
	l.lender.Return(r, mapped)
	if mapped > 0 {
		l.pay(int64(mapped) * pageSize)
	}
}

const pageSize = 4096
