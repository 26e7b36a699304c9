package blk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"disco/disk"
	"disco/memory"
	"disco/virtio"
	"disco/virtio/virtiotest"
)

// fake is a Backend in memory.
type fake struct {
	mu       sync.Mutex
	data     []byte
	readOnly bool
	err      error
	flushes  int
	calls    []string
}

func (f *fake) Size() int64    { return int64(len(f.data)) }
func (f *fake) BlockSize() int { return 4096 }
func (f *fake) ReadOnly() bool { return f.readOnly }

func (f *fake) ReadV(bufs [][]byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range bufs {
		off += int64(copy(b, f.data[off:off+int64(len(b))]))
	}
	return f.err
}

func (f *fake) WriteV(bufs [][]byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readOnly {
		panic("a write to a read-only disk")
	}
	for _, b := range bufs {
		off += int64(copy(f.data[off:off+int64(len(b))], b))
	}
	return f.err
}

func (f *fake) Flush() error { f.flushes++; return f.err }

func (f *fake) Discard(off, n int64) error {
	f.calls = append(f.calls, "discard")
	return f.WriteV([][]byte{bytes.Repeat([]byte{0xdd}, int(n))}, off)
}

func (f *fake) WriteZeroes(off, n int64, unmap bool) error {
	f.calls = append(f.calls, map[bool]string{true: "unmap", false: "zero"}[unmap])
	return f.WriteV([][]byte{make([]byte, n)}, off)
}

func header(kind uint32, sector uint64) []byte {
	b := make([]byte, headerSize)
	binary.LittleEndian.PutUint32(b, kind)
	binary.LittleEndian.PutUint64(b[8:], sector)
	return b
}

func segments(s ...[3]uint64) []byte {
	var b []byte
	for _, s := range s {
		b = binary.LittleEndian.AppendUint64(b, s[0])
		b = binary.LittleEndian.AppendUint32(b, uint32(s[1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(s[2]))
	}
	return b
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*31 + i>>9)
	}
	return b
}

func status(u virtiotest.Used) byte {
	last := u.Data[len(u.Data)-1]
	return last[len(last)-1]
}

const sectors = 256

func start(t testing.TB, f *fake, o virtiotest.Options) (*Device, *virtiotest.Driver) {
	t.Helper()
	if f.data == nil {
		f.data = pattern(sectors * SectorSize)
	}
	d := New(Config{Backend: f, ID: "a disk whose name is longer than twenty bytes"})
	return d, virtiotest.Start(t, d, o)
}

func TestRequests(t *testing.T) {
	page := pattern(4096)
	for _, c := range []struct {
		name     string
		readable [][]byte
		writable []int
		readOnly bool
		refuse   uint64
		want     byte
	}{
		{"read", [][]byte{header(typeIn, 8)}, []int{4096, 1}, false, 0, statusOK},
		{"read, status joined to data", [][]byte{header(typeIn, 8)}, []int{4097}, false, 0, statusOK},
		{"read, uneven buffers", [][]byte{header(typeIn, 8)}, []int{100, 412, 513}, false, 0, statusOK},
		{"read the last sector", [][]byte{header(typeIn, sectors-1)}, []int{512, 1}, false, 0, statusOK},
		{"read over the end", [][]byte{header(typeIn, sectors-1)}, []int{1024, 1}, false, 0, statusIOError},
		{"read at the end", [][]byte{header(typeIn, sectors)}, []int{512, 1}, false, 0, statusIOError},
		{"read where sectors wrap", [][]byte{header(typeIn, math.MaxUint64)}, []int{512, 1}, false, 0, statusIOError},
		{"read where bytes wrap", [][]byte{header(typeIn, 1<<55)}, []int{512, 1}, false, 0, statusIOError},
		{"read half a sector", [][]byte{header(typeIn, 0)}, []int{256, 1}, false, 0, statusIOError},
		{"write", [][]byte{header(typeOut, 8), page}, []int{1}, false, 0, statusOK},
		{"write, header split", [][]byte{header(typeOut, 8)[:5], append(header(typeOut, 8)[5:], page[:512]...)}, []int{1}, false, 0, statusOK},
		{"write half a sector", [][]byte{header(typeOut, 8), page[:100]}, []int{1}, false, 0, statusIOError},
		{"write over the end", [][]byte{header(typeOut, sectors-1), page}, []int{1}, false, 0, statusIOError},
		{"write to a read-only disk", [][]byte{header(typeOut, 8), page}, []int{1}, true, 0, statusIOError},
		{"read a read-only disk", [][]byte{header(typeIn, 8)}, []int{4096, 1}, true, 0, statusOK},
		{"flush", [][]byte{header(typeFlush, 0)}, []int{1}, false, 0, statusOK},
		{"name", [][]byte{header(typeGetID, 0)}, []int{20, 1}, false, 0, statusOK},
		{"unknown type", [][]byte{header(99, 0)}, []int{1}, false, 0, statusUnsupported},
		{"discard", [][]byte{header(typeDiscard, 0), segments([3]uint64{8, 8, 0})}, []int{1}, false, 0, statusOK},
		{"discard with flags", [][]byte{header(typeDiscard, 0), segments([3]uint64{8, 8, 1})}, []int{1}, false, 0, statusUnsupported},
		{"discard over the end", [][]byte{header(typeDiscard, 0), segments([3]uint64{sectors, 1, 0})}, []int{1}, false, 0, statusIOError},
		{"discard nothing", [][]byte{header(typeDiscard, 0)}, []int{1}, false, 0, statusIOError},
		{"discard half a segment", [][]byte{header(typeDiscard, 0), make([]byte, 24)}, []int{1}, false, 0, statusIOError},
		{"discard on a read-only disk", [][]byte{header(typeDiscard, 0), segments([3]uint64{8, 8, 0})}, []int{1}, true, 0, statusUnsupported},
		{"discard not negotiated", [][]byte{header(typeDiscard, 0), segments([3]uint64{8, 8, 0})}, []int{1}, false, featureDiscard, statusUnsupported},
		{"zeroes", [][]byte{header(typeWriteZeroes, 0), segments([3]uint64{1, 2, 0}, [3]uint64{4, 1, 1})}, []int{1}, false, 0, statusOK},
		{"zeroes with unknown flags", [][]byte{header(typeWriteZeroes, 0), segments([3]uint64{1, 2, 2})}, []int{1}, false, 0, statusUnsupported},
		{"zeroes, one of two bad", [][]byte{header(typeWriteZeroes, 0), segments([3]uint64{1, 2, 0}, [3]uint64{4, math.MaxUint32, 0})}, []int{1}, false, 0, statusIOError},
		{"zeroes, too many segments", [][]byte{header(typeWriteZeroes, 0), make([]byte, 16*17)}, []int{1}, false, 0, statusIOError},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{readOnly: c.readOnly}
			dev, d := start(t, f, virtiotest.Options{Refuse: c.refuse})
			before := pattern(sectors * SectorSize)
			u := d.Rings[0].Do(c.readable, c.writable)
			d.Stop() // the race detector sees no order in guest memory
			if status(u) != c.want {
				t.Fatalf("status %d, want %d", status(u), c.want)
			}
			room := 0
			for _, n := range c.writable {
				room += n
			}
			if int(u.Written) != room {
				t.Errorf("%d bytes written, want %d: the status is the last", u.Written, room)
			}
			if bad := dev.BadRequests() != 0; bad != (c.want != statusOK) {
				t.Errorf("%d bad requests counted", dev.BadRequests())
			}
			if c.want != statusOK {
				if !bytes.Equal(f.data, before) || len(f.calls) != 0 {
					t.Error("a refused request changed the disk")
				}
				return
			}
			in, out := bytes.Join(c.readable, nil), bytes.Join(u.Data, nil)
			sector := binary.LittleEndian.Uint64(in[8:])
			switch data, kind := in[headerSize:], binary.LittleEndian.Uint32(in); kind {
			case typeIn:
				if data := out[:len(out)-1]; !bytes.Equal(data, f.data[sector*SectorSize:][:len(data)]) {
					t.Error("read something else")
				}
			case typeOut:
				if !bytes.Equal(data, f.data[sector*SectorSize:][:len(data)]) || f.flushes != 0 {
					t.Error("wrote something else, or flushed")
				}
			case typeFlush:
				if f.flushes != 1 {
					t.Errorf("%d flushes", f.flushes)
				}
			case typeGetID:
				if string(out[:20]) != "a disk whose name is" {
					t.Errorf("name %q", out)
				}
			case typeDiscard:
				if !bytes.Equal(f.data[4096:8192], bytes.Repeat([]byte{0xdd}, 4096)) {
					t.Error("discarded something else")
				}
			case typeWriteZeroes:
				clear(before[512:1536])
				clear(before[2048:2560])
				if !bytes.Equal(f.data, before) || !slices.Equal(f.calls, []string{"zero", "unmap"}) {
					t.Errorf("zeroed something else: %v", f.calls)
				}
			}
		})
	}
}

func TestConfig(t *testing.T) {
	read := func(d *Device, off uint64, n int) uint64 {
		p := make([]byte, 8)
		d.ReadConfig(off, p[:n])
		return binary.LittleEndian.Uint64(p)
	}
	d := New(Config{Backend: &fake{data: make([]byte, 1<<20)}, Queues: 100})
	for _, c := range []struct {
		name string
		off  uint64
		n    int
		want uint64
	}{
		{"capacity", 0, 8, 2048}, {"seg_max", 12, 4, 254}, {"blk_size", 20, 4, 4096}, {"num_queues", 34, 2, MaxQueues},
		{"max_discard_sectors", 36, 4, maxDiscardSectors}, {"discard alignment", 44, 4, 8},
		{"may unmap", 56, 1, 1}, {"beyond", 60, 8, 0}, {"far beyond", math.MaxUint64, 8, 0},
	} {
		if v := read(d, c.off, c.n); v != c.want {
			t.Errorf("%s = %d, want %d", c.name, v, c.want)
		}
	}
	if len(d.QueueSizes()) != MaxQueues || d.Features()&featureMultiQueue == 0 {
		t.Error("queues")
	}
	ro := New(Config{Backend: &fake{data: make([]byte, 512), readOnly: true}})
	if f := ro.Features(); f&featureReadOnly == 0 || f&(featureDiscard|featureWriteZeroes|featureMultiQueue) != 0 {
		t.Errorf("features of a read-only disk: %#x", f)
	}
	ro.WriteConfig(0, []byte{1})
	if len(ro.QueueSizes()) != 1 || read(ro, 0, 8) != 1 {
		t.Error("a read-only disk of one sector")
	}
}

// Without a flush the driver cannot make a write stable, so each is.
func TestWriteThrough(t *testing.T) {
	f := &fake{}
	_, d := start(t, f, virtiotest.Options{Refuse: featureFlush})
	d.Rings[0].Do([][]byte{header(typeOut, 0), make([]byte, 512)}, []int{1})
	d.Stop()
	if f.flushes != 1 {
		t.Errorf("%d flushes", f.flushes)
	}
}

func TestHostErrors(t *testing.T) {
	var log bytes.Buffer
	f := &fake{data: make([]byte, 4096), err: errors.New("the host's disk is on fire")}
	dev := New(Config{Backend: f, Log: slog.New(slog.NewTextHandler(&log, nil))})
	d := virtiotest.Start(t, dev, virtiotest.Options{})
	for range 2 {
		for _, r := range [][][]byte{
			{header(typeOut, 0), make([]byte, 512)}, {header(typeFlush, 0)},
			{header(typeDiscard, 0), segments([3]uint64{0, 1, 0})}, {header(typeWriteZeroes, 0), segments([3]uint64{0, 1, 0})},
		} {
			if s := status(d.Rings[0].Do(r, []int{1})); s != statusIOError {
				t.Errorf("status %d", s)
			}
		}
	}
	if s := status(d.Rings[0].Do([][]byte{header(typeIn, 0)}, []int{513})); s != statusIOError {
		t.Errorf("status %d", s)
	}
	d.Stop()
	if dev.HostErrors() != 9 || dev.BadRequests() != 0 || strings.Count(log.String(), "on fire") != 1 {
		t.Errorf("%d errors, %d bad requests, log %q", dev.HostErrors(), dev.BadRequests(), log.String())
	}
}

func TestMisbehaviour(t *testing.T) {
	for _, c := range []struct {
		name     string
		readable [][]byte
		writable []int
		want     error
	}{
		{"no header", nil, []int{513}, errNoHeader},
		{"short header", [][]byte{make([]byte, 15)}, []int{513}, errNoHeader},
		{"no status", [][]byte{header(typeFlush, 0)}, nil, errNoStatus},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{}
			dev, d := start(t, f, virtiotest.Options{})
			d.Rings[0].Add(c.readable, c.writable)
			d.Rings[0].Kick()
			if err := d.WaitFailed(); !errors.Is(err, c.want) {
				t.Errorf("failed with %v, want %v", err, c.want)
			}
			d.Stop()
			d.Restart(dev, virtiotest.Options{})
			if s := status(d.Rings[0].Do([][]byte{header(typeFlush, 0)}, []int{1})); s != statusOK {
				t.Errorf("status %d after a reset", s)
			}
		})
	}
	_, d := start(t, &fake{}, virtiotest.Options{})
	d.Rings[0].AddRaw(virtiotest.Descriptor{Addr: memory.GPA(1) << 50, Len: 16}, virtiotest.Descriptor{Len: 1, Flags: virtiotest.Write})
	d.Rings[0].Kick()
	d.WaitFailed()
}

// All queues at once over a real image, deep and out of order.
func TestManyQueues(t *testing.T) {
	const queues, part, depth = 4, 1 << 20, 16
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, queues*part), 0o600); err != nil {
		t.Fatal(err)
	}
	raw, err := disk.OpenRaw(path, false, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	d := virtiotest.Start(t, New(Config{Backend: raw, Queues: queues}), virtiotest.Options{})
	want := make([]byte, queues*part)
	var all sync.WaitGroup
	for q, ring := range d.Rings {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(q)))
			mine := want[q*part : (q+1)*part]
			for range 30 {
				order := rng.Perm(depth) // disjoint pieces, all under way at once
				for _, i := range order {
					n := SectorSize * (1 + rng.IntN(part/depth/SectorSize))
					b := mine[i*part/depth:][:n]
					for j := range b {
						b[j] = byte(rng.Uint32())
					}
					cut := rng.IntN(n)
					ring.Add([][]byte{header(typeOut, uint64(q*part+i*part/depth)/SectorSize), b[:cut+1], b[cut:][min(1, n-cut):]}[:2+min(1, n-cut-1)], []int{1})
				}
				ring.Kick()
				for range order {
					if s := status(ring.Wait()); s != statusOK {
						t.Errorf("queue %d: status %d", q, s)
						return
					}
				}
			}
			u := ring.Do([][]byte{header(typeIn, uint64(q*part)/SectorSize)}, []int{part, 1})
			if status(u) != statusOK || !bytes.Equal(u.Data[0], mine) {
				t.Errorf("queue %d reads something else", q)
			}
		})
	}
	all.Wait()
	d.Stop()
	if d.Paid() == 0 {
		t.Error("the guest paid for nothing")
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the image differs (%v)", err)
	}
}

func TestSomeQueuesDisabled(t *testing.T) {
	d := virtiotest.Start(t, New(Config{Backend: &fake{data: make([]byte, 512)}, Queues: 2}), virtiotest.Options{Disabled: []int{0}})
	d.Rings[1].Do([][]byte{header(typeFlush, 0)}, []int{1})
}

func TestServeDoesNotAllocate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	raw, err := disk.OpenRaw(path, false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	w := &worker{d: New(Config{Backend: raw}), features: math.MaxUint64}
	data, st, read, write := make([]byte, 4096), make([]byte, 1), header(typeIn, 8), header(typeOut, 8)
	var c virtio.Chain
	readable, writable := make([][]byte, 2), make([][]byte, 2)
	if n := testing.AllocsPerRun(500, func() {
		readable[0], writable[0], writable[1] = read, data, st
		c.Readable, c.Writable = readable[:1], writable
		if n, err := w.serve(&c); n != 4097 || err != nil || st[0] != statusOK {
			t.Fatal("read failed")
		}
		readable[0], readable[1], writable[0] = write, data, st
		c.Readable, c.Writable = readable, writable[:1]
		if n, err := w.serve(&c); n != 1 || err != nil || st[0] != statusOK {
			t.Fatal("write failed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzBlkRequest serves one request of any bytes, cut in buffers anywhere, and
// checks that the answer is one and that a read-only disk stays as it was.
func FuzzBlkRequest(f *testing.F) {
	f.Add(header(typeIn, 8), uint16(16), uint32(513), uint32(0), false)
	f.Add(append(header(typeOut, 8), make([]byte, 512)...), uint16(5), uint32(1), uint32(0), true)
	f.Add(append(header(typeDiscard, 0), segments([3]uint64{8, 8, 0})...), uint16(20), uint32(1), uint32(0), false)
	f.Add(append(header(typeWriteZeroes, 0), segments([3]uint64{8, 8, 1})...), uint16(0), uint32(1), uint32(3), false)
	f.Add(header(typeGetID, 0), uint16(16), uint32(20), uint32(1), false)
	f.Fuzz(func(t *testing.T, in []byte, cut uint16, out, outCut uint32, readOnly bool) {
		b := &fake{data: pattern(sectors * SectorSize), readOnly: readOnly}
		before := slices.Clone(b.data)
		dev := New(Config{Backend: b})
		w := &worker{d: dev, features: dev.features}
		var c virtio.Chain
		split := func(b []byte, at int) (v [][]byte) {
			at = min(at, len(b))
			for _, b := range [][]byte{b[:at], b[at:]} {
				if len(b) > 0 {
					v = append(v, b)
				}
			}
			return v
		}
		room := bytes.Repeat([]byte{0xee}, int(out%(1<<17)))
		c.Readable, c.Writable = split(in, int(cut)), split(room, int(outCut))
		written, err := w.serve(&c)
		if (err != nil) != (len(in) < headerSize || len(room) == 0) {
			t.Fatalf("error %v", err)
		}
		if err == nil && (int(written) != len(room) || room[len(room)-1] > statusUnsupported) {
			t.Fatalf("%d of %d bytes written, status %d", written, len(room), room[len(room)-1])
		}
		if readOnly && !bytes.Equal(b.data, before) {
			t.Fatal("a read-only disk changed")
		}
	})
}
