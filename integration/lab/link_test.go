package lab

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// linked returns the two ends of a connection, served until the test ends.
func linked(t *testing.T) (a, b *link) {
	t.Helper()
	ca, cb := net.Pipe()
	a, b = newLink(ca), newLink(cb)
	var served sync.WaitGroup
	for _, l := range []*link{a, b} {
		served.Go(func() { _ = l.serve(func(frame) (bool, error) { return true, nil }) })
	}
	t.Cleanup(func() {
		ca.Close()
		cb.Close()
		served.Wait()
	})
	return a, b
}

// hear returns an end whose stdout is open, when it has heard all of wire, and
// what ended it.
func hear(t *testing.T, wire []byte) (*link, error) {
	t.Helper()
	l := newLink(struct {
		io.Reader
		io.Writer
	}{bytes.NewReader(wire), io.Discard})
	if err := l.in[stdout].open(); err != nil {
		t.Fatal(err)
	}
	return l, l.serve(func(frame) (bool, error) { return true, nil })
}

func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(p)
	return p
}

func TestStreamsArriveWhole(t *testing.T) {
	a, b := linked(t)
	sent := noise(3<<20 + 17)
	var wg sync.WaitGroup
	for s := range streams {
		from, to := a, b
		if s == stdin {
			from, to = b, a
		}
		if err := to.in[s].open(); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := from.out[s].fill(bytes.NewReader(sent)); err != nil {
				t.Errorf("stream %d: %v", s, err)
			}
		})
		wg.Go(func() {
			h := sha256.New()
			if _, err := io.Copy(h, to.in[s]); err != nil {
				t.Errorf("stream %d: %v", s, err)
			}
			if want := sha256.Sum256(sent); !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("stream %d: other bytes came out than went in", s)
			}
		})
	}
	wg.Wait()
}

func TestAStreamThatNobodyReadsHoldsUpNothing(t *testing.T) {
	a, b := linked(t)
	for _, s := range []stream{stdout, stderr} {
		if err := b.in[s].open(); err != nil {
			t.Fatal(err)
		}
	}
	blocked := make(chan error, 1)
	go func() {
		_, err := a.out[stdout].Write(noise(window + 1))
		blocked <- err
	}()
	go func() { _ = a.out[stderr].fill(strings.NewReader("still here")) }()
	got, err := io.ReadAll(b.in[stderr])
	if err != nil || string(got) != "still here" {
		t.Errorf("stderr: %q, %v", got, err)
	}
	select {
	case err := <-blocked:
		t.Errorf("stdout took more than its window: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if _, err := io.ReadFull(b.in[stdout], make([]byte, window+1)); err != nil {
		t.Error(err)
	}
	if err := <-blocked; err != nil {
		t.Error(err)
	}
}

// counting counts what is read of it.
type counting struct {
	mu sync.Mutex
	n  int
}

func (c *counting) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += len(p)
	return len(p), nil
}

func TestNothingIsReadBeforeItIsWanted(t *testing.T) {
	a, b := linked(t)
	src := &counting{}
	done := make(chan error, 1)
	go func() { done <- a.out[stdin].fill(src) }()
	time.Sleep(10 * time.Millisecond)
	src.mu.Lock()
	if src.n != 0 {
		t.Errorf("%d bytes were read without credit", src.n)
	}
	src.mu.Unlock()
	a.out[stdin].fail(io.ErrClosedPipe)
	if err := <-done; err != io.ErrClosedPipe {
		t.Errorf("fill: %v", err)
	}
	_ = b
}

func TestLinkRefuses(t *testing.T) {
	credit := func(n uint32) frame {
		return frame{kindCredit, stdin, []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}}
	}
	for _, c := range []struct {
		name   string
		frames []frame
		want   string
	}{
		{"data that was not granted", []frame{{kindData, stderr, []byte("x")}}, "1 bytes came, 0 were granted"},
		{"more than was granted", []frame{{kindData, stdout, make([]byte, window+1)}}, "were granted"},
		{"data after the end", []frame{{kindEOF, stdout, nil}, {kindData, stdout, []byte("x")}}, "after its end"},
		{"credit over the window", []frame{credit(window), credit(1)}, "over a window"},
		{"huge credit", []frame{credit(1<<32 - 1)}, "over a window"},
		{"short credit", []frame{{kindCredit, stdin, []byte{1}}}, "has 1 bytes, not 4"},
	} {
		var wire []byte
		for _, f := range c.frames {
			wire = appendFrame(wire, f)
		}
		_, err := hear(t, wire)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
