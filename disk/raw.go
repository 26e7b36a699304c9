// Package disk holds disk images: files and block devices of the host that a
// guest's disk is kept in.
//
// Done: raw and qcow2 images (package qcow2), buffered, direct or written through;
// locked against use by two guests or by QEMU; images that stand on one another;
// overlays that know when their base has changed; limits of rate.
//
// Not done: other formats, asynchronous requests, and growing or shrinking an
// image while a guest uses it. Requests are checked against the image's size here;
// what they mean to a guest is virtio/blk's. The cache of what bases hold, and
// overlays in memory, are packages of their own.
package disk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"disco/disk/vector"
)

// SectorSize is the unit of image sizes and of requests, in bytes.
const SectorSize = 512

// Raw is a raw image: byte i of the disk is byte i of the file. Its methods but
// Close may be called from many goroutines. None allocates unless it fails.
type Raw struct {
	file    *file
	through bool // every write is flushed
}

// OpenRaw opens the image at path: a file or a block device, whose size is a
// multiple of SectorSize and not zero. A partial last sector is refused rather
// than cut off or padded. With direct, requests that are aligned as the host
// demands bypass the host's page cache.
//
// The image is locked until Close: read-only openers share it, a writer has it
// alone.
func OpenRaw(path string, readOnly, direct bool) (*Raw, error) {
	img, err := Open(path, Options{ReadOnly: readOnly, Format: FormatRaw, Direct: direct})
	if err != nil {
		return nil, err
	}
	return img.(*Raw), nil
}

func newRaw(f *file, through bool) (*Raw, error) {
	if f.size%SectorSize != 0 {
		return nil, fmt.Errorf("is %d bytes, not a multiple of %d; pad it with truncate -s %%%d", f.size, SectorSize, SectorSize)
	}
	return &Raw{file: f, through: through}, nil
}

// Size is the image's size in bytes when it was opened.
func (r *Raw) Size() int64 { return r.file.size }

// BlockSize is the size in bytes below which requests are slow: 512, or a block
// device's logical block size.
func (r *Raw) BlockSize() int { return r.file.block }

// ReadOnly says whether the image was opened read-only.
func (r *Raw) ReadOnly() bool { return r.file.readOnly }

// Close unlocks and closes the image. No other call may be under way.
func (r *Raw) Close() error { return r.file.close() }

func (r *Raw) fail(what string, off, n int64, err error) error {
	return fmt.Errorf("disk %s: %s of %d bytes at %d: %w", r.file.path, what, n, off, err)
}

// check refuses ranges outside the image.
func (r *Raw) check(what string, off, n int64) error {
	if off < 0 || n < 0 || off > r.Size() || n > r.Size()-off {
		return r.fail(what, off, n, unix.EINVAL)
	}
	return nil
}

// ReadV fills bufs, in order, from the image at off. If the image has shrunk
// since it was opened, what is gone reads as an I/O error (EIO).
func (r *Raw) ReadV(bufs [][]byte, off int64) error {
	n := vector.Len(bufs)
	if err := r.check("read", off, n); err != nil {
		return err
	}
	if _, err := r.file.transfer(unix.SYS_PREADV, bufs, off, n); err != nil {
		if err == errEnd {
			err = unix.EIO
		}
		return r.fail("read", off, n, err)
	}
	return nil
}

// WriteV writes bufs, in order, to the image at off. If the image has shrunk
// since it was opened, writing to what is gone is an I/O error (EIO): it does
// not grow again. A guest sees the data on stable storage only after Flush.
func (r *Raw) WriteV(bufs [][]byte, off int64) error {
	n := vector.Len(bufs)
	err := r.writable("write", off, n)
	if err != nil {
		return err
	}
	if _, err := r.file.transfer(unix.SYS_PWRITEV, bufs, off, n); err != nil {
		if err == errEnd {
			err = unix.EIO
		}
		return r.fail("write", off, n, err)
	}
	return r.written()
}

// written ends a change.
func (r *Raw) written() error {
	if r.through {
		return r.Flush()
	}
	return nil
}

// writable refuses writes to a read-only image, or beyond its end as it was or
// as it is now.
func (r *Raw) writable(what string, off, n int64) error {
	if err := r.check(what, off, n); err != nil {
		return err
	}
	if r.file.readOnly {
		return r.fail(what, off, n, unix.EROFS)
	}
	size, err := r.file.sizeNow()
	if err != nil {
		return r.fail(what, off, n, err)
	}
	if size < off+n {
		return r.fail(what, off, n, unix.EIO)
	}
	return nil
}

// Flush returns when all writes that have returned are on stable storage.
func (r *Raw) Flush() error {
	if r.file.readOnly {
		return nil
	}
	if err := r.file.sync(); err != nil {
		return r.fail("flush", 0, r.Size(), err)
	}
	return nil
}

// Discard tells the host that n bytes at off are of no use any more. What they
// read as afterwards is zeroes or what was there; a host that cannot discard
// does nothing.
func (r *Raw) Discard(off, n int64) error {
	if err := r.writable("discard", off, n); err != nil || n == 0 {
		return err
	}
	err := r.file.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil && err != unix.EOPNOTSUPP {
		return r.fail("discard", off, n, err)
	}
	return r.written()
}

// WriteZeroes makes n bytes at off read as zeroes, giving up their storage if
// unmap says that it may.
func (r *Raw) WriteZeroes(off, n int64, unmap bool) error {
	if err := r.writable("zeroing", off, n); err != nil || n == 0 {
		return err
	}
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if unmap {
		mode = unix.FALLOC_FL_PUNCH_HOLE
	}
	err := r.file.fallocate(mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = r.file.writeZeroes(off, n)
	}
	if err != nil {
		return r.fail("zeroing", off, n, err)
	}
	return r.written()
}
