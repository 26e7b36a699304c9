package devices

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
)

func TestPipeOrder(t *testing.T) {
	p := NewPipe(7)
	want := make([]byte, 10000)
	for i := range want {
		want[i] = byte(i * i)
	}
	go func() {
		for b := want; len(b) > 0; {
			b = b[p.Put(b[:min(len(b), 1+len(b)%11)], nil):]
		}
		p.Close()
	}()
	var got []byte
	for b := make([]byte, 5); ; {
		n := p.Take(b, nil)
		if n == 0 {
			break
		}
		got = append(got, b[:n]...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d, or in another order", len(got), len(want))
	}
}

// No waiter sleeps through its token, however many there are.
func TestPipeManyWaiters(t *testing.T) {
	p := NewPipe(3)
	const each, workers = 2000, 4
	var putters, takers sync.WaitGroup
	var got atomic.Int64
	for range workers {
		putters.Go(func() {
			for n := 0; n < each; {
				n += p.Put(make([]byte, min(5, each-n)), nil)
			}
		})
		takers.Go(func() {
			var b [2]byte
			for {
				n := p.Take(b[:], nil)
				if n == 0 {
					return
				}
				got.Add(int64(n))
			}
		})
	}
	putters.Wait()
	p.Close()
	takers.Wait()
	if got.Load() != each*workers {
		t.Errorf("took %d of %d bytes", got.Load(), each*workers)
	}
}

func TestPipeStopAndClose(t *testing.T) {
	p, stop := NewPipe(2), make(chan struct{})
	close(stop)
	if n := p.Take(make([]byte, 1), stop); n != 0 {
		t.Errorf("a stopped Take took %d", n)
	}
	if n := p.Put([]byte("abc"), stop); n != 2 {
		t.Errorf("Put with room took %d, want 2", n)
	}
	if n := p.Put([]byte("c"), stop); n != 0 {
		t.Errorf("a stopped Put put %d", n)
	}
	p.Close()
	p.Close()
	if n := p.Put([]byte("c"), nil); n != 0 || p.Room() != 2 {
		t.Errorf("a closed Pipe took %d and has room for %d", n, p.Room())
	}
	b := make([]byte, 4)
	if n := p.Take(b, nil); n != 2 || string(b[:n]) != "ab" {
		t.Errorf("a closed Pipe gave %q", b[:n])
	}
	if p.Wait(nil) {
		t.Error("a closed, empty Pipe has bytes")
	}
}

func TestPipeDoesNotAllocate(t *testing.T) {
	p, b := NewPipe(64), make([]byte, 48)
	go func() {
		for b := make([]byte, 7); p.Take(b, nil) > 0; {
		}
	}()
	defer p.Close()
	if n := testing.AllocsPerRun(1000, func() { p.Put(b, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
