package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"disco/disk/vector"
)

// memory is a File in memory on a device that loses power: what was written since
// the last Sync is there afterwards or not, sector by sector.
type memory struct {
	bytes  []byte
	stable []byte             // as of the last Sync
	wrote  map[int64][][]byte // the versions of each sector since
	before func(what string)  // called before each change; nil for nothing
	fault  func(what string, off, n int64) error
}

func newMemory(b []byte) *memory {
	return &memory{bytes: slices.Clone(b), stable: slices.Clone(b), wrote: map[int64][][]byte{}}
}

func (m *memory) Size() (int64, error) { return int64(len(m.bytes)), nil }

func (m *memory) call(what string, off, n int64) error {
	if off < 0 || off+n > 1<<40 {
		return fmt.Errorf("%s of %d bytes at %d", what, n, off)
	}
	if m.before != nil && what != "read" {
		m.before(what)
	}
	if m.fault != nil {
		return m.fault(what, off, n)
	}
	return nil
}

func (m *memory) ReadV(bufs [][]byte, off int64) error {
	if err := m.call("read", off, vector.Len(bufs)); err != nil {
		return err
	}
	for _, b := range bufs {
		clear(b)
		if off < int64(len(m.bytes)) {
			copy(b, m.bytes[off:])
		}
		off += int64(len(b))
	}
	return nil
}

func (m *memory) WriteV(bufs [][]byte, off int64) error {
	if err := m.call("write", off, vector.Len(bufs)); err != nil {
		return err
	}
	m.change(off, slices.Concat(bufs...))
	return nil
}

func (m *memory) change(off int64, b []byte) {
	end := off + int64(len(b))
	if end > int64(len(m.bytes)) {
		m.bytes = append(m.bytes, make([]byte, end-int64(len(m.bytes)))...)
	}
	copy(m.bytes[off:], b)
	for s := off / sectorSize; s*sectorSize < end; s++ {
		version := make([]byte, sectorSize)
		copy(version, m.bytes[s*sectorSize:])
		m.wrote[s] = append(m.wrote[s], version)
	}
}

func (m *memory) Zero(off, n int64) error {
	if err := m.call("zero", off, n); err != nil {
		return err
	}
	m.change(off, make([]byte, n))
	return nil
}

func (m *memory) Punch(off, n int64) error {
	if err := m.call("punch", off, n); err != nil {
		return err
	}
	if n = min(n, int64(len(m.bytes))-off); n > 0 {
		m.change(off, make([]byte, n))
	}
	return nil
}

func (m *memory) Sync() error {
	if err := m.call("sync", 0, 0); err != nil {
		return err
	}
	m.stable = append(m.stable, make([]byte, len(m.bytes)-len(m.stable))...)
	for s := range m.wrote {
		copy(m.stable[s*sectorSize:min((s+1)*sectorSize, int64(len(m.stable)))], m.bytes[s*sectorSize:])
	}
	clear(m.wrote)
	return nil
}

// cut is what the device may hold after a power cut.
func (m *memory) cut(rng *rand.Rand) []byte {
	b := slices.Clone(m.stable)
	keep := rng.Float64()
	for _, s := range slices.Sorted(maps.Keys(m.wrote)) {
		if rng.Float64() > keep {
			continue
		}
		versions := m.wrote[s]
		version := versions[rng.IntN(len(versions))]
		off := s * sectorSize
		if end := min(off+sectorSize, int64(len(m.bytes))); end > int64(len(b)) {
			b = append(b, make([]byte, end-int64(len(b)))...)
		}
		copy(b[off:], version)
	}
	return b
}

// pattern is a base whose sectors can be told apart.
type pattern int64

func (p pattern) Size() int64 { return int64(p) }

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > int64(p) {
		return 0, io.ErrUnexpectedEOF
	}
	for n := 0; n < len(b); n += sectorSize {
		stamp(b[n:n+sectorSize], baseStamp+uint64(off)/sectorSize)
		off += sectorSize
	}
	return len(b), nil
}

const baseStamp = 1 << 32

// stamp fills a sector with a number.
func stamp(b []byte, v uint64) {
	for n := 0; n < len(b); n += 8 {
		binary.LittleEndian.PutUint64(b[n:], v)
	}
}

// stamped reads a sector's number; ok is false if it has several.
func stamped(b []byte) (v uint64, ok bool) {
	v = binary.LittleEndian.Uint64(b)
	for n := 8; n < len(b); n += 8 {
		if binary.LittleEndian.Uint64(b[n:]) != v {
			return v, false
		}
	}
	return v, true
}

// model is what a disk may hold: for each sector the number that was flushed, and
// those written since.
type model struct {
	may  [][]uint64
	base pattern
}

func newModel(size int64, base pattern) *model {
	m := &model{may: make([][]uint64, size/sectorSize), base: base}
	for s := range m.may {
		m.may[s] = []uint64{m.below(s)}
	}
	return m
}

func (m *model) below(sector int) uint64 {
	if int64(sector) < int64(m.base)/sectorSize {
		return baseStamp + uint64(sector)
	}
	return 0
}

func (m *model) wrote(off, n int64, v uint64) {
	for s := off / sectorSize; s < (off+n)/sectorSize; s++ {
		m.may[s] = append(m.may[s], v)
	}
}

// flushed has all sectors be what the last write made them, which read tells.
func (m *model) flushed(now []uint64) {
	for s := range m.may {
		m.may[s] = append(m.may[s][:0], now[s])
	}
}

func contents(i *Image) ([]uint64, error) {
	b := make([]byte, i.Size())
	if err := i.ReadV([][]byte{b}, 0); err != nil {
		return nil, err
	}
	v := make([]uint64, i.Size()/sectorSize)
	for s := range v {
		var ok bool
		if v[s], ok = stamped(b[s*sectorSize : (s+1)*sectorSize]); !ok {
			return nil, fmt.Errorf("sector %d is mixed", s)
		}
	}
	return v, nil
}

// options opens what the tests make.
func options(base pattern) Options {
	return Options{Backing: func(Backing) (Base, error) { return base, nil }}
}

// powerRun does random requests to an image, cuts the power at many moments, and
// checks what is left each time. It returns the number of cuts.
func powerRun(t *testing.T, seed uint64, start []byte, size int64, base pattern, cursor int64, steps int) (cuts int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	f := newMemory(start)
	i, err := Open(f, options(base))
	if err != nil {
		t.Fatal(err)
	}
	i.cursor = cursor
	m := newModel(size, base)
	if first, err := contents(i); err != nil {
		t.Fatal(err)
	} else {
		m.flushed(first)
	}
	rate := 0.02 + 0.2*rng.Float64()
	if cursor > 0 {
		rate = 0.5
	}
	f.before = func(what string) {
		if t.Failed() || rng.Float64() > rate {
			return
		}
		cuts++
		after := newMemory(f.cut(rng))
		if err := survives(after, m, base, rng); err != nil {
			t.Errorf("seed %d, cut %d, before a %s: %v", seed, cuts, what, err)
		}
	}
	next := uint64(1)
	for range steps {
		if t.Failed() {
			return cuts
		}
		off := rng.Int64N(size/sectorSize) * sectorSize
		n := min(size-off, (1+rng.Int64N([]int64{1, 8, 64, 512}[rng.IntN(4)]))*sectorSize)
		switch k := rng.IntN(20); {
		case k < 11:
			b := make([]byte, n)
			stamp(b, next)
			m.wrote(off, n, next)
			next++
			err = i.WriteV([][]byte{b[:n/2], b[n/2:]}, off)
		case k < 13:
			m.wrote(off, n, 0)
			err = i.WriteZeroes(off, n, k == 12)
		case k < 15:
			m.wrote(off, n, 0)
			err = i.Discard(off, n)
		case k < 19:
			err = i.Flush()
			if err == nil {
				var now []uint64
				if now, err = contents(i); err == nil {
					m.flushed(now)
				}
			}
		default:
			// A new program opens it.
			if err = i.Close(); err == nil {
				i, err = Open(f, options(base))
			}
			if err == nil {
				var now []uint64
				if now, err = contents(i); err == nil {
					m.flushed(now)
				}
			}
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		// What the disk says now is what was written last.
		if rng.IntN(10) == 0 {
			now, err := contents(i)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			for s, v := range now {
				if !slices.Contains(m.may[s], v) {
					t.Fatalf("seed %d: sector %d is %#x, not of %#x", seed, s, v, m.may[s])
				}
			}
		}
	}
	f.before = nil
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err := Check(f); err != nil || r.Corruptions+r.Leaks != 0 && !leaky(start) {
		t.Errorf("seed %d: at the end: %+v, %v", seed, r, err)
	}
	return cuts
}

// leaky says whether an image has leaks to begin with.
func leaky(b []byte) bool {
	r, err := Check(newMemory(b))
	return err != nil || r.Leaks > 0
}

// survives checks an image after a power cut: no wrong reference, all that was
// flushed is there, and it can go on.
func survives(f *memory, m *model, base pattern, rng *rand.Rand) error {
	r, err := Check(f)
	if err != nil {
		return err
	}
	if r.Corruptions != 0 {
		return fmt.Errorf("%d corruptions: %q", r.Corruptions, r.Problems)
	}
	i, err := Open(f, options(base))
	if err != nil {
		return err
	}
	now, err := contents(i)
	if err != nil {
		return err
	}
	for s, v := range now {
		if !slices.Contains(m.may[s], v) {
			return fmt.Errorf("sector %d is %#x, not of %#x", s, v, m.may[s])
		}
	}
	b := make([]byte, sectorSize)
	s := rng.IntN(len(now))
	stamp(b, 7)
	if err := errors.Join(i.WriteV([][]byte{b}, int64(s)*sectorSize), i.Close()); err != nil {
		return err
	}
	if r, err := Check(f); err != nil || r.Corruptions != 0 {
		return fmt.Errorf("after going on: %+v, %v", r, err)
	}
	return nil
}

// TestPowerCuts: whatever part of what was not yet synced is lost at whatever
// moment, the image is sound and holds what was flushed. DISCO_CUTS asks for more.
func TestPowerCuts(t *testing.T) {
	want := 1000
	if s := os.Getenv("DISCO_CUTS"); s != "" {
		var err error
		if want, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	cuts := 0
	for seed := uint64(0); cuts < want && !t.Failed(); seed++ {
		cluster, refOrder, cursor, steps := int64(512)<<(seed%4), uint(2+seed%5), int64(0), 60
		if seed%10 == 8 {
			// Soon it needs another refcount block, and then a larger table.
			cluster, refOrder, cursor, steps = 512, 6, 64*64-24, 30
		}
		size := 80*cluster + 512*int64(seed%7)
		base, name := pattern(0), ""
		if seed%2 == 1 {
			base, name = pattern(size/3*2&^511), "base"
		}
		f := newMemory(nil)
		if err := Create(f, CreateOptions{Size: size, ClusterSize: cluster, Backing: name, refOrder: refOrder}); err != nil {
			t.Fatal(err)
		}
		cuts += powerRun(t, seed, f.bytes, size, base, cursor, steps)
	}
	t.Logf("%d power cuts", cuts)
}

// TestPowerCutsMending: an image whose refcounts are mended holds what it held, and
// can be mended, whenever the power goes.
func TestPowerCutsMending(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 0))
	for _, name := range []string{"small", "compressed", "narrow", "wide", "snapshots", "sparse"} {
		b := testdata(t, name)
		i, err := Open(newMemory(b), Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		want, err := readAll(i)
		if err != nil {
			t.Fatal(err)
		}
		// All refcounts are lost, and the marks of half of the only references.
		for n := range i.refEntries {
			if e, err := i.pages.entry(kindRefTable, i.refOffset+n*8); err == nil && e != 0 {
				clear(b[e : int64(e)+i.cluster])
			}
		}
		for k := range min(i.l1Entries, 2) {
			b[i.l1Offset+k*8] &^= 1 << 7
		}
		b[79] |= featureDirty
		errCut := errors.New("power cut")
		for done, cut := false, 0; !done; cut++ {
			f := newMemory(b)
			left := cut
			f.fault = func(what string, _, _ int64) error {
				if what == "read" {
					return nil
				}
				if left--; left < 0 {
					return errCut
				}
				return nil
			}
			_, err := Open(f, Options{})
			if done = err == nil; !done && !errors.Is(err, errCut) {
				t.Fatalf("%s, cut at change %d: %v", name, cut, err)
			}
			after := newMemory(f.cut(rng))
			i, err := Open(after, Options{})
			if err != nil {
				t.Fatalf("%s, after a cut at change %d: %v", name, cut, err)
			}
			if got, err := readAll(i); err != nil || !slices.Equal(got, want) {
				t.Fatalf("%s, after a cut at change %d, reads as something else (%v)", name, cut, err)
			}
			if r, err := Check(after); err != nil || r.Corruptions+r.Leaks > 0 {
				t.Fatalf("%s, after a cut at change %d: %+v, %v", name, cut, r, err)
			}
			if after.bytes[79]&featureDirty != 0 {
				t.Fatalf("%s is dirty", name)
			}
		}
	}
}
