package disk

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadV fills bufs, in order, from the image at off. If the image has shrunk
// since it was opened, what is gone reads as an I/O error (EIO).
func (r *Raw) ReadV(bufs [][]byte, off int64) error {
	n := length(bufs)
	if err := r.check("read", off, n); err != nil {
		return err
	}
	if err := r.transfer(unix.SYS_PREADV, bufs, off, n); err != nil {
		return r.fail("read", off, n, err)
	}
	return nil
}

// WriteV writes bufs, in order, to the image at off. If the image has shrunk
// since it was opened, writing to what is gone is an I/O error (EIO): it does
// not grow again. A guest sees the data on stable storage only after Flush.
func (r *Raw) WriteV(bufs [][]byte, off int64) error {
	n := length(bufs)
	err := r.writable("write", off, n)
	if err != nil {
		return err
	}
	if err := r.transfer(unix.SYS_PWRITEV, bufs, off, n); err != nil {
		return r.fail("write", off, n, err)
	}
	return nil
}

func length(bufs [][]byte) int64 {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// writable refuses writes to a read-only image, or beyond its end as it was or
// as it is now.
func (r *Raw) writable(what string, off, n int64) error {
	if err := r.check(what, off, n); err != nil {
		return err
	}
	if r.readOnly {
		return r.fail(what, off, n, unix.EROFS)
	}
	if r.device {
		return nil
	}
	c := r.calls.Get().(*call)
	defer r.calls.Put(c)
	if err := unix.Fstat(r.fd, &c.stat); err != nil {
		return r.fail(what, off, n, err)
	}
	if c.stat.Size < off+n {
		return r.fail(what, off, n, unix.EIO)
	}
	return nil
}

// transfer moves all n bytes of bufs, with as many calls as that takes.
func (r *Raw) transfer(trap uintptr, bufs [][]byte, off, n int64) error {
	c := r.calls.Get().(*call)
	defer r.calls.Put(c)
	defer clear(c.vectors[:])
	skip := 0 // bytes of bufs[0] already moved
	for n > 0 {
		count, aligned := 0, r.aligned(uintptr(off))
		for i, b := range bufs {
			if i == 0 {
				b = b[skip:]
			}
			if len(b) == 0 {
				continue
			}
			if count == maxVectors {
				break
			}
			c.vectors[count].Base = unsafe.SliceData(b)
			c.vectors[count].SetLen(len(b))
			aligned = aligned && r.aligned(uintptr(unsafe.Pointer(c.vectors[count].Base))|uintptr(len(b)))
			count++
		}
		fd := r.fd
		if aligned {
			fd = r.direct
		}
		moved, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&c.vectors[0])), uintptr(count), uintptr(off), 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return errno
		case moved == 0:
			return unix.EIO // the end of a file that has shrunk
		}
		off += int64(moved)
		n -= int64(moved)
		for left := int(moved); left > 0; {
			m := min(left, len(bufs[0])-skip)
			left -= m
			if skip += m; skip == len(bufs[0]) {
				bufs, skip = bufs[1:], 0
			}
		}
	}
	runtime.KeepAlive(bufs)
	return nil
}

// aligned says whether v, an or of values, suits direct I/O.
func (r *Raw) aligned(v uintptr) bool { return r.direct >= 0 && v%uintptr(r.align) == 0 }

// Flush returns when all writes that have returned are on stable storage.
func (r *Raw) Flush() error {
	if r.readOnly {
		return nil
	}
	for {
		switch err := unix.Fdatasync(r.fd); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return r.fail("flush", 0, r.size, err)
		}
	}
}

// Discard tells the host that n bytes at off are of no use any more. What they
// read as afterwards is zeroes or what was there; a host that cannot discard
// does nothing.
func (r *Raw) Discard(off, n int64) error {
	if err := r.writable("discard", off, n); err != nil || n == 0 {
		return err
	}
	if err := r.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n); err != nil && err != unix.EOPNOTSUPP {
		return r.fail("discard", off, n, err)
	}
	return nil
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
	err := r.fallocate(mode, off, n)
	if err == unix.EOPNOTSUPP {
		err = r.writeZeroes(off, n)
	}
	if err != nil {
		return r.fail("zeroing", off, n, err)
	}
	return nil
}

// fallocate returns EOPNOTSUPP for everything that another way may do better.
func (r *Raw) fallocate(mode uint32, off, n int64) error {
	for {
		err := unix.Fallocate(r.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch err {
		case unix.EINTR:
			continue
		case unix.ENOSYS, unix.ENODEV:
			return unix.EOPNOTSUPP
		case unix.EINVAL: // a block device, not aligned to its blocks
			return unix.EOPNOTSUPP
		}
		return err
	}
}

var zeroes [64 << 10]byte

func (r *Raw) writeZeroes(off, n int64) error {
	const most = 16
	var bufs [most][]byte
	for n > 0 {
		part, count := int64(0), 0
		for ; count < most && part < n; count++ {
			bufs[count] = zeroes[:min(int64(len(zeroes)), n-part)]
			part += int64(len(bufs[count]))
		}
		if err := r.transfer(unix.SYS_PWRITEV, bufs[:count], off, part); err != nil {
			return err
		}
		off += part
		n -= part
	}
	return nil
}
