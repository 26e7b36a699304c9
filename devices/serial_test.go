package devices

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

type counter struct{ n atomic.Int64 }

func (c *counter) Pulse() { c.n.Add(1) }

// sink is a Writer that can be held up and made to fail.
type sink struct {
	mu   sync.Mutex // held by a test: the Writer is stuck
	data bytes.Buffer
	err  error
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	return s.data.Write(p)
}

func newSerial(t testing.TB, w io.Writer) (*Serial, *Output, *counter) {
	t.Helper()
	out, irq := NewOutput(w), new(counter)
	s := NewSerial(out, irq)
	t.Cleanup(func() { s.Close(); out.Close() })
	return s, out, irq
}

func in(s *Serial, r uint64) byte {
	var b [1]byte
	s.Read(r, b[:])
	return b[0]
}

func out(s *Serial, r uint64, v byte) { s.Write(r, []byte{v}) }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: still not so after 10 s", what)
		}
	}
}

// The probes of Linux's 8250 driver, as it does them, must end in "16550A".
func TestSerialIsA16550A(t *testing.T) {
	s, _, _ := newSerial(t, io.Discard)
	out(s, regIER, 0)
	if v := in(s, regIER) & 0xf; v != 0 {
		t.Errorf("IER 0 reads %#x", v)
	}
	out(s, regIER, 0xff)
	if v := in(s, regIER); v != 0xf {
		t.Errorf("IER 0xff reads %#x", v)
	}
	out(s, regIER, 0)
	out(s, regMCR, mcrLoop|mcrOut2|mcrRTS)
	if v := in(s, regMSR) & 0xf0; v != msrDCD|msrCTS {
		t.Errorf("MSR in loopback is %#x, want DCD and CTS", v)
	}
	out(s, regMCR, 0)
	if v := in(s, regMSR) & 0xf0; v != msrDCD|msrCTS|msrDSR {
		t.Errorf("MSR is %#x, want DCD, DSR and CTS", v)
	}
	out(s, regIIR, 0)
	if v := in(s, regIIR) >> 6; v != 0 {
		t.Errorf("IIR says FIFO %d with the FIFO off", v)
	}
	out(s, regIIR, fcrEnable|1<<5)
	if v := in(s, regIIR) >> 5; v != 6 {
		t.Errorf("IIR>>5 = %d, want 6: a 16550A has no 64-byte FIFO", v)
	}
	out(s, regLCR, lcrDLAB)
	if in(s, regIIR) == 0 {
		t.Error("an EFR shows behind DLAB: that is a 16650")
	}
	out(s, regData, 0x34)
	out(s, regIER, 0x12)
	if in(s, regData) != 0x34 || in(s, regIER) != 0x12 {
		t.Error("the divisor does not keep its value")
	}
	out(s, regLCR, 3)
	if in(s, regIER) != 0 {
		t.Error("the divisor leaked into IER")
	}
	for _, v := range []byte{0x5a, 0xa5} {
		if out(s, regScratch, v); in(s, regScratch) != v {
			t.Error("scratch does not keep its value")
		}
	}
}

func TestSerialTransmit(t *testing.T) {
	var w sink
	s, o, irq := newSerial(t, &w)
	out(s, regMCR, mcrOut2)
	out(s, regIER, ierTransmit)
	if irq.n.Load() != 1 {
		t.Fatalf("enabling the transmitter interrupt pulsed %d times, want 1", irq.n.Load())
	}
	if id := in(s, regIIR); id != iirTransmit {
		t.Fatalf("IIR = %#x, want transmitter empty", id)
	}
	if id := in(s, regIIR); id != iirNone {
		t.Fatalf("IIR = %#x after it was read, want none", id)
	}
	for _, c := range []byte("hello") {
		out(s, regData, c)
	}
	if irq.n.Load() != 2 || in(s, regIIR) != iirTransmit {
		t.Errorf("after sending: %d pulses, want 2 and the cause", irq.n.Load())
	}
	// Linux's THRE test: turning the interrupt off and on shows it again.
	out(s, regIER, 0)
	out(s, regIER, ierTransmit)
	if irq.n.Load() != 3 || in(s, regIIR) != iirTransmit {
		t.Error("turning the transmitter interrupt off and on did not raise it again")
	}
	s.Write(0, []byte{'!'})
	s.Write(0, nil)
	o.Close()
	if w.data.String() != "hello!" {
		t.Errorf("sent %q", w.data.String())
	}
}

// A stuck terminal shows as a transmitter that is not empty; when it goes on,
// the interrupt comes.
func TestSerialFlowOut(t *testing.T) {
	var w sink
	s, o, irq := newSerial(t, &w)
	w.mu.Lock()
	out(s, regMCR, mcrOut2)
	out(s, regIER, ierTransmit)
	sent := 0
	for in(s, regLSR)&lsrEmpty != 0 && sent < 1<<20 {
		for range serialFIFO {
			out(s, regData, byte(sent))
			sent++
		}
	}
	if sent < outputSize || sent > 2*outputSize {
		t.Fatalf("%d bytes fitted while the terminal was stuck", sent)
	}
	if id := in(s, regIIR); id != iirNone {
		t.Fatalf("IIR = %#x while stuck, want none", id)
	}
	before := irq.n.Load()
	w.mu.Unlock()
	eventually(t, "transmitter interrupt", func() bool { return irq.n.Load() == before+1 })
	if in(s, regIIR) != iirTransmit || in(s, regLSR)&lsrEmpty != lsrEmpty {
		t.Error("the transmitter is not empty after the terminal went on")
	}
	o.Close()
	if w.data.Len() != sent {
		t.Errorf("%d bytes came out of %d", w.data.Len(), sent)
	}
}

// A polling guest that sends all the same waits, and Close frees it.
func TestSerialCloseFreesVCPU(t *testing.T) {
	var w sink
	s, _, _ := newSerial(t, &w)
	w.mu.Lock()
	defer w.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 4 * outputSize {
			out(s, regData, 'x')
		}
	}()
	eventually(t, "output full", func() bool { return s.out.Room() == 0 })
	select {
	case <-done:
		t.Fatal("a full output did not hold up the sender")
	case <-time.After(20 * time.Millisecond):
	}
	s.Close()
	<-done
}

func TestSerialReceive(t *testing.T) {
	s, _, irq := newSerial(t, io.Discard)
	text := []byte("typed before the driver was up")
	if n, err := s.Input(text); n != len(text) || err != nil {
		t.Fatalf("Input: %d, %v", n, err)
	}
	if in(s, regLSR)&lsrData != 0 {
		t.Fatal("input came before the guest raised RTS")
	}
	out(s, regIIR, fcrEnable|2<<6)
	out(s, regIER, ierReceive)
	out(s, regMCR, mcrOut2|mcrRTS|mcrDTR)
	if irq.n.Load() != 1 {
		t.Errorf("%d pulses, want 1", irq.n.Load())
	}
	if id := in(s, regIIR); id != iirFIFO|iirReceive {
		t.Errorf("IIR = %#x, want data above the trigger level", id)
	}
	var got []byte
	for in(s, regLSR)&lsrData != 0 {
		if id := in(s, regIIR); len(got) == len(text)-1 && id != iirFIFO|iirTimeout {
			t.Errorf("IIR = %#x with one byte left, want character timeout", id)
		}
		got = append(got, in(s, regData))
	}
	if !bytes.Equal(got, text) {
		t.Errorf("got %q", got)
	}
	if id := in(s, regIIR); id != iirFIFO|iirNone {
		t.Errorf("IIR = %#x when empty, want none", id)
	}
	before := irq.n.Load()
	s.Input([]byte("z"))
	if irq.n.Load() != before+1 || in(s, regData) != 'z' {
		t.Error("a byte typed later did not interrupt")
	}
}

func TestSerialInputBackpressure(t *testing.T) {
	s, _, _ := newSerial(t, io.Discard)
	const total = 3 * serialBacklog
	res := make(chan error)
	go func() {
		_, err := s.Input(make([]byte, total))
		res <- err
	}()
	eventually(t, "backlog full", func() bool { return s.in.Room() == 0 })
	out(s, regIIR, fcrEnable)
	out(s, regMCR, mcrRTS)
	n := 0
	eventually(t, "all input read", func() bool {
		for in(s, regLSR)&lsrData != 0 {
			in(s, regData)
			n++
		}
		return n == total
	})
	if err := <-res; err != nil {
		t.Error(err)
	}
	out(s, regMCR, 0)
	go func() {
		_, err := s.Input(make([]byte, total))
		res <- err
	}()
	eventually(t, "backlog full again", func() bool { return s.in.Room() == 0 })
	s.Close()
	if err := <-res; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Input after Close: %v", err)
	}
}

func TestSerialLoopback(t *testing.T) {
	var w sink
	s, o, irq := newSerial(t, &w)
	out(s, regIIR, fcrEnable)
	out(s, regIER, ierReceive|ierLineStatus)
	out(s, regMCR, mcrLoop|mcrOut2)
	for i := range serialFIFO + 1 {
		out(s, regData, byte(i))
	}
	if id := in(s, regIIR) & 0xf; id != iirLineStatus {
		t.Errorf("IIR = %#x, want an overrun", id)
	}
	if in(s, regLSR)&lsrOverrun == 0 || in(s, regLSR)&lsrOverrun != 0 {
		t.Error("the overrun is not shown exactly once")
	}
	for i := range serialFIFO {
		if v := in(s, regData); v != byte(i) {
			t.Fatalf("byte %d = %d", i, v)
		}
	}
	if irq.n.Load() != 0 {
		t.Error("loopback interrupted")
	}
	o.Close()
	if w.data.Len() != 0 {
		t.Errorf("loopback sent %q", w.data.String())
	}
}

func TestOutputSurvivesWriter(t *testing.T) {
	w := sink{err: io.ErrShortWrite}
	o := NewOutput(&w)
	for range 4 {
		if n := o.Put(make([]byte, outputSize), nil); n != outputSize {
			t.Fatalf("took %d bytes", n)
		}
	}
	o.Close()
	o.Close()
	if n := o.Put([]byte("x"), nil); n != 0 {
		t.Errorf("a closed Output took %d bytes", n)
	}
}

func TestSerialDoesNotAllocate(t *testing.T) {
	s, _, _ := newSerial(t, io.Discard)
	out(s, regIIR, fcrEnable)
	out(s, regIER, ierReceive|ierTransmit)
	out(s, regMCR, mcrOut2|mcrRTS)
	b := []byte{'x'}
	if n := testing.AllocsPerRun(1000, func() {
		s.Write(regData, b)
		s.Read(regIIR, b)
		s.Read(regLSR, b)
		s.Input(b)
		s.Read(regData, b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Many vCPUs and a terminal at once: for the race detector.
func TestSerialConcurrent(t *testing.T) {
	s, _, _ := newSerial(t, io.Discard)
	var wg sync.WaitGroup
	for c := range 4 {
		wg.Go(func() {
			var b [8]byte
			for i := range 2000 {
				b[0] = byte(i * c)
				s.Write(uint64(i%serialRegs), b[:1])
				s.Read(uint64(i*c%serialRegs), b[:1])
			}
		})
	}
	go func() {
		for {
			if _, err := s.Input([]byte("input")); err != nil {
				return
			}
		}
	}()
	wg.Wait()
}

// FuzzSerial throws register accesses: byte pairs of (operation, value).
func FuzzSerial(f *testing.F) {
	f.Add([]byte{0x81, 0xff, 0x84, 0x1f, 0x80, 'x', 0x00, 0, 0x02, 0})
	f.Add([]byte{0x82, 0xc1, 0x84, 0x0b, 0x40, 'a', 0x05, 0, 0x00, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		s, _, _ := newSerial(t, io.Discard)
		var b [8]byte
		for ; len(ops) >= 2; ops = ops[2:] {
			n := 1 + int(ops[0]>>3&7)
			for i := range b {
				b[i] = ops[1] + byte(i)
			}
			switch {
			case ops[0]&0x80 != 0:
				s.Write(uint64(ops[0]&7), b[:n])
			case ops[0]&0x40 != 0 && s.in.Room() >= n:
				s.Input(b[:n])
			default:
				s.Read(uint64(ops[0]&7), b[:n])
			}
			if s.rxLen > serialFIFO || s.rxLen < 0 {
				t.Fatalf("receive FIFO holds %d", s.rxLen)
			}
		}
	})
}
