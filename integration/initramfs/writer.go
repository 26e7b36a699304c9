// Package initramfs makes the archives that a Linux kernel unpacks as its first
// root filesystem: newc cpio files, the same bytes for the same input, and the
// kernel modules that belong in them, in the order in which they load.
//
// What runs inside the machine afterwards, and loads those modules, is package
// insmod, which stays free of the compressors that this package links.
//
// Not done: compressing the archive (a kernel reads it as it is, sooner), hard
// links, owners other than root, and modules.dep, modules.alias or anything else
// of depmod's: the modules say themselves what they depend on.
package initramfs

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// maxFileSize is the largest file that a newc header can describe.
const maxFileSize = 1<<32 - 1

// Writer writes one archive. Paths are taken from the root with or without a
// leading slash, and the folders above a path are made (mode 0755) if they were
// not. All times are zero and every owner is root, so that equal calls make
// equal archives. It is not safe for concurrent use.
type Writer struct {
	out  io.Writer
	cpio *cpio.Writer
	seen map[string]bool
}

// NewWriter returns a Writer that writes to w. Close writes the trailer; w stays
// the caller's.
func NewWriter(w io.Writer) *Writer {
	return &Writer{out: w, cpio: cpio.NewWriter(w), seen: make(map[string]bool)}
}

// Dir adds a folder, or does nothing if there is one of that name. mode holds
// permission bits.
func (w *Writer) Dir(name string, mode uint32) error {
	name, err := w.clean(name)
	if err != nil {
		return err
	}
	if w.seen[name] {
		return nil
	}
	return w.add(&cpio.Header{Name: name, Mode: cpio.TypeDir | cpio.FileMode(mode&0o7777), Links: 2}, nil)
}

// File adds a regular file of size bytes, read from r to exactly that length: a
// longer or shorter r is an error. mode holds permission bits.
func (w *Writer) File(name string, mode uint32, r io.Reader, size int64) error {
	name, err := w.clean(name)
	if err != nil {
		return err
	}
	if size < 0 || size > maxFileSize {
		return fmt.Errorf("initramfs: %s: size %d does not fit a newc archive", name, size)
	}
	return w.add(&cpio.Header{Name: name, Mode: cpio.TypeReg | cpio.FileMode(mode&0o7777), Size: size, Links: 1}, r)
}

// Symlink adds a link at name that points to target, which is stored as it is.
func (w *Writer) Symlink(target, name string) error {
	name, err := w.clean(name)
	if err != nil {
		return err
	}
	h := &cpio.Header{Name: name, Mode: cpio.TypeSymlink | 0o777, Size: int64(len(target)), Links: 1}
	return w.add(h, strings.NewReader(target))
}

// Device adds a character device. mode holds permission bits.
func (w *Writer) Device(name string, mode uint32, major, minor uint32) error {
	name, err := w.clean(name)
	if err != nil {
		return err
	}
	if err := w.parents(name); err != nil {
		return err
	}
	if err := w.claim(name); err != nil {
		return err
	}
	// The cpio package leaves the device numbers out of its headers, so this
	// one entry is put together here (Linux, buffer-format.rst).
	if err := w.cpio.Flush(); err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString("070701")
	for _, field := range []uint32{
		0, cpio.TypeChar | mode&0o7777, 0, 0, 1, 0, 0, // inode, mode, uid, gid, links, time, size
		0, 0, major, minor, uint32(len(name) + 1), 0, // device, device the node stands for, name length, checksum
	} {
		fmt.Fprintf(&b, "%08X", field)
	}
	b.WriteString(name)
	b.WriteByte(0)
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
	_, err = w.out.Write(b.Bytes())
	return err
}

// Close writes what ends the archive. A Writer that is not closed has written a
// truncated archive.
func (w *Writer) Close() error { return w.cpio.Close() }

func (w *Writer) add(h *cpio.Header, body io.Reader) error {
	if err := w.parents(h.Name); err != nil {
		return err
	}
	if err := w.claim(h.Name); err != nil {
		return err
	}
	if err := w.cpio.WriteHeader(h); err != nil {
		return fmt.Errorf("initramfs: %s: %w", h.Name, err)
	}
	if body == nil {
		return nil
	}
	n, err := io.Copy(w.cpio, body)
	if err != nil {
		return fmt.Errorf("initramfs: %s: %w", h.Name, err)
	}
	if n != h.Size {
		return fmt.Errorf("initramfs: %s: %d bytes came, %d were promised", h.Name, n, h.Size)
	}
	return nil
}

func (w *Writer) parents(name string) error {
	if dir := path.Dir(name); dir != "." {
		return w.Dir(dir, 0o755)
	}
	return nil
}

func (w *Writer) claim(name string) error {
	if w.seen[name] {
		return fmt.Errorf("initramfs: %s: added twice", name)
	}
	w.seen[name] = true
	return nil
}

func (w *Writer) clean(name string) (string, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" || strings.ContainsRune(clean, 0) {
		return "", fmt.Errorf("initramfs: %q is no name for a file", name)
	}
	return clean, nil
}
