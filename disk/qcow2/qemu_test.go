package qcow2_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"disco/disk"
	"disco/disk/qcow2"
)

// qemu runs qemu-img or qemu-io, which scripts/debian fetched, in dir.
func qemu(t testing.TB, dir, program string, args ...string) string {
	t.Helper()
	out, err := tryQEMU(t, dir, program, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return out
}

func tryQEMU(t testing.TB, dir, program string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(filepath.Join(filepath.Dir(qemuImg(t)), program), args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// qemuImg finds qemu-img, beside which is qemu-io.
func qemuImg(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("DISCO_QEMU_IMG")
	if bin == "" {
		var err error
		if bin, err = filepath.Abs("../../build/images/qemu-img"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("there is no qemu-img (%v); run make images", err)
	}
	return bin
}

func open(t testing.TB, path string, o disk.Options) *disk.Layer {
	t.Helper()
	img, err := disk.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	return img.(*disk.Layer)
}

func closes(t testing.TB, img disk.Image) {
	t.Helper()
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
}

// raw makes a raw image of random pages, some of them zeroes and some alike.
func raw(t testing.TB, path string, size int64, seed uint64) []byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, size)
	for off := int64(0); off < size; off += 4096 {
		page := b[off:min(off+4096, size)]
		switch rng.IntN(4) {
		case 0:
		case 1:
			copy(page, bytes.Repeat([]byte{byte(rng.IntN(256))}, len(page)))
		default:
			for i := range page {
				page[i] = byte(rng.IntN(1 << (1 + rng.IntN(8))))
			}
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// checks has qemu-img find nothing wrong with an image, nor what Check does.
func checks(t testing.TB, path string) {
	t.Helper()
	if out := qemu(t, ".", "qemu-img", "check", "-f", "qcow2", path); !strings.Contains(out, "No errors were found") {
		t.Errorf("qemu-img check: %s", out)
	}
	if r := check(t, path); r.Corruptions+r.Leaks > 0 {
		t.Errorf("check: %+v", r)
	}
}

// osFile is an image's file without locks.
type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	return st.Size(), err
}

func (f osFile) ReadV(bufs [][]byte, off int64) error {
	for _, b := range bufs {
		n, err := f.ReadAt(b, off)
		if clear(b[n:]); n == 0 && err == nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

func (f osFile) WriteV([][]byte, int64) error { return errors.ErrUnsupported }
func (f osFile) Zero(int64, int64) error      { return errors.ErrUnsupported }
func (f osFile) Punch(int64, int64) error     { return errors.ErrUnsupported }

func check(t testing.TB, path string) *qcow2.Report {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := qcow2.Check(osFile{f})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reads compares all of an image with what it should hold, in requests of uneven
// sizes.
func reads(t testing.TB, img disk.Image, want []byte) {
	t.Helper()
	if img.Size() != int64(len(want)) {
		t.Fatalf("%d bytes, want %d", img.Size(), len(want))
	}
	got := make([]byte, len(want))
	for off, k := int64(0), int64(1); off < int64(len(got)); k++ {
		n := min(k*k%700*512+512, int64(len(got))-off)
		half := n / 1024 * 512
		if err := img.ReadV([][]byte{got[off : off+half], nil, got[off+half : off+n]}, off); err != nil {
			t.Fatal(err)
		}
		off += n
	}
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("the disk differs from %d on", i)
			}
		}
	}
}

// scribble does random requests to an image and to what it should hold.
func scribble(t testing.TB, img disk.Image, want []byte, seed uint64, requests int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	size := int64(len(want))
	for range requests {
		off := rng.Int64N(size/512) * 512
		n := min((1+rng.Int64N([]int64{1, 8, 128, 1000}[rng.IntN(4)]))*512, size-off)
		var err error
		switch k := rng.IntN(10); {
		case k < 7:
			b := want[off : off+n]
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			err = img.WriteV([][]byte{b[:n/2], b[n/2:]}, off)
		case k < 9:
			clear(want[off : off+n])
			err = img.WriteZeroes(off, n, k == 8)
		case rng.IntN(4) == 0:
			err = img.Flush()
		default:
			if err = img.Discard(off, n); err == nil {
				err = img.ReadV([][]byte{want[off : off+n]}, off)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestHostQEMUImages reads, writes and has checked images of every kind that the
// real qemu-img makes.
func TestHostQEMUImages(t *testing.T) {
	const size = 3<<20 + 5*512
	cases := []struct {
		name    string
		options string
		args    []string // of qemu-img convert
		size    int64    // 0 for size
	}{
		{name: "v2", options: "compat=0.10"},
		{name: "v2 compressed", options: "compat=0.10", args: []string{"-c"}},
		{name: "compressed", args: []string{"-c"}},
		{name: "compressed, large clusters", options: "cluster_size=2M", args: []string{"-c"}},
		{name: "compressed, small clusters", options: "cluster_size=512", args: []string{"-c"}},
		{name: "zstd", options: "compression_type=zstd", args: []string{"-c"}},
		{name: "zstd, large clusters", options: "compression_type=zstd,cluster_size=2M", args: []string{"-c"}},
		{name: "zstd, small clusters", options: "compression_type=zstd,cluster_size=1k", args: []string{"-c"}},
		{name: "lazy refcounts", options: "lazy_refcounts=on"},
		{name: "no more than a cluster", size: 512},
		{name: "small clusters, a larger refcount table", options: "cluster_size=512,refcount_bits=64", size: 5 << 20},
		{name: "preallocated", options: "preallocation=metadata"},
	}
	for bits := range 7 {
		cases = append(cases, struct {
			name    string
			options string
			args    []string
			size    int64
		}{name: fmt.Sprintf("refcounts of %d bits", 1<<bits), options: fmt.Sprintf("cluster_size=4k,refcount_bits=%d", 1<<bits)})
	}
	for c := 512; c <= 2<<20; c *= 2 {
		cases = append(cases, struct {
			name    string
			options string
			args    []string
			size    int64
		}{name: fmt.Sprintf("clusters of %d", c), options: fmt.Sprintf("cluster_size=%d", c)})
	}
	for n, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if c.size == 0 {
				c.size = size
			}
			want := raw(t, filepath.Join(dir, "raw"), c.size, uint64(n))
			args := append([]string{"convert", "-f", "raw", "-O", "qcow2"}, c.args...)
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			qemu(t, dir, "qemu-img", append(args, "raw", "q")...)
			path := filepath.Join(dir, "q")
			img := open(t, path, disk.Options{ReadOnly: true})
			reads(t, img, want)
			closes(t, img)

			img = open(t, path, disk.Options{})
			scribble(t, img, want, uint64(n), 60)
			reads(t, img, want)
			closes(t, img)
			checks(t, path)
			if err := os.WriteFile(filepath.Join(dir, "raw"), want, 0o600); err != nil {
				t.Fatal(err)
			}
			qemu(t, dir, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", "raw", "q")
		})
	}
}

// TestHostQEMUSnapshots: what an internal snapshot holds stays while the disk above
// it changes.
func TestHostQEMUSnapshots(t *testing.T) {
	for _, options := range []string{"cluster_size=64k", "cluster_size=512", "compat=0.10", "compression_type=zstd"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first := raw(t, filepath.Join(dir, "raw"), 2<<20, 1)
			args := []string{"convert", "-O", "qcow2", "-o", options, "raw", "q"}
			if strings.Contains(options, "zstd") {
				args = append([]string{"convert", "-c"}, args[1:]...)
			}
			qemu(t, dir, "qemu-img", args...)
			qemu(t, dir, "qemu-img", "snapshot", "-c", "one", "q")
			path := filepath.Join(dir, "q")
			now := bytes.Clone(first)
			img := open(t, path, disk.Options{})
			scribble(t, img, now, 2, 40)
			closes(t, img)
			checks(t, path)
			qemu(t, dir, "qemu-img", "snapshot", "-c", "two", "q")
			second := bytes.Clone(now)
			img = open(t, path, disk.Options{})
			scribble(t, img, now, 3, 40)
			reads(t, img, now)
			closes(t, img)
			checks(t, path)
			for name, want := range map[string][]byte{"one": first, "two": second} {
				qemu(t, dir, "qemu-img", "convert", "-l", name, "-O", "raw", "q", name)
				if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("snapshot %s differs (%v)", name, err)
				}
			}
			qemu(t, dir, "qemu-img", "snapshot", "-d", "one", "q")
			qemu(t, dir, "qemu-img", "snapshot", "-a", "two", "q")
			checks(t, path)
			img = open(t, path, disk.Options{})
			reads(t, img, second)
			scribble(t, img, second, 4, 20)
			closes(t, img)
			checks(t, path)
		})
	}
}

// TestHostQEMUSparse: a disk of 1 TiB takes next to nothing, and its ends work.
func TestHostQEMUSparse(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-f", "qcow2", "q", "1T")
	path := filepath.Join(dir, "q")
	img := open(t, path, disk.Options{})
	b := make([]byte, 128<<10)
	for _, off := range []int64{0, 1<<39 + 512, 1<<40 - 128<<10} {
		if err := img.ReadV([][]byte{b}, off); err != nil || !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("at %d: not zeroes (%v)", off, err)
		}
		if err := img.WriteV([][]byte{bytes.Repeat([]byte{7}, len(b))}, off); err != nil {
			t.Error(err)
		}
	}
	for off := int64(0); off < 1<<40; off += 1 << 38 {
		if err := errors.Join(img.Discard(off, 1<<38), img.WriteZeroes(off, 1<<38, true)); err != nil {
			t.Error(err)
		}
	}
	if err := img.WriteV([][]byte{bytes.Repeat([]byte{9}, len(b))}, 1<<40-128<<10); err != nil {
		t.Error(err)
	}
	closes(t, img)
	checks(t, path)
	if st, err := os.Stat(path); err != nil || st.Size() > 2<<20 {
		t.Errorf("the file has %d bytes (%v)", st.Size(), err)
	}
	qemu(t, dir, "qemu-io", "-f", "qcow2", "-c", "read -P 9 1099511496704 128k", "-c", "read -P 0 0 128k", "q")
}

// TestHostQEMUOverlay: an overlay that was made here is one for qemu-img.
func TestHostQEMUOverlay(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			want := raw(t, filepath.Join(dir, "raw"), 5<<20+512, 5)
			base := filepath.Join(dir, "raw")
			if format == "qcow2" {
				base = filepath.Join(dir, "base")
				qemu(t, dir, "qemu-img", "convert", "-c", "-O", "qcow2", "raw", "base")
			}
			path := filepath.Join(dir, "over")
			for round := range uint64(3) {
				below, err := disk.Open(base, disk.Options{ReadOnly: true})
				if err != nil {
					t.Fatal(err)
				}
				img, err := disk.OpenOverlay(path, base, disk.Options{Base: disk.NewBase(below), Format: disk.Format(format)})
				if err != nil {
					t.Fatal(err)
				}
				reads(t, img, want)
				scribble(t, img, want, round, 40)
				closes(t, img)
				closes(t, below)
				checks(t, path)
			}
			var info struct {
				Backing string `json:"backing-filename"`
				Format  string `json:"backing-filename-format"`
				Size    int64  `json:"virtual-size"`
			}
			if err := json.Unmarshal([]byte(qemu(t, dir, "qemu-img", "info", "--output=json", "over")), &info); err != nil {
				t.Fatal(err)
			}
			if info.Backing != filepath.Base(base) || info.Format != format || info.Size != int64(len(want)) {
				t.Errorf("qemu-img info: %+v", info)
			}
			if err := os.WriteFile(filepath.Join(dir, "want"), want, 0o600); err != nil {
				t.Fatal(err)
			}
			qemu(t, dir, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", "want", "over")
			// On another base, and on none.
			qemu(t, dir, "qemu-img", "convert", "-O", "qcow2", "raw", "other")
			qemu(t, dir, "qemu-img", "rebase", "-f", "qcow2", "-b", "other", "-F", "qcow2", "over")
			img := open(t, path, disk.Options{Backing: true})
			reads(t, img, want)
			closes(t, img)
			qemu(t, dir, "qemu-img", "rebase", "-f", "qcow2", "-b", "", "over")
			img = open(t, path, disk.Options{})
			reads(t, img, want)
			closes(t, img)
			checks(t, path)
		})
	}
}

// TestHostQEMULocks: qemu-img keeps off what is written to here, and the other way
// round; readers go together.
func TestHostQEMULocks(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		dir := t.TempDir()
		path := filepath.Join(dir, "d")
		qemu(t, dir, "qemu-img", "create", "-f", format, "d", "1M")
		img, err := disk.Open(path, disk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"qemu-img", "info", "d"}, {"qemu-img", "check", "-f", format, "d"}, {"qemu-io", "-f", format, "-c", "write 0 512", "d"}} {
			if format == "raw" && args[0] == "qemu-img" {
				continue // it does not mind that others write to a raw image
			}
			if out, err := tryQEMU(t, dir, args[0], args[1:]...); err == nil || !strings.Contains(out, "lock") {
				t.Errorf("%s: while it is written to here, %q says: %s", format, args, out)
			}
		}
		closes(t, img)
		for _, c := range []struct {
			args     []string
			readOnly bool
			free     bool
		}{
			{[]string{"-f", format, "d"}, false, false},
			{[]string{"-f", format, "d"}, true, false},
			{[]string{"-r", "-f", format, "d"}, false, format == "raw"},
			{[]string{"-r", "-f", format, "d"}, true, true},
		} {
			pid, end := interactive(t, dir, c.args...)
			img, err := disk.Open(path, disk.Options{ReadOnly: c.readOnly})
			switch {
			case c.free && err != nil, !c.free && (!errors.Is(err, disk.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", pid))):
				t.Errorf("%s: while qemu-io %q runs as %d: %v", format, c.args, pid, err)
			}
			if err == nil {
				closes(t, img)
			}
			end()
		}
	}
}

// interactive starts a qemu-io that has an image open until end.
func interactive(t *testing.T, dir string, args ...string) (pid int, end func()) {
	t.Helper()
	bin := filepath.Join(filepath.Dir(qemuImg(t)), "qemu-io")
	cmd := exec.Command(bin, args...)
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// It has the image open once it answers.
	fmt.Fprintln(in, "length")
	b := make([]byte, 256)
	for got := ""; !strings.Contains(got, "1 MiB"); {
		n, err := out.Read(b)
		if err != nil {
			t.Fatalf("qemu-io: %v after %q", err, got)
		}
		got += string(b[:n])
	}
	return cmd.Process.Pid, func() {
		in.Close()
		if err := errors.Join(drain(out), cmd.Wait()); err != nil {
			t.Errorf("qemu-io: %v", err)
		}
	}
}

func drain(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// TestHostFull: on a filesystem that is full, writes fail, what was flushed stays,
// and with more room it goes on.
func TestHostFull(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("disco-test", dir, "tmpfs", 0, "size=2m"); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			}()
			path := filepath.Join(dir, "d")
			qemu(t, dir, "qemu-img", "create", "-f", format, "d", "8M")
			img, err := disk.Open(path, disk.Options{})
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 8<<20)
			full := 0
			part := func(k int) []byte { return want[k*10000&^511:][:10240] }
			for k := range 500 {
				b := bytes.Repeat([]byte{byte(k + 1)}, 10240)
				err := img.WriteV([][]byte{b}, int64(k)*10000&^511)
				if k%7 == 0 {
					err = errors.Join(err, img.Flush())
				}
				if err != nil {
					if full++; !errors.Is(err, unix.ENOSPC) {
						t.Fatal(err)
					}
					continue
				}
				copy(part(k), b)
			}
			if full < 100 {
				t.Errorf("only %d of 500 writes found it full", full)
			}
			// What failed may have been written in part: only what nothing failed at
			// is compared.
			if err := img.Flush(); err != nil {
				t.Errorf("a flush of what was written: %v", err)
			}
			got := make([]byte, 10240)
			if err := img.ReadV([][]byte{got}, 0); err != nil || !bytes.Equal(got[:9728], want[:9728]) {
				t.Errorf("the first write is gone (%v)", err)
			}
			// The guest gives something up, and uses it again.
			if err := errors.Join(img.Discard(0, 512<<10), img.Flush()); err != nil {
				t.Error(err)
			}
			if err := img.WriteV([][]byte{bytes.Repeat([]byte{1}, 128<<10)}, 7<<20); err != nil {
				t.Errorf("after discarding: %v", err)
			}
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=16m"); err != nil {
				t.Fatal(err)
			}
			for k := range 800 {
				if err := img.WriteV([][]byte{bytes.Repeat([]byte{byte(k + 7)}, 10240)}, int64(k)*10000&^511); err != nil {
					t.Fatal(err)
				}
			}
			closes(t, img)
			if format == "qcow2" {
				checks(t, path)
			}
			if img, err = disk.Open(path, disk.Options{ReadOnly: true}); err != nil {
				t.Fatal(err)
			}
			if err := img.ReadV([][]byte{got}, 799*10000&^511); err != nil || got[5000] != byte((799+7)%256) {
				t.Errorf("the last write is gone (%v)", err)
			}
			closes(t, img)
		})
	}
}
