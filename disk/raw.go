// Package disk holds disk images: files and block devices of the host that a
// guest's disk is kept in.
//
// Done: raw images, buffered or direct, locked against use by two guests.
//
// Not done: other formats, overlays, a cache of our own, asynchronous requests,
// and growing or shrinking an image while a guest uses it. Requests are checked
// against the image's size here; what they mean to a guest is virtio/blk's.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of image sizes and of requests, in bytes.
const SectorSize = 512

// maxVectors bounds the buffers of one system call; more take several calls.
const maxVectors = 128

// Raw is a raw image: byte i of the disk is byte i of the file. Its methods but
// Close may be called from many goroutines. None allocates unless it fails.
type Raw struct {
	path     string
	fd       int // buffered
	direct   int // opened with O_DIRECT, or -1
	align    int // what direct I/O needs of offsets, lengths and addresses
	block    int // logical block size in bytes
	size     int64
	readOnly bool
	device   bool // a block device
	calls    sync.Pool
}

// call is the memory of one system call, off the stack, which may move.
type call struct {
	vectors [maxVectors]unix.Iovec
	stat    unix.Stat_t
}

// ErrInUse is wrapped by OpenRaw's error for an image that another guest, or
// another program that locks images, has open in a way that excludes ours.
var ErrInUse = errors.New("in use")

// OpenRaw opens the image at path: a file or a block device, whose size is a
// multiple of SectorSize and not zero. A partial last sector is refused rather
// than cut off or padded. With direct, requests that are aligned as the host
// demands bypass the host's page cache.
//
// The image is locked (an open file description lock over all of it) until
// Close: read-only openers share it, a writer has it alone. Filesystems that
// know no locks are used without.
func OpenRaw(path string, readOnly, direct bool) (*Raw, error) {
	r := &Raw{path: path, fd: -1, direct: -1, block: SectorSize, readOnly: readOnly}
	r.calls.New = func() any { return new(call) }
	if err := r.open(direct); err != nil {
		r.Close()
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	return r, nil
}

func (r *Raw) open(direct bool) error {
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if r.readOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC
	}
	var st unix.Stat_t
	if err := unix.Stat(r.path, &st); err != nil {
		return explain(err, r.readOnly)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		r.device = true
	case unix.S_IFDIR:
		return errors.New("is a directory, not an image")
	default:
		return errors.New("is neither a file nor a block device")
	}
	var err error
	if r.fd, err = unix.Open(r.path, flags, 0); err != nil {
		r.fd = -1
		return explain(err, r.readOnly)
	}
	if err := r.lock(); err != nil {
		return err
	}
	if r.size, err = unix.Seek(r.fd, 0, io.SeekEnd); err != nil {
		return fmt.Errorf("finding its size: %w", err)
	}
	switch {
	case r.size == 0:
		return errors.New("is empty; make it larger, e.g. with truncate -s 1G")
	case r.size%SectorSize != 0:
		return fmt.Errorf("is %d bytes, not a multiple of %d; pad it with truncate -s %%%d", r.size, SectorSize, SectorSize)
	}
	if r.device {
		if r.block, err = unix.IoctlGetInt(r.fd, unix.BLKSSZGET); err != nil {
			return fmt.Errorf("finding its block size: %w", err)
		}
	}
	if direct {
		return r.openDirect(flags)
	}
	return nil
}

func (r *Raw) openDirect(flags int) error {
	fd, err := unix.Open(r.path, flags|unix.O_DIRECT, 0)
	if err != nil {
		return fmt.Errorf("direct I/O: %w; its filesystem may not support it", err)
	}
	r.direct = fd
	r.align = max(r.block, 4096)
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st) == nil &&
		st.Mask&unix.STATX_DIOALIGN != 0 && st.Dio_offset_align != 0 {
		r.align = int(max(st.Dio_offset_align, st.Dio_mem_align))
	}
	return nil
}

func explain(err error, readOnly bool) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no such file")
	case !readOnly && (errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS)):
		return fmt.Errorf("is not writable: %w; use it read-only or change its permissions", err)
	}
	return err
}

func (r *Raw) lock() error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if r.readOnly {
		l.Type = unix.F_RDLCK
	}
	switch err := unix.FcntlFlock(uintptr(r.fd), unix.F_OFD_SETLK, &l); {
	case err == nil, errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES)) && r.readOnly:
		return fmt.Errorf("is %w: another guest writes to it", ErrInUse)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return fmt.Errorf("is %w by another guest; stop that one, or use it read-only in both", ErrInUse)
	default:
		return fmt.Errorf("locking: %w", err)
	}
}

// Size is the image's size in bytes when it was opened.
func (r *Raw) Size() int64 { return r.size }

// BlockSize is the size in bytes below which requests are slow: 512, or a block
// device's logical block size.
func (r *Raw) BlockSize() int { return r.block }

// ReadOnly says whether the image was opened read-only.
func (r *Raw) ReadOnly() bool { return r.readOnly }

// Close unlocks and closes the image. No other call may be under way.
func (r *Raw) Close() error {
	var errs []error
	for _, fd := range []*int{&r.direct, &r.fd} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	return errors.Join(errs...)
}

func (r *Raw) fail(what string, off, n int64, err error) error {
	return fmt.Errorf("disk %s: %s of %d bytes at %d: %w", r.path, what, n, off, err)
}

// check refuses ranges outside the image.
func (r *Raw) check(what string, off, n int64) error {
	if off < 0 || n < 0 || off > r.size || n > r.size-off {
		return r.fail(what, off, n, unix.EINVAL)
	}
	return nil
}
