package console

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"disco/devices"
	"disco/memory"
	"disco/virtio"
	"disco/virtio/virtiotest"
)

// terminal is a Writer that can be held up.
type terminal struct {
	mu   sync.Mutex // held by a test: the terminal is stuck
	data bytes.Buffer
}

func (w *terminal) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.data.Write(p)
}

func newConsole(t testing.TB, w io.Writer) (*Device, *devices.Output) {
	t.Helper()
	out := devices.NewOutput(w)
	d := New(out)
	t.Cleanup(func() { d.Close(); out.Close() })
	return d, out
}

func TestTransmit(t *testing.T) {
	var w terminal
	dev, out := newConsole(t, &w)
	d := virtiotest.Start(t, dev, virtiotest.Options{})
	var want []byte
	for i := range 200 {
		text := bytes.Repeat([]byte{byte(i), 0x1b, '[', '2', 'J'}, 1+i)
		d.Rings[1].Do([][]byte{text[:1], text[1:]}, nil)
		want = append(want, text...)
	}
	d.Rings[1].Do(nil, []int{16})
	d.Stop()
	out.Close()
	if !bytes.Equal(w.data.Bytes(), want) {
		t.Errorf("%d bytes came out, want %d, or others", w.data.Len(), len(want))
	}
}

// Typed before the driver is up, across a reset, and after, in uneven buffers.
func TestReceive(t *testing.T) {
	dev, _ := newConsole(t, io.Discard)
	want := bytes.Repeat([]byte("0123456789"), 300)
	if n, err := dev.Input(want[:1000]); n != 1000 || err != nil {
		t.Fatal(n, err)
	}
	d := virtiotest.Start(t, dev, virtiotest.Options{})
	var got []byte
	take := func(sizes ...int) {
		t.Helper()
		u := d.Rings[0].Do(nil, sizes)
		got = append(got, bytes.Join(u.Data, nil)[:u.Written]...)
	}
	for range 10 {
		take(3, 60, 1)
	}
	if d.Paid() == 0 {
		t.Error("the guest paid for nothing")
	}
	d.Stop()
	d.Restart(dev, virtiotest.Options{Refuse: virtio.FeatureEventIndex})
	dev.Input(want[1000:])
	for len(got) < len(want) {
		take(500)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d, or others", len(got), len(want))
	}
	// The buffer waits for input now, and input interrupts.
	before := d.Rings[0].Interrupts()
	d.Rings[0].Add(nil, []int{64})
	d.Rings[0].Kick()
	dev.Input([]byte("x"))
	if u := d.Rings[0].Wait(); u.Written != 1 || u.Data[0][0] != 'x' || d.Rings[0].Interrupts() == before {
		t.Errorf("got %d bytes, %d interrupts", u.Written, d.Rings[0].Interrupts()-before)
	}
}

func TestInputBackpressure(t *testing.T) {
	dev, _ := newConsole(t, io.Discard)
	res := make(chan error, 1)
	go func() {
		_, err := dev.Input(make([]byte, 2*backlog))
		res <- err
	}()
	for dev.in.Room() > 0 {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-res:
		t.Fatalf("Input did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	d := virtiotest.Start(t, dev, virtiotest.Options{})
	for n := 0; n < 2*backlog; {
		n += int(d.Rings[0].Do(nil, []int{1000}).Written)
	}
	if err := <-res; err != nil {
		t.Error(err)
	}
	go func() {
		_, err := dev.Input(make([]byte, 2*backlog))
		res <- err
	}()
	for dev.in.Room() > 0 {
		time.Sleep(time.Millisecond)
	}
	dev.Close()
	if err := <-res; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Input after Close: %v", err)
	}
}

// A reset must end a transmission that a stuck terminal holds up.
func TestStopWhileStuck(t *testing.T) {
	var w terminal
	dev, out := newConsole(t, &w)
	d := virtiotest.Start(t, dev, virtiotest.Options{})
	w.mu.Lock()
	defer w.mu.Unlock()
	for range 8 {
		d.Rings[1].Add([][]byte{make([]byte, 32<<10)}, nil)
	}
	d.Rings[1].Kick()
	for out.Room() > 0 {
		time.Sleep(time.Millisecond)
	}
	dev.WriteConfig(configEmergency, []byte{'x', 0, 0, 0}) // dropped, and does not wait
	d.Stop()
}

func TestConfig(t *testing.T) {
	var w terminal
	dev, out := newConsole(t, &w)
	changes := 0
	dev.Resize(80, 25)
	dev.OnResize(func() { changes++ })
	dev.Resize(80, 25)
	dev.Resize(132, 43)
	if changes != 1 {
		t.Errorf("%d changes told, want 1", changes)
	}
	for _, c := range []struct {
		name string
		off  uint64
		n    int
		want uint64
	}{
		{"columns", configColumns, 2, 132}, {"rows", configRows, 2, 43}, {"both", 0, 4, 43<<16 | 132},
		{"ports", configPorts, 4, 1}, {"beyond", configSize, 8, 0}, {"far beyond", math.MaxUint64, 1, 0},
	} {
		p := make([]byte, 8)
		if dev.ReadConfig(c.off, p[:c.n]); binary.LittleEndian.Uint64(p) != c.want {
			t.Errorf("%s: %x", c.name, p)
		}
	}
	for _, c := range "dying" {
		dev.WriteConfig(configEmergency, []byte{byte(c), 0, 0, 0})
	}
	dev.WriteConfig(configColumns, []byte{1})
	out.Close()
	if w.data.String() != "dying" {
		t.Errorf("emergency writes gave %q", w.data.String())
	}
}

// TestSizeBeforeTheDriver: a driver that reads the size at changes only has one
// to read it at.
func TestSizeBeforeTheDriver(t *testing.T) {
	for _, size := range []uint16{0, 40} {
		dev := New(devices.NewOutput(io.Discard))
		defer dev.Close()
		changes := 0
		dev.OnResize(func() { changes++ })
		dev.Resize(size, size)
		changes = 0
		virtiotest.Start(t, dev, virtiotest.Options{})
		if want := min(int(size), 1); changes != want {
			t.Errorf("a driver that starts at size %d is told of %d changes, want %d", size, changes, want)
		}
	}
}

func TestMisbehaviour(t *testing.T) {
	for q := range 2 {
		dev, _ := newConsole(t, io.Discard)
		dev.Input([]byte("input"))
		d := virtiotest.Start(t, dev, virtiotest.Options{})
		d.Rings[q].AddRaw(virtiotest.Descriptor{Addr: memory.GPA(1) << 45, Len: 100, Flags: uint16(virtiotest.Write * (1 - q))})
		d.Rings[q].Kick()
		d.WaitFailed()
		d.Stop()
		d.Restart(dev, virtiotest.Options{})
		if u := d.Rings[0].Do(nil, []int{100}); string(u.Data[0][:u.Written]) != "input" {
			t.Errorf("after a reset: %q", u.Data[0][:u.Written])
		}
	}
}

func TestQueuesDisabled(t *testing.T) {
	for q := range 2 {
		dev, _ := newConsole(t, io.Discard)
		virtiotest.Start(t, dev, virtiotest.Options{Disabled: []int{q}}).Stop()
	}
}

func TestDoesNotAllocate(t *testing.T) {
	dev, _ := newConsole(t, io.Discard)
	d := virtiotest.Start(t, dev, virtiotest.Options{})
	b := bytes.Repeat([]byte("x"), 64)
	// The test's own side of the rings allocates, so measure without a ring.
	if n := testing.AllocsPerRun(500, func() {
		dev.out.Put(b, nil)
		dev.in.Put(b, nil)
		dev.in.Wait(nil)
		dev.in.TakeNow(b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	d.Stop()
}

// FuzzConsole drives both queues and config space with chains of any shape.
func FuzzConsole(f *testing.F) {
	f.Add(uint64(1), []byte("hello"))
	f.Add(uint64(99), bytes.Repeat([]byte{0, 0x80, 0xff}, 30))
	f.Fuzz(func(t *testing.T, seed uint64, ops []byte) {
		var w terminal
		dev, out := newConsole(t, &w)
		d := virtiotest.Start(t, dev, virtiotest.Options{Memory: 4 << 20, Size: 8})
		rng := rand.New(rand.NewPCG(seed, 1))
		var want []byte
		typed, seen := 0, 0
		for _, op := range ops[:min(len(ops), 200)] {
			n := int(op >> 3)
			switch op & 7 {
			case 0:
				b := make([]byte, 1+n)
				for i := range b {
					b[i] = byte(rng.Uint32())
				}
				want = append(want, b...)
				d.Rings[1].Do([][]byte{b}, []int{1 + n}[:op>>7])
			case 1:
				if dev.in.Room() > n {
					dev.Input(make([]byte, n))
					typed += n
				}
			case 2:
				d.Rings[0].Add([][]byte{{1}}[:op>>7], []int{1 + n})
				d.Rings[0].Kick()
			case 3:
				if u, ok := d.Rings[0].Take(); ok {
					seen += int(u.Written)
				}
			case 4:
				dev.ReadConfig(rng.Uint64()>>(n*2), make([]byte, 1+n&7))
			case 5:
				dev.WriteConfig(uint64(n)&7, make([]byte, 1+n&7))
			case 6:
				dev.Resize(uint16(n), uint16(n))
			case 7:
				d.Stop()
				d.Restart(dev, virtiotest.Options{Memory: 4 << 20, Size: 8})
			}
			if d.Rings[0].Free() == 0 || d.Rings[0].Free() == 1 || d.Failed() != nil {
				break
			}
		}
		d.Stop()
		out.Close()
		if !bytes.Equal(w.data.Bytes(), want) || seen > typed {
			t.Fatalf("sent %d bytes, %d came out; typed %d, the guest got %d", len(want), w.data.Len(), typed, seen)
		}
	})
}
