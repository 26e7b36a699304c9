package disk

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func image(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string, readOnly bool) *Raw {
	t.Helper()
	r, err := OpenRaw(path, readOnly, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// split cuts b in pieces of uneven sizes, empty ones among them.
func split(b []byte) [][]byte {
	var v [][]byte
	for i := 0; len(b) > 0; i++ {
		n := min(len(b), i*37%1000)
		v = append(v, b[:n])
		b = b[n:]
	}
	return v
}

func TestOpenRawRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name, want string
		make       func() string
		readOnly   bool
	}{
		{"missing", "no such file", func() string { return filepath.Join(dir, "none") }, false},
		{"directory", "is a directory", func() string { return dir }, false},
		{"directory read-only", "is a directory", func() string { return dir }, true},
		{"character device", "neither a file nor a block device", func() string { return "/dev/null" }, false},
		{"empty", "is empty", func() string { return image(t, 0) }, false},
		{"partial sector", "not a multiple of 512", func() string { return image(t, 1000) }, false},
		{"partial sector read-only", "not a multiple of 512", func() string { return image(t, 1<<20+1) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.make()
			_, err := OpenRaw(path, c.readOnly, false)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want one that names %s and says %q", err, path, c.want)
			}
		})
	}
}

func TestExplainNotWritable(t *testing.T) {
	for _, e := range []error{unix.EACCES, unix.EPERM, unix.EROFS} {
		if s := explain(e, false).Error(); !strings.Contains(s, "not writable") || !strings.Contains(s, "read-only") {
			t.Errorf("%v is told as %q", e, s)
		}
	}
}

func TestRawLock(t *testing.T) {
	for _, c := range []struct {
		name          string
		first, second bool // read-only
		ok            bool
	}{
		{"writer and writer", false, false, false},
		{"writer and reader", false, true, false},
		{"reader and writer", true, false, false},
		{"reader and reader", true, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := image(t, 4096)
			open(t, path, c.first)
			r, err := OpenRaw(path, c.second, false)
			if c.ok != (err == nil) {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				if !errors.Is(err, ErrInUse) {
					t.Errorf("error %v is not ErrInUse", err)
				}
				return
			}
			r.Close()
		})
	}
	path := image(t, 4096)
	r, err := OpenRaw(path, false, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	open(t, path, false)
}

// TestCloseUnlocks: also while the descriptor is still open in a child process, as it is
// from a fork to the program that it runs.
func TestCloseUnlocks(t *testing.T) {
	path := image(t, 1<<20)
	r := open(t, path, false)
	fd, err := unix.Dup(r.file.fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path, false)
}

func TestRawReadWrite(t *testing.T) {
	for _, direct := range []bool{false, true} {
		path := image(t, 1<<20)
		r, err := OpenRaw(path, false, direct)
		if err != nil {
			t.Fatalf("direct %v: %v", direct, err)
		}
		defer r.Close()
		data := pattern(300 << 10)
		if n := len(split(data)); n < 2*maxVectors {
			t.Fatalf("only %d pieces", n)
		}
		for _, v := range []struct {
			off  int64
			bufs [][]byte
		}{{512, split(data)}, {400 << 10, [][]byte{data}}, {1<<20 - 4096, [][]byte{aligned(data[:4096])}}, {0, nil}} {
			want := bytes.Join(v.bufs, nil)
			if err := r.WriteV(v.bufs, v.off); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if err := r.ReadV(split(got), v.off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("direct %v: read at %d differs from what was written", direct, v.off)
			}
			page := aligned(make([]byte, 4096))
			if err := r.ReadV([][]byte{page}, v.off&^4095); err != nil {
				t.Error(err)
			}
		}
		if err := r.Flush(); err != nil {
			t.Error(err)
		}
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(b[512:512+len(data)], data) || len(b) != 1<<20 {
			t.Errorf("direct %v: the file differs from what was written (%v)", direct, err)
		}
	}
}

// aligned copies b to page-aligned memory.
func aligned(b []byte) []byte {
	p := make([]byte, len(b)+4096)
	p = p[-uintptr(unsafe.Pointer(&p[0]))%4096:][:len(b)]
	copy(p, b)
	return p
}

func TestRawBounds(t *testing.T) {
	r := open(t, image(t, 8192), false)
	for _, c := range []struct{ off, n int64 }{
		{8192, 1}, {8191, 2}, {0, 8193}, {-1, 1}, {math.MaxInt64, 1}, {math.MinInt64, 1}, {math.MaxInt64 - 1, 512},
	} {
		b := [][]byte{make([]byte, c.n)}
		for what, err := range map[string]error{
			"read": r.ReadV(b, c.off), "write": r.WriteV(b, c.off),
			"discard": r.Discard(c.off, c.n), "zeroing": r.WriteZeroes(c.off, c.n, true),
		} {
			if !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%s of %d at %d: %v", what, c.n, c.off, err)
			}
		}
	}
	for _, n := range []int64{-1, math.MinInt64, math.MaxInt64} {
		if r.Discard(512, n) == nil || r.WriteZeroes(512, n, false) == nil {
			t.Errorf("a length of %d passed", n)
		}
	}
	if err := r.ReadV([][]byte{make([]byte, 8192)}, 0); err != nil {
		t.Error(err)
	}
}

func TestRawReadOnly(t *testing.T) {
	r := open(t, image(t, 4096), true)
	b := [][]byte{make([]byte, 512)}
	for what, err := range map[string]error{
		"write": r.WriteV(b, 0), "discard": r.Discard(0, 512), "zeroing": r.WriteZeroes(0, 512, false),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := errors.Join(r.Flush(), r.ReadV(b, 0)); err != nil {
		t.Error(err)
	}
}

func TestRawShrinks(t *testing.T) {
	path := image(t, 1<<20)
	r := open(t, path, false)
	if err := os.Truncate(path, 8192+100); err != nil {
		t.Fatal(err)
	}
	b := [][]byte{make([]byte, 4096)}
	for _, off := range []int64{8192, 12288, 1<<20 - 4096} {
		for what, err := range map[string]error{
			"read": r.ReadV(b, off), "write": r.WriteV(b, off),
			"discard": r.Discard(off, 4096), "zeroing": r.WriteZeroes(off, 4096, false),
		} {
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("%s at %d of a disk that shrank: %v, want EIO", what, off, err)
			}
		}
	}
	if err := errors.Join(r.ReadV(b, 4096), r.WriteV(b, 4096), r.Flush()); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 8192+100 {
		t.Errorf("the file grew again: %v, %v", st.Size(), err)
	}
}

func TestRawDiscardAndZero(t *testing.T) {
	const size = 4 << 20
	for _, c := range []struct {
		name string
		act  func(r *Raw, off, n int64) error
	}{
		{"discard", (*Raw).Discard},
		{"zeroes", func(r *Raw, off, n int64) error { return r.WriteZeroes(off, n, false) }},
		{"zeroes, unmapped", func(r *Raw, off, n int64) error { return r.WriteZeroes(off, n, true) }},
		{"zeroes, written", func(r *Raw, off, n int64) error { return r.file.writeZeroes(off, n) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := image(t, size)
			r := open(t, path, false)
			want := pattern(size)
			if err := r.WriteV([][]byte{want}, 0); err != nil {
				t.Fatal(err)
			}
			for _, p := range [][2]int64{{512, 1024}, {64 << 10, 3 << 20}, {size - 512, 512}, {0, 0}} {
				if err := c.act(r, p[0], p[1]); err != nil {
					t.Fatal(err)
				}
				clear(want[p[0] : p[0]+p[1]])
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if c.name != "discard" && !bytes.Equal(got, want) {
				t.Error("the image differs from what was zeroed")
			}
			if len(got) != size {
				t.Errorf("the image is %d bytes now", len(got))
			}
		})
	}
}

func TestRawConcurrent(t *testing.T) {
	const part = 64 << 10
	r := open(t, image(t, 8*part), false)
	var wg sync.WaitGroup
	for w := range int64(8) {
		wg.Go(func() {
			data, got := bytes.Repeat([]byte{byte(w + 1)}, part), make([]byte, part)
			for range 20 {
				if err := errors.Join(r.WriteV(split(data), w*part), r.ReadV(split(got), w*part)); err != nil {
					t.Error(err)
				}
				if !bytes.Equal(got, data) {
					t.Error("requests mixed")
				}
			}
		})
	}
	wg.Wait()
}

func TestRawDoesNotAllocate(t *testing.T) {
	r := open(t, image(t, 1<<20), false)
	b := split(pattern(128 << 10))
	if n := testing.AllocsPerRun(200, func() {
		if r.WriteV(b, 512) != nil || r.ReadV(b, 512) != nil || r.Flush() != nil {
			t.Fatal("failed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
