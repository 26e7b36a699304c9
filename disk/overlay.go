package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"disco/disk/qcow2"
)

// OpenOverlay opens the qcow2 image at path for writing. It stands on the image at
// basePath, which is open as o.Base and must not be nil; o.Format is the base's.
// An overlay that does not exist is made.
//
// It remembers the size of the base's file and when that was last written to, in
// a header extension, and is refused if they are others now, or if it stands on
// another image. What another program has made, or has put on its base anew, is
// taken as it is.
func OpenOverlay(path, basePath string, o Options) (*Layer, error) {
	l, err := o.overlay(path, basePath)
	if err != nil {
		return nil, fmt.Errorf("overlay %s: %w", path, err)
	}
	return l, nil
}

func (o *Options) overlay(path, basePath string) (*Layer, error) {
	if o.Base == nil {
		return nil, errors.New("has no base")
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := o.make(path, basePath); err != nil {
			return nil, err
		}
	}
	f, err := openFile(path, false, o.Direct)
	if err != nil {
		return nil, err
	}
	q, err := qcow2.Open(container{f}, qcow2.Options{
		WriteThrough: o.WriteThrough,
		Backing: func(b qcow2.Backing) (qcow2.Base, error) {
			named := b.Name
			if !filepath.IsAbs(named) {
				named = filepath.Join(filepath.Dir(path), named)
			}
			if !sameFile(named, basePath) {
				return nil, fmt.Errorf("stands on %s, not on %s; name that one, or put the overlay on this with qemu-img rebase", named, basePath)
			}
			return o.Base, unchanged(basePath, b)
		},
	})
	if err == nil && q.Backing().Name == "" {
		err = fmt.Errorf("stands on no image, and so not on %s; use it as a disk of its own", basePath)
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return &Layer{Image: q, file: f}, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// make makes an empty overlay, whole or not at all.
func (o *Options) make(path, basePath string) error {
	name, err := nameFor(path, basePath)
	if err != nil {
		return err
	}
	stamp, err := stampOf(basePath, name)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("making it: %w", err)
	}
	defer tmp.Close()
	defer os.Remove(tmp.Name())
	f := &file{path: tmp.Name(), fd: int(tmp.Fd()), direct: -1, block: SectorSize}
	f.calls.New = func() any { return new(call) }
	err = qcow2.Create(container{f}, qcow2.CreateOptions{
		Size: o.Base.Size(), Backing: name, BackingFormat: string(o.Format), Stamp: stamp,
	})
	if err != nil {
		return fmt.Errorf("making it: %w", err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, tmp.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS {
		err = os.Link(tmp.Name(), path) // a filesystem that cannot rename so
	}
	if err != nil {
		return fmt.Errorf("making it: %w", err)
	}
	// So that it is still there after a crash.
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("making it: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("making it: %w", err)
	}
	return nil
}

// nameFor is how an overlay at path names its base: relative to its folder if that
// holds it, so that both can be moved together.
func nameFor(path, basePath string) (string, error) {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	base, err := filepath.Abs(basePath)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(dir, base); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return rel, nil
	}
	return base, nil
}
