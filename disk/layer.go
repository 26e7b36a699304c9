package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"disco/disk/qcow2"
	"disco/disk/vector"
)

// maxChain is the largest number of images that stand on one another.
const maxChain = 16

// Layer is a qcow2 image with what is below it.
type Layer struct {
	*qcow2.Image
	file  *file
	below Image // opened with it; nil for none
}

// Close flushes and closes the image, and what was opened below it.
func (l *Layer) Close() error {
	err := errors.Join(l.Image.Close(), l.file.close())
	if l.below != nil {
		err = errors.Join(err, l.below.Close())
	}
	return err
}

// layer opens the qcow2 image in f, which it then owns.
func (o *Options) layer(f *file) (Image, error) {
	l := &Layer{file: f}
	q := qcow2.Options{ReadOnly: o.ReadOnly, WriteThrough: o.WriteThrough}
	switch {
	case o.Base != nil:
		q.Backing = func(qcow2.Backing) (qcow2.Base, error) { return o.Base, nil }
	case o.Backing:
		q.Backing = func(b qcow2.Backing) (base qcow2.Base, err error) {
			if l.below, err = o.beneath(f, b); err != nil {
				return nil, err
			}
			return NewBase(l.below), nil
		}
	default:
		q.Backing = func(b qcow2.Backing) (qcow2.Base, error) {
			return nil, fmt.Errorf("names a backing file, %q, which is not allowed; add \",backing\" if it is to be used", b.Name)
		}
	}
	var err error
	if l.Image, err = qcow2.Open(container{f}, q); err != nil {
		if l.below != nil {
			l.below.Close()
		}
		return nil, err
	}
	return l, nil
}

// beneath opens the backing file that the image in f names.
func (o *Options) beneath(f *file, b qcow2.Backing) (Image, error) {
	path, err := backingPath(f.path, b.Name)
	if err != nil {
		return nil, err
	}
	above := append(o.above, f)
	if len(above) >= maxChain {
		return nil, fmt.Errorf("stands on more than %d images", maxChain-1)
	}
	for _, a := range above {
		if same(a, path) {
			return nil, fmt.Errorf("names %q as its backing file, and stands on itself so", b.Name)
		}
	}
	if err := unchanged(path, b); err != nil {
		return nil, err
	}
	img, err := Open(path, Options{
		ReadOnly: true, Format: Format(b.Format), Direct: o.Direct, Backing: true, above: above,
	})
	if err != nil {
		return nil, fmt.Errorf("its backing file: %w", err)
	}
	return img, nil
}

// backingPath finds the backing file of the image at path. It must be in the
// image's folder, or in one of that.
func backingPath(path, name string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	at := name
	if !filepath.IsAbs(at) {
		at = filepath.Join(dir, at)
	}
	if at, err = filepath.EvalSymlinks(at); err != nil {
		return "", fmt.Errorf("its backing file %q: %w", name, explain(err, true))
	}
	if rel, err := filepath.Rel(dir, at); err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", fmt.Errorf("names %q as its backing file, which is not in the image's own folder; move it there, or make the image stand on it with qemu-img rebase", name)
	}
	return at, nil
}

func same(f *file, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(f.fd, &a) == nil && unix.Stat(path, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// unchanged compares a backing file with what the image above remembers of it. One
// that another program has put the image on since is taken as it is.
func unchanged(path string, b qcow2.Backing) error {
	if b.Stamp == nil || b.Stamp.Name != b.Name {
		return nil
	}
	now, err := stampOf(path, b.Name)
	if err != nil {
		return err
	}
	if *now != *b.Stamp {
		return fmt.Errorf("its base %s has changed since the overlay was made, and what the guest wrote does not fit it any more; "+
			"restore the base or make a new overlay (if its contents are the same and only its time differs: touch -d @%d.%09d %s)",
			path, b.Stamp.Modified/1e9, b.Stamp.Modified%1e9, path)
	}
	return nil
}

// stampOf is what to remember of a backing file: its size and when it was last
// written to. Not its inode, so that it may be moved or restored. A block device
// has no such time.
func stampOf(path, name string) (*qcow2.Stamp, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, explain(err, true)
	}
	s := &qcow2.Stamp{Name: name}
	if st.Mode().IsRegular() {
		s.Size, s.Modified = st.Size(), st.ModTime().UnixNano()
	}
	return s, nil
}

// NewBase makes a Base of an image, which stays the caller's.
func NewBase(img Image) Base {
	b := &imageBase{Image: img}
	b.vectors.New = func() any { return new([1][]byte) }
	return b
}

type imageBase struct {
	Image
	vectors sync.Pool // of *[1][]byte
}

func (b *imageBase) ReadAt(p []byte, off int64) (int, error) {
	v := b.vectors.Get().(*[1][]byte)
	v[0] = p
	err := b.ReadV(v[:], off)
	v[0] = nil
	b.vectors.Put(v)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// container is a file as qcow2 uses it: it grows.
type container struct{ file *file }

func (c container) fail(what string, off, n int64, err error) error {
	return fmt.Errorf("%s: %s of %d bytes at %d: %w", c.file.path, what, n, off, err)
}

func (c container) Size() (int64, error) { return c.file.sizeNow() }

func (c container) ReadV(bufs [][]byte, off int64) error {
	n := vector.Len(bufs)
	done, err := c.file.transfer(unix.SYS_PREADV, bufs, off, n)
	if err == errEnd && off+done < c.file.grown.Load() {
		err = unix.EIO // it has shrunk since
	}
	if err == errEnd {
		err = nil
		for _, b := range bufs {
			skip := min(done, int64(len(b)))
			clear(b[skip:])
			done -= skip
		}
	}
	if err != nil {
		return c.fail("read", off, n, err)
	}
	return nil
}

func (c container) WriteV(bufs [][]byte, off int64) error {
	n := vector.Len(bufs)
	if _, err := c.file.transfer(unix.SYS_PWRITEV, bufs, off, n); err != nil {
		return c.fail("write", off, n, err)
	}
	c.grew(off + n)
	return nil
}

// grew notes that the file reaches to end, at least.
func (c container) grew(end int64) {
	for {
		old := c.file.grown.Load()
		if old >= end || c.file.grown.CompareAndSwap(old, end) {
			return
		}
	}
}

func (c container) Zero(off, n int64) error {
	err := c.file.fallocate(unix.FALLOC_FL_ZERO_RANGE, off, n)
	if err == unix.EOPNOTSUPP {
		err = c.file.writeZeroes(off, n)
	}
	if err != nil {
		return c.fail("zeroing", off, n, err)
	}
	c.grew(off + n)
	return nil
}

func (c container) Punch(off, n int64) error {
	err := c.file.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil && err != unix.EOPNOTSUPP {
		return c.fail("discard", off, n, err)
	}
	return nil
}

func (c container) Sync() error {
	if err := c.file.sync(); err != nil {
		return fmt.Errorf("%s: flush: %w", c.file.path, err)
	}
	return nil
}
