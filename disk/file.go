package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVectors bounds the buffers of one system call, which are as many as a request
// of a virtio disk has; more take several calls.
const maxVectors = 256

// file is a regular file or a block device that holds an image, locked. Its methods
// but close may be called from many goroutines. None allocates unless it fails.
type file struct {
	path     string
	fd       int          // buffered
	direct   int          // opened with O_DIRECT, or -1
	align    int          // what direct I/O needs of offsets, lengths and addresses
	block    int          // logical block size in bytes
	size     int64        // when it was opened
	grown    atomic.Int64 // what a container knows that it reaches to now
	readOnly bool
	device   bool // a block device
	calls    sync.Pool
}

// call is the memory of one system call, off the stack, which may move.
type call struct {
	vectors [maxVectors]unix.Iovec
	stat    unix.Stat_t
}

func openFile(path string, readOnly, direct bool) (*file, error) {
	f := &file{path: path, fd: -1, direct: -1, block: SectorSize, readOnly: readOnly}
	f.calls.New = func() any { return new(call) }
	if err := f.open(direct); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *file) open(direct bool) error {
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if f.readOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC
	}
	var st unix.Stat_t
	if err := unix.Stat(f.path, &st); err != nil {
		return explain(err, f.readOnly)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		f.device = true
	case unix.S_IFDIR:
		return errors.New("is a directory, not an image")
	default:
		return errors.New("is neither a file nor a block device")
	}
	var err error
	if f.fd, err = unix.Open(f.path, flags, 0); err != nil {
		f.fd = -1
		return explain(err, f.readOnly)
	}
	if err := f.lock(); err != nil {
		return err
	}
	if f.size, err = unix.Seek(f.fd, 0, io.SeekEnd); err != nil {
		return fmt.Errorf("finding its size: %w", err)
	}
	f.grown.Store(f.size)
	if f.size == 0 {
		return errors.New("is empty; make it larger, e.g. with truncate -s 1G")
	}
	if f.device {
		if f.block, err = unix.IoctlGetInt(f.fd, unix.BLKSSZGET); err != nil {
			return fmt.Errorf("finding its block size: %w", err)
		}
	}
	if direct {
		return f.openDirect(flags)
	}
	return nil
}

func (f *file) openDirect(flags int) error {
	fd, err := unix.Open(f.path, flags|unix.O_DIRECT, 0)
	if err != nil {
		return fmt.Errorf("direct I/O: %w; its filesystem may not support it", err)
	}
	f.direct = fd
	f.align = max(f.block, 4096)
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st) == nil &&
		st.Mask&unix.STATX_DIOALIGN != 0 && st.Dio_offset_align != 0 {
		f.align = int(max(st.Dio_offset_align, st.Dio_mem_align))
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

func (f *file) close() error {
	if f.fd >= 0 {
		f.unlock()
	}
	var errs []error
	for _, fd := range []*int{&f.direct, &f.fd} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	return errors.Join(errs...)
}

// sizeNow is the size of the file, which others may have changed.
func (f *file) sizeNow() (int64, error) {
	if f.device {
		return f.size, nil
	}
	c := f.calls.Get().(*call)
	defer f.calls.Put(c)
	err := unix.Fstat(f.fd, &c.stat)
	return c.stat.Size, err
}

// errEnd says that a read met the end of the file after what it moved.
var errEnd = errors.New("the end of the file")

// transfer moves all n bytes of bufs, with as many calls as that takes, and says
// how many it did.
func (f *file) transfer(trap uintptr, bufs [][]byte, off, n int64) (done int64, err error) {
	c := f.calls.Get().(*call)
	used := 0 // of c.vectors
	defer func() {
		clear(c.vectors[:used])
		f.calls.Put(c)
	}()
	skip := 0 // bytes of bufs[0] already moved
	for done < n {
		count, aligned := 0, f.aligned(uintptr(off))
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
			aligned = aligned && f.aligned(uintptr(unsafe.Pointer(c.vectors[count].Base))|uintptr(len(b)))
			count++
		}
		used = max(used, count)
		fd := f.fd
		if aligned {
			fd = f.direct
		}
		moved, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&c.vectors[0])), uintptr(count), uintptr(off), 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return done, errno
		case moved == 0:
			return done, errEnd
		}
		off += int64(moved)
		done += int64(moved)
		for left := int(moved); left > 0; {
			m := min(left, len(bufs[0])-skip)
			left -= m
			if skip += m; skip == len(bufs[0]) {
				bufs, skip = bufs[1:], 0
			}
		}
	}
	runtime.KeepAlive(bufs)
	return done, nil
}

// aligned says whether v, an or of values, suits direct I/O.
func (f *file) aligned(v uintptr) bool { return f.direct >= 0 && v%uintptr(f.align) == 0 }

func (f *file) sync() error {
	for {
		if err := unix.Fdatasync(f.fd); err != unix.EINTR {
			return err
		}
	}
}

// fallocate returns EOPNOTSUPP for everything that another way may do better.
func (f *file) fallocate(mode uint32, off, n int64) error {
	for {
		err := unix.Fallocate(f.fd, mode, off, n)
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

// zeroes are aligned to pages: a write that a kill interrupts ends where a page of
// its source does, which must not be within a sector.
var zeroes = func() []byte {
	b := make([]byte, 64<<10+4096)
	return b[-uintptr(unsafe.Pointer(&b[0]))%4096:][:64<<10]
}()

func (f *file) writeZeroes(off, n int64) error {
	const most = 16
	var bufs [most][]byte
	for n > 0 {
		part, count := int64(0), 0
		for ; count < most && part < n; count++ {
			bufs[count] = zeroes[:min(int64(len(zeroes)), n-part)]
			part += int64(len(bufs[count]))
		}
		if _, err := f.transfer(unix.SYS_PWRITEV, bufs[:count], off, part); err != nil {
			return err
		}
		off += part
		n -= part
	}
	return nil
}
