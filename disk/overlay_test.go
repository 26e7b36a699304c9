package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"disco/disk/qcow2"
)

// overlaid opens an overlay on a raw base.
func overlaid(t testing.TB, path, base string) (*Layer, error) {
	t.Helper()
	r := open(t, base, true)
	return OpenOverlay(path, base, Options{Base: NewBase(r), Format: FormatRaw})
}

func TestOverlayLife(t *testing.T) {
	base := image(t, 1<<20)
	want := pattern(1 << 20)
	if err := os.WriteFile(base, want, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(base), "over.qcow2")
	for round := range byte(3) {
		l, err := overlaid(t, path, base)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1<<20)
		if err := l.ReadV([][]byte{got}, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("round %d: it reads as something else (%v)", round, err)
		}
		b := bytes.Repeat([]byte{round + 1}, 4096)
		copy(want[int(round)*70000&^511:], b)
		if err := errors.Join(l.WriteV([][]byte{b}, int64(round)*70000&^511), l.Close()); err != nil {
			t.Error(err)
		}
	}
	if got, err := os.ReadFile(base); err != nil || !bytes.Equal(got, pattern(1<<20)) {
		t.Errorf("the base has changed (%v)", err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(base), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	// As a disk of its own, where its base is allowed or not.
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), `names a backing file, "disk.img"`) {
		t.Errorf("without leave: %v", err)
	}
	img, err := Open(path, Options{Backing: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<20)
	if err := errors.Join(img.ReadV([][]byte{got}, 0), img.Close()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("with its base, it reads as something else (%v)", err)
	}
}

// TestOverlayBaseChanged: a base that has changed is found out and refused, and
// taken again when it is as it was.
func TestOverlayBaseChanged(t *testing.T) {
	base := image(t, 1<<20)
	path := filepath.Join(filepath.Dir(base), "over.qcow2")
	l, err := overlaid(t, path, base)
	if err != nil {
		t.Fatal(err)
	}
	closing(t, l)
	st, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what, want string) {
		t.Helper()
		if l, err := overlaid(t, path, base); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
			if err == nil {
				l.Close()
			}
		}
		if img, err := Open(path, Options{Backing: true}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s, with its own base: %v", what, err)
			if err == nil {
				img.Close()
			}
		}
	}
	touch := func(d time.Duration) {
		t.Helper()
		if err := os.Chtimes(base, time.Time{}, st.ModTime().Add(d)); err != nil {
			t.Fatal(err)
		}
	}
	touch(1)
	refused("touched", "has changed since the overlay was made")
	touch(0)
	if err := os.Truncate(base, 2<<20); err != nil {
		t.Fatal(err)
	}
	touch(0)
	refused("grown", "touch -d @")
	if err := os.Truncate(base, 1<<20); err != nil {
		t.Fatal(err)
	}
	touch(0)
	// Moved with the overlay.
	dir := t.TempDir()
	for _, from := range []string{base, path} {
		if err := os.Rename(from, filepath.Join(dir, filepath.Base(from))); err != nil {
			t.Fatal(err)
		}
	}
	base, path = filepath.Join(dir, filepath.Base(base)), filepath.Join(dir, filepath.Base(path))
	if l, err = overlaid(t, path, base); err != nil {
		t.Fatal(err)
	}
	closing(t, l)
}

func closing(t testing.TB, img Image) {
	t.Helper()
	if err := img.Close(); err != nil {
		t.Error(err)
	}
}

func TestOverlayRefuses(t *testing.T) {
	base, other := image(t, 1<<20), image(t, 1<<20)
	dir := filepath.Dir(base)
	path := filepath.Join(dir, "over")
	l, err := overlaid(t, path, base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := overlaid(t, path, base); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "another guest of this process") {
		t.Errorf("a second writer: %v", err)
	}
	closing(t, l)
	alone := filepath.Join(dir, "alone")
	f := &osFile{}
	if f.File, err = os.Create(alone); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(qcow2.Create(f, qcow2.CreateOptions{Size: 1 << 20}), f.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, path, base, want string }{
		{"another base", path, other, "stands on " + base + ", not on " + other},
		{"no base", alone, base, "stands on no image"},
		{"raw", image(t, 1<<20), base, "does not begin like a qcow2 image"},
		{"no folder", filepath.Join(dir, "none", "o"), base, "making it"},
	} {
		if l, err := overlaid(t, c.path, c.base); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %v", c.name, err)
			if err == nil {
				l.Close()
			}
		}
	}
}

// osFile is a file for qcow2.Create.
type osFile struct{ *os.File }

func (f *osFile) Size() (int64, error)        { return 0, nil }
func (f *osFile) ReadV([][]byte, int64) error { return errors.ErrUnsupported }
func (f *osFile) Punch(_, _ int64) error      { return nil }
func (f *osFile) Zero(off, n int64) error     { return f.Truncate(off + n) }
func (f *osFile) WriteV(b [][]byte, off int64) error {
	for _, b := range b {
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

// TestBackingChain: which backing files are allowed.
func TestBackingChain(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	create := func(path, backing, format string) {
		t.Helper()
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(qcow2.Create(&osFile{f}, qcow2.CreateOptions{
			Size: 1 << 20, Backing: backing, BackingFormat: format,
		}), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	secret := filepath.Join(outside, "secret")
	if err := errors.Join(os.WriteFile(secret, pattern(1<<20), 0o600), os.WriteFile(in("raw"), pattern(1<<20), 0o600),
		os.Symlink(secret, in("link")), os.Mkdir(in("sub"), 0o700), os.WriteFile(in("sub/raw"), pattern(1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	create(in("one"), "raw", "raw")
	create(in("two"), "one", "qcow2")
	create(in("sub.q"), "sub/raw", "")
	create(in("absolute"), in("raw"), "raw")
	create(in("missing"), "nothing", "raw")
	create(in("itself"), "itself", "qcow2")
	create(in("ping"), "pong", "qcow2")
	create(in("pong"), "ping", "qcow2")
	create(in("out"), secret, "raw")
	create(in("up"), "../"+filepath.Base(outside)+"/secret", "raw")
	create(in("linked"), "link", "raw")
	create(in("odd"), "raw", "vmdk")
	create(in("wrong"), "raw", "qcow2")
	create(in("deep0"), "raw", "raw")
	for i := range byte(maxChain) {
		create(in("deep"+string(rune('1'+i))), "deep"+string(rune('0'+i)), "qcow2")
	}
	for name, want := range map[string]string{
		"one": "", "two": "", "sub.q": "", "absolute": "", "deep9": "",
		"missing": "no such file", "itself": "stands on itself", "ping": "stands on itself",
		"out": "not in the image's own folder", "up": "not in the image's own folder", "linked": "not in the image's own folder",
		"odd": `the format "vmdk" is not known`, "wrong": "does not begin like a qcow2 image",
		"deep" + string(rune('0'+maxChain)): "more than 15 images",
	} {
		img, err := Open(in(name), Options{ReadOnly: true, Backing: true})
		if want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if err != nil {
			continue
		}
		got := make([]byte, 4096)
		if err := img.ReadV([][]byte{got}, 8192); err != nil || !bytes.Equal(got, pattern(1 << 20)[8192:][:4096]) {
			t.Errorf("%s: it does not read as what is below (%v)", name, err)
		}
		closing(t, img)
	}
	if n := openFiles(t); n != 0 {
		t.Errorf("%d files of images are still open", n)
	}
}

// openFiles counts the files of the test's own folders that are open.
func openFiles(t *testing.T) (n int) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.Contains(to, t.Name()) {
			n++
		}
	}
	return n
}

// TestLayerShrinks: what is cut off an image while it is used reads as an error,
// not as zeroes.
func TestLayerShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "q")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(qcow2.Create(&osFile{f}, qcow2.CreateOptions{Size: 4 << 20}), f.Close()); err != nil {
		t.Fatal(err)
	}
	img, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := [][]byte{pattern(4096)}
	for _, off := range []int64{0, 1 << 20, 2 << 20} {
		if err := img.WriteV(b, off); err != nil {
			t.Fatal(err)
		}
	}
	// The rest of the last cluster is past the file's end and was never written.
	got := [][]byte{pattern(8192)}
	if err := img.ReadV(got, 2<<20+8192); err != nil || !bytes.Equal(got[0], make([]byte, 8192)) {
		t.Errorf("past what was written: %v", err)
	}
	if err := img.Flush(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, st.Size()-64<<10); err != nil {
		t.Fatal(err)
	}
	if err := img.ReadV(b, 2<<20); !errors.Is(err, syscall.EIO) {
		t.Errorf("what was cut off reads with %v", err)
	}
	if err := img.ReadV(b, 0); err != nil || !bytes.Equal(b[0], pattern(4096)) {
		t.Errorf("what is left: %v", err)
	}
	closing(t, img)
}
