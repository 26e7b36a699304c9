package qcow2

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"disco/disk/vector"
)

// testdata reads an image that qemu-img made (testdata/make).
func testdata(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hostile are images that someone made to do harm: each a change to one of
// testdata, and what to say when it is opened, read or written ("" for any of it).
var hostile = []struct {
	name, image string
	change      func(b []byte) []byte
	open        string // the error of opening it for reading
	read, write string // the error of reading all of it, and of writing to it
}{
	{name: "nothing", image: "small", change: func([]byte) []byte { return nil }, open: "cut off"},
	{name: "cut off in the header", image: "small", change: func(b []byte) []byte { return b[:71] }, open: "cut off"},
	{name: "cut off after the header", image: "small", change: func(b []byte) []byte { return b[:512] }, open: "cut off"},
	{name: "cut off in the data", image: "small", change: func(b []byte) []byte { return b[:len(b)/2] }, read: "the file ends at", write: "the file ends at"},
	{name: "cut off tables", image: "wide", change: func(b []byte) []byte { return b[:4096] }, read: "the L2 table for 0 is at", write: "the L2 table"},
	{name: "no magic", image: "small", change: put32(0, 1), open: "does not begin like"},
	{name: "version 4", image: "small", change: put32(4, 4), open: "version 4"},
	{name: "clusters of a byte", image: "small", change: put32(20, 0), open: "clusters of 1<<0"},
	{name: "clusters of 4 GiB", image: "small", change: put32(20, 32), open: "clusters of 1<<32"},
	{name: "encrypted", image: "small", change: put32(32, 1), open: "encrypted"},
	{name: "a data file", image: "small", change: put64(72, 4), open: "an external data file"},
	{name: "extended L2", image: "extended", change: keep, open: "extended L2 entries"},
	{name: "unknown features", image: "small", change: put64(72, 1<<7|1<<40), open: "feature 7 and feature 40"},
	{name: "unknown compression", image: "zstd", change: func(b []byte) []byte { b[104] = 9; return b }, open: "compression of type 9"},
	{name: "no disk", image: "small", change: put64(24, 0), open: "a disk of 0 bytes"},
	{name: "a disk of part of a sector", image: "small", change: put64(24, 1000), open: "a disk of 1000 bytes"},
	{name: "a vast disk", image: "small", change: put64(24, 1<<63), open: "a disk of"},
	{name: "a disk larger than its L1 table", image: "small", change: put64(24, 1<<40), open: "an L1 table of"},
	{name: "a huge L1 table", image: "small", change: put32(36, 1<<31), open: "L1 table has 17179869184 bytes"},
	{name: "an L1 table past the end", image: "small", change: put64(40, 1<<62), open: "L1 table is at"},
	{name: "an L1 table at odd bytes", image: "small", change: put64(40, 513), open: "L1 table has"},
	{name: "no L1 table", image: "small", change: put64(40, 0), open: "L1 table"},
	{name: "a huge refcount table", image: "small", change: put32(56, 1<<30), open: "refcount table"},
	{name: "a refcount table past the end", image: "small", change: put64(48, 1<<40), open: "refcount table"},
	{name: "no refcount table", image: "small", change: put32(56, 0), open: "refcount table"},
	{name: "wide refcounts", image: "small", change: put32(96, 7), open: "refcounts of 1<<7"},
	{name: "a long header", image: "small", change: put32(100, 1<<20), open: "a header of"},
	{name: "a short header", image: "small", change: put32(100, 8), open: "a header of 8"},
	{name: "many snapshots", image: "snapshots", change: put32(60, 1<<31), open: "snapshots"},
	{name: "snapshots past the end", image: "snapshots", change: put64(64, 1<<40), open: "a snapshot table"},
	{name: "a name past the end", image: "overlay", change: put64(8, 1<<40), open: "a backing file's name"},
	{name: "a long name", image: "overlay", change: put32(16, 1<<20), open: "a backing file's name"},
	{name: "an extension past the end", image: "overlay", change: put32(116, 1<<31), open: "a header extension"},
	{name: "marked as corrupt", image: "small", change: put64(72, 2), write: "marked so"},
	{name: "marked as dirty", image: "small", change: put64(72, 1)},
	{name: "dirty, and L2 past the end", image: "small", change: func(b []byte) []byte { return put64(72, 1)(l2(1<<63 | 1<<40)(b)) }, read: "a cluster is at", write: "qemu-img check -r all"},
	{name: "L1 past the end", image: "small", change: l1(1 << 50), read: "L2 table", write: "L2 table"},
	{name: "L1 at odd bytes", image: "small", change: l1(1<<63 | 513), read: "L1 entry|L2 table", write: "L1 entry|L2 table"},
	{name: "L1 to the L1 table", image: "small", change: func(b []byte) []byte { return l1(binary.BigEndian.Uint64(b[40:]))(b) }, read: "both the L1 table and an L2 table", write: "refcount"},
	{name: "L1 to the header", image: "v2", change: l1(1 << 63), read: "", write: ""},
	{name: "L2 past the end", image: "small", change: l2(1<<63 | 1<<40), read: "a cluster is at", write: "a cluster is at"},
	{name: "L2 at odd bytes", image: "v2", change: l2(1<<63 | 5120), read: "a cluster is at", write: "a cluster is at"},
	{name: "L2 of reserved bits", image: "small", change: l2(1 << 58), read: "an L2 entry", write: "an L2 entry"},
	{name: "L2 of a zero cluster in version 2", image: "v2", change: l2(1), read: "an L2 entry", write: "an L2 entry"},
	{name: "L2 to the L1 table", image: "small", change: func(b []byte) []byte { return l2(1<<63 | binary.BigEndian.Uint64(b[40:]))(b) }, write: "the image's own tables"},
	{name: "L2 to the refcount table", image: "small", change: func(b []byte) []byte { return l2(1<<63 | binary.BigEndian.Uint64(b[48:]))(b) }, write: "the image's own tables"},
	{name: "compressed past the end", image: "compressed", change: l2(1<<62 | 1<<40), read: "a compressed cluster is at", write: "a compressed cluster"},
	{name: "compressed nonsense", image: "compressed", change: l2(1<<62 | 1<<58 | 0x3001), read: "does not unpack", write: "does not unpack"},
	{name: "zstd nonsense", image: "zstd", change: l2(1<<62 | 1<<58 | 0x3001), read: "does not unpack", write: "does not unpack"},
	{name: "compressed, of the header", image: "compressed", change: l2(1 << 62), read: "a compressed cluster is at 0x0", write: "a compressed cluster"},
	{name: "refcounts of nothing", image: "small", change: func(b []byte) []byte {
		table := binary.BigEndian.Uint64(b[48:])
		block := binary.BigEndian.Uint64(b[table:])
		clear(b[block : block+512])
		return b
	}, write: "its refcount is 0|refcount"},
	{name: "no refcount blocks", image: "small", change: func(b []byte) []byte {
		table := binary.BigEndian.Uint64(b[48:])
		clear(b[table : table+512])
		return b
	}, write: "has no refcount"},
	{name: "a refcount block past the end", image: "small", change: func(b []byte) []byte {
		return put64(int(binary.BigEndian.Uint64(b[48:])), 1<<40)(b)
	}, write: "the refcount block for"},
	{name: "a refcount block in the L1 table", image: "small", change: func(b []byte) []byte {
		return put64(int(binary.BigEndian.Uint64(b[48:])), binary.BigEndian.Uint64(b[40:]))(b)
	}, write: "both the L1 table and a refcount block|refcount"},
}

func keep(b []byte) []byte { return b }

func put32(at int, v uint32) func([]byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
}

func put64(at int, v uint64) func([]byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return b }
}

// l1 and l2 change the first entry of the tables.
func l1(v uint64) func([]byte) []byte {
	return func(b []byte) []byte { return put64(int(binary.BigEndian.Uint64(b[40:])), v)(b) }
}

func l2(v uint64) func([]byte) []byte {
	return func(b []byte) []byte {
		table := binary.BigEndian.Uint64(b[binary.BigEndian.Uint64(b[40:]):]) & entryOffset
		return put64(int(table), v)(b)
	}
}

func TestHarmfulImages(t *testing.T) {
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			b := c.change(testdata(t, c.image))
			says := func(what, want string, err error) {
				t.Helper()
				if want == "" {
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
					return
				}
				for w := range strings.SplitSeq(want, "|") {
					if err != nil && strings.Contains(err.Error(), w) {
						return
					}
				}
				t.Errorf("%s: error %v, want one that says %q", what, err, want)
			}
			o := options(20480)
			o.ReadOnly = true
			i, err := Open(newMemory(b), o)
			says("opening it", c.open, err)
			if err != nil {
				return
			}
			_, err = readAll(i)
			says("reading it", c.read, err)
			o.ReadOnly = false
			i, err = Open(newMemory(b), o)
			if err == nil {
				// In place, and to what is new.
				err = errors.Join(i.WriteV([][]byte{make([]byte, 1024)}, 0), i.WriteZeroes(0, 20480, true),
					i.WriteV([][]byte{make([]byte, 20480)}, 0), i.Flush(), i.Close())
			}
			if c.name != "L1 to the header" {
				says("writing to it", c.write, err)
			}
		})
	}
}

// readAll reads the first MiB of a disk and its last sector.
func readAll(i *Image) ([]byte, error) {
	b := make([]byte, min(i.Size(), 1<<20))
	if err := i.ReadV([][]byte{b}, 0); err != nil {
		return nil, err
	}
	return b, i.ReadV([][]byte{make([]byte, sectorSize)}, i.Size()-sectorSize)
}

func TestReadsWhatQEMUMade(t *testing.T) {
	want := testdata(t, "small")
	i, err := Open(newMemory(want), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want, err = readAll(i); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"v2", "compressed", "zstd", "narrow", "wide"} {
		f := newMemory(testdata(t, name))
		i, err := Open(f, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readAll(i); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s reads as something else than the others (%v)", name, err)
		}
		if r, err := Check(f); err != nil || r.Corruptions+r.Leaks > 0 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// bounded is a file that fails the test when anything outside of it is touched
// that should not be.
type bounded struct {
	*memory
	t     testing.TB
	most  int64 // what it may grow to
	reads int64 // bytes
}

func (f *bounded) ReadV(bufs [][]byte, off int64) error {
	if off < 0 {
		f.t.Errorf("a read at %d", off)
	}
	f.reads += vector.Len(bufs)
	return f.memory.ReadV(bufs, off)
}

func (f *bounded) WriteV(bufs [][]byte, off int64) error {
	if off < 0 {
		f.t.Errorf("a write at %d", off)
	}
	if off+vector.Len(bufs) > f.most {
		return errors.ErrUnsupported // as a full disk
	}
	return f.memory.WriteV(bufs, off)
}

func (f *bounded) Zero(off, n int64) error {
	if off < 0 || n < 0 {
		f.t.Errorf("zeroing %d at %d", n, off)
	}
	if off+n > f.most {
		return errors.ErrUnsupported
	}
	return f.memory.Zero(off, n)
}

// FuzzOpen: whatever a file says, opening it, reading all of it and writing to a
// copy neither panics nor takes memory without bound, and what can be written can
// be read.
func FuzzOpen(f *testing.F) {
	for _, name := range []string{"v2", "small", "compressed", "zstd", "narrow", "wide", "snapshots", "sparse", "overlay", "bitmap", "extended"} {
		f.Add(testdata(f, name), uint32(0))
	}
	for k, c := range hostile {
		f.Add(c.change(testdata(f, c.image)), uint32(k))
	}
	f.Fuzz(func(t *testing.T, b []byte, place uint32) {
		if len(b) > 4<<20 {
			return
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		file := &bounded{memory: newMemory(b), t: t, most: 16 << 20}
		o := options(1 << 20)
		o.ReadOnly = true
		i, err := Open(file, o)
		if err != nil {
			return
		}
		_, _ = readAll(i)
		size := i.Size()
		off := int64(place) % (size / sectorSize) * sectorSize
		n := min(3*sectorSize, size-off)
		_ = i.ReadV([][]byte{make([]byte, n)}, off)
		for at := int64(0); at < min(size, 1<<20); {
			_, run, err := i.Lookup(at, size-at)
			if err != nil {
				break
			}
			if run <= 0 || run > size-at {
				t.Fatalf("a run of %d at %d of %d", run, at, size)
			}
			at += run
		}
		if len(i.pages.at) > maxPages {
			t.Errorf("%d pages in memory", len(i.pages.at))
		}
		_, _ = Check(file)

		o.ReadOnly = false
		i, err = Open(file, o)
		if err != nil {
			return
		}
		want := bytes.Repeat([]byte{5}, int(n))
		if i.WriteV([][]byte{want[:sectorSize], want[sectorSize:]}, off) == nil {
			got := make([]byte, n)
			if err := i.ReadV([][]byte{got}, off); err == nil && !bytes.Equal(got, want) && sound(b) {
				t.Error("what was written does not read so")
			}
		}
		_ = i.WriteZeroes(0, min(size, 1<<20), place%2 == 0)
		_ = i.Discard(off, n)
		_ = i.WriteV([][]byte{want}, off)
		_ = i.Close()
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 1<<30 {
			t.Errorf("it took %d bytes of memory", used)
		}
	})
}

// sound says whether an image has no wrong references to begin with.
func sound(b []byte) bool {
	r, err := Check(newMemory(b))
	return err == nil && r.Corruptions == 0
}
