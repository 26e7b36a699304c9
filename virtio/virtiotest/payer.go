package virtiotest

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// payer is the virtio.Payer of all queues: it fails the test when a worker does not
// end what it began, on the same thread, or ends anything else. It does not allocate.
type payer struct {
	t     testing.TB
	mu    sync.Mutex
	began [256]struct {
		mark int64 // or 0
		tid  int
	}
	last int64
}

// Begin implements virtio.Payer.
func (p *payer) Begin() int64 {
	runtime.LockOSThread()
	return p.begin()
}

func (p *payer) begin() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	for i := range p.began {
		if b := &p.began[i]; b.mark == 0 {
			b.mark, b.tid = p.last, unix.Gettid()
			return p.last
		}
	}
	p.t.Error("virtiotest: more workers than there can be began, and did not end")
	return 0
}

func (p *payer) end(mark int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.began {
		if b := &p.began[i]; b.mark == mark && mark != 0 {
			if b.mark = 0; b.tid != unix.Gettid() {
				p.t.Error("virtiotest: a worker ended on another thread than it began")
			}
			return
		}
	}
	p.t.Error("virtiotest: a worker ended what it had not begun")
}

// Lap implements virtio.Payer.
func (p *payer) Lap(mark int64) int64 {
	p.end(mark)
	return p.begin()
}

// End implements virtio.Payer.
func (p *payer) End(mark int64) {
	p.end(mark)
	runtime.UnlockOSThread()
}

// over checks, with all workers gone, that each has ended.
func (p *payer) over() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.began {
		if b := &p.began[i]; b.mark != 0 {
			p.t.Error("virtiotest: a worker is gone and has not ended what it began")
			b.mark = 0
		}
	}
}

// Paid is how often workers have begun to work for the guest.
func (d *Driver) Paid() int64 {
	d.payer.mu.Lock()
	defer d.payer.mu.Unlock()
	return d.payer.last
}
