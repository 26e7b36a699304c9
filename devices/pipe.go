package devices

import (
	"io"
	"sync"
	"time"
)

// Pipe is a bounded buffer of bytes between a guest and the outside, with
// backpressure both ways. The bytes of one caller of Put stay in order. All
// methods may be called from many goroutines, and none allocates but a Put that
// finds more waiting than ever before.
type Pipe struct {
	mu     sync.Mutex
	size   int
	buf    []byte // a ring that grows, up to size bytes; nil before the first Put
	head   int    // index of the oldest byte
	n      int    // bytes held
	closed bool

	// Each holds a token when there may be bytes, or room. Who takes a token
	// and leaves something over puts it back for the next waiter.
	data, room chan struct{}
	gone       chan struct{} // closed by Close
}

// NewPipe makes a Pipe that holds up to size bytes. Memory is taken as bytes wait.
func NewPipe(size int) *Pipe {
	return &Pipe{
		size: size,
		data: make(chan struct{}, 1),
		room: make(chan struct{}, 1),
		gone: make(chan struct{}),
	}
}

// signal puts tokens where there is something to wait for. p.mu is held.
func (p *Pipe) signal() {
	if p.n > 0 {
		select {
		case p.data <- struct{}{}:
		default:
		}
	}
	if p.n < p.size {
		select {
		case p.room <- struct{}{}:
		default:
		}
	}
}

// Len is the number of bytes held.
func (p *Pipe) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// Room is the number of bytes that Put would take now. A closed Pipe has all
// its room, so that nobody waits for more.
func (p *Pipe) Room() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.size
	}
	return p.size - p.n
}

// Put waits for room, puts as much of b as fits, and says how much that was: 0
// only for an empty b, when the Pipe is closed, or when stop is closed. A nil
// stop never stops it.
func (p *Pipe) Put(b []byte, stop <-chan struct{}) int {
	for {
		n, closed := p.put(b)
		if n > 0 || closed || len(b) == 0 {
			return n
		}
		select {
		case <-p.room:
		case <-p.gone:
		case <-stop:
			return 0
		}
	}
}

func (p *Pipe) put(b []byte) (n int, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.grow(p.n + len(b))
	}
	for !p.closed && n < len(b) && p.n < p.size {
		size := len(p.buf)
		tail := (p.head + p.n) % size
		m := copy(p.buf[tail:min(size, tail+size-p.n)], b[n:])
		p.n += m
		n += m
	}
	p.signal()
	return n, p.closed
}

// least is what a Pipe begins with, in bytes.
const least = 1 << 10

// grow makes the ring hold n bytes, or all that it may. p.mu is held.
func (p *Pipe) grow(n int) {
	n = min(n, p.size)
	if n <= len(p.buf) {
		return
	}
	size := max(least, len(p.buf))
	for size < n {
		size *= 2
	}
	buf := make([]byte, min(size, p.size))
	first := copy(buf, p.buf[p.head:min(len(p.buf), p.head+p.n)])
	copy(buf[first:], p.buf[:p.n-first])
	p.buf, p.head = buf, 0
}

// Take waits for bytes, moves as many as there are and fit to b, and says how
// many: 0 only for an empty b, when stop is closed, or when the Pipe is closed
// and empty.
func (p *Pipe) Take(b []byte, stop <-chan struct{}) int {
	for len(b) > 0 && p.Wait(stop) {
		if n := p.TakeNow(b); n > 0 {
			return n
		}
	}
	return 0
}

// TakeNow is Take that does not wait.
func (p *Pipe) TakeNow(b []byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for n < len(b) && p.n > 0 {
		m := copy(b[n:], p.buf[p.head:min(len(p.buf), p.head+p.n)])
		p.head = (p.head + m) % len(p.buf)
		p.n -= m
		n += m
	}
	p.signal()
	return n
}

// Wait waits for bytes and says whether there are any: false when stop is
// closed, or when the Pipe is closed and empty.
func (p *Pipe) Wait(stop <-chan struct{}) bool {
	for {
		p.mu.Lock()
		n, closed := p.n, p.closed
		p.signal()
		p.mu.Unlock()
		if n > 0 || closed {
			return n > 0
		}
		select {
		case <-p.data:
		case <-p.gone:
		case <-stop:
			return false
		}
	}
}

// Close ends the Pipe: every waiter returns, Put takes nothing more, Take still
// empties it. Closing twice is harmless.
func (p *Pipe) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		close(p.gone)
	}
}

const (
	outputSize  = 64 << 10
	outputPiece = 4 << 10
	outputDrain = time.Second
)

// Output carries a guest's console bytes to a Writer, untouched, on a goroutine
// of its own, so that a slow terminal does not hold up a vCPU before 64 KiB are
// waiting. Several devices may share one.
type Output struct {
	pipe *Pipe
	w    io.Writer
	done chan struct{} // closed when the last byte has been written

	mu     sync.Mutex
	onRoom []func()
}

// NewOutput starts an Output to w. If w fails, bytes are dropped from then on:
// a guest goes on when its terminal is gone.
func NewOutput(w io.Writer) *Output {
	o := &Output{pipe: NewPipe(outputSize), w: w, done: make(chan struct{})}
	go o.run()
	return o
}

func (o *Output) run() {
	defer close(o.done)
	var err error
	for buf := make([]byte, outputPiece); ; {
		n := o.pipe.Take(buf, nil)
		if n == 0 {
			return
		}
		if err == nil {
			_, err = o.w.Write(buf[:n])
		}
		o.mu.Lock()
		hooks := o.onRoom
		o.mu.Unlock()
		for _, f := range hooks {
			f()
		}
	}
}

// Put hands b on. It waits while 64 KiB are waiting, and returns early, with
// the number of bytes taken, only when stop or the Output is closed.
func (o *Output) Put(b []byte, stop <-chan struct{}) int {
	done := 0
	for done < len(b) {
		n := o.pipe.Put(b[done:], stop)
		if n == 0 {
			break
		}
		done += n
	}
	return done
}

// Room is the number of bytes that Put takes without waiting.
func (o *Output) Room() int { return o.pipe.Room() }

// OnRoom has f called, from the Output's goroutine, each time room was made.
func (o *Output) OnRoom(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.onRoom = append(o.onRoom[:len(o.onRoom):len(o.onRoom)], f)
}

// Close stops taking bytes, frees whoever waits in Put, and waits up to a
// second for what is buffered to reach the Writer. If the Writer is stuck for
// longer, the rest is left to a goroutine that ends when the Writer returns.
// Closing twice is harmless.
func (o *Output) Close() {
	o.pipe.Close()
	select {
	case <-o.done:
	case <-time.After(outputDrain):
	}
}
