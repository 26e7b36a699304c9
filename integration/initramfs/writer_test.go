package initramfs

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func archive(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, err := range []error{
		w.Dir("/proc", 0o555),
		w.Device("/dev/console", 0o600, 5, 1),
		w.File("init", 0o755, strings.NewReader("hello"), 5),
		w.Symlink("/init", "sbin/init"),
		w.File("/etc/a/b", 0o644, strings.NewReader(""), 0),
		w.Device("dev/ttyS0", 0o620, 4, 64),
		w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestArchiveHoldsWhatWasAdded(t *testing.T) {
	r := cpio.NewReader(bytes.NewReader(archive(t)))
	want := []struct {
		name string
		mode cpio.FileMode
		body string
		link string
	}{
		{"proc", cpio.TypeDir | 0o555, "", ""},
		{"dev", cpio.TypeDir | 0o755, "", ""},
		{"dev/console", cpio.TypeChar | 0o600, "", ""},
		{"init", cpio.TypeReg | 0o755, "hello", ""},
		{"sbin", cpio.TypeDir | 0o755, "", ""},
		{"sbin/init", cpio.TypeSymlink | 0o777, "", "/init"},
		{"etc", cpio.TypeDir | 0o755, "", ""},
		{"etc/a", cpio.TypeDir | 0o755, "", ""},
		{"etc/a/b", cpio.TypeReg | 0o644, "", ""},
		{"dev/ttyS0", cpio.TypeChar | 0o620, "", ""},
	}
	for _, e := range want {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		if h.Name != e.name || h.Mode != e.mode || string(body) != e.body || h.Linkname != e.link {
			t.Errorf("got %s mode %v %q link %q, want %+v", h.Name, h.Mode, body, h.Linkname, e)
		}
		if h.ModTime.Unix() != 0 || h.Uid != 0 || h.Guid != 0 {
			t.Errorf("%s: time %v, owner %d:%d; want none", h.Name, h.ModTime, h.Uid, h.Guid)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("after the last entry: %v, want EOF", err)
	}
}

func TestArchiveIsReproducible(t *testing.T) {
	if !bytes.Equal(archive(t), archive(t)) {
		t.Error("two archives of the same calls differ")
	}
}

func TestDeviceNumbers(t *testing.T) {
	b := archive(t)
	at := bytes.Index(b, []byte("dev/ttyS0\x00")) - 110
	if at < 0 || at%4 != 0 {
		t.Fatalf("header of dev/ttyS0 at %d, want a multiple of four", at)
	}
	// Field 9 and 10 of the header after the magic: rdev major and minor.
	if got := string(b[at+6+9*8 : at+6+11*8]); got != "0000000400000040" {
		t.Errorf("device numbers %s, want 4 and 64", got)
	}
}

func TestWriterRefuses(t *testing.T) {
	tests := map[string]func(w *Writer) error{
		"no name":       func(w *Writer) error { return w.Dir("/", 0o755) },
		"zero in name":  func(w *Writer) error { return w.Dir("a\x00b", 0o755) },
		"short body":    func(w *Writer) error { return w.File("a", 0o644, strings.NewReader("ab"), 3) },
		"long body":     func(w *Writer) error { return w.File("a", 0o644, strings.NewReader("abcd"), 3) },
		"negative size": func(w *Writer) error { return w.File("a", 0o644, strings.NewReader(""), -1) },
		"huge size":     func(w *Writer) error { return w.File("a", 0o644, strings.NewReader(""), 1<<32) },
		"twice": func(w *Writer) error {
			return errors.Join(w.Symlink("x", "a"), w.Symlink("y", "a"))
		},
	}
	for name, add := range tests {
		t.Run(name, func(t *testing.T) {
			if add(NewWriter(io.Discard)) == nil {
				t.Error("no error")
			}
		})
	}
}
