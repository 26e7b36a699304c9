package folder

import (
	"strconv"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// file is an open file or directory of a guest.
type file struct {
	fd    int
	dir   *listing // of a directory
	users sync.WaitGroup
}

// files are those that a guest has open.
type files struct {
	mu   sync.Mutex
	byFH map[uint64]*file
	next uint64
	most int
}

// add takes fd, error or not.
func (t *files) add(fd int, dir *listing) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byFH) >= t.most {
		_ = unix.Close(fd)
		return 0, unix.ENFILE
	}
	if t.byFH == nil {
		t.byFH = map[uint64]*file{}
	}
	t.next++
	t.byFH[t.next] = &file{fd: fd, dir: dir}
	return t.next, nil
}

// use gives an open file, until its users are told Done.
func (t *files) use(fh uint64) (*file, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.byFH[fh]
	if h == nil {
		return nil, unix.EBADF
	}
	h.users.Add(1)
	return h, nil
}

// close ends an open file once nobody uses it.
func (t *files) close(fh uint64) {
	t.mu.Lock()
	h := t.byFH[fh]
	delete(t.byFH, fh)
	t.mu.Unlock()
	if h != nil {
		h.users.Wait()
		_ = unix.Close(h.fd)
	}
}

func (t *files) closeAll() {
	t.mu.Lock()
	all := t.byFH
	t.byFH = nil
	t.mu.Unlock()
	for _, h := range all {
		h.users.Wait()
		_ = unix.Close(h.fd)
	}
}

func (t *files) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byFH)
}

// openFlags are those that a guest may choose. O_DIRECT is not among them: what
// it asks of buffers is a matter between the guest's kernel and its processes.
const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC

// wants says whether flags ask to change a file.
func wants(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
}

// magic is the name in /proc/self/fd that leads to the file behind fd, and never
// elsewhere.
func magic(fd int) string { return strconv.Itoa(fd) }

// reopen opens the regular file or directory behind an O_PATH descriptor. Others
// are refused: a FIFO would wait, and a device do what it does.
func (f *Folder) reopen(fd int, kind uint32, flags int) (int, error) {
	_, is, err := identify(fd)
	switch {
	case err != nil:
		return -1, err
	case is == unix.S_IFLNK:
		return -1, unix.ELOOP
	case is != kind && is == unix.S_IFDIR:
		return -1, unix.EISDIR
	case is != kind && kind == unix.S_IFDIR:
		return -1, unix.ENOTDIR
	case is != kind:
		return -1, unix.ENXIO
	}
	for {
		fd, err := unix.Openat(f.proc, magic(fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// openNode opens the regular file that a node is.
func (f *Folder) openNode(id uint64, flags int) (int, error) {
	n, fd, err := f.nodes.use(id)
	if err != nil {
		return -1, err
	}
	defer f.nodes.done(n)
	return f.reopen(fd, unix.S_IFREG, flags)
}

// Open opens a regular file.
func (f *Folder) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if f.cfg.ReadOnly && wants(in.Flags) {
		return fuse.EROFS
	}
	fd, err := f.openNode(in.NodeId, int(in.Flags&openFlags))
	if err == nil {
		out.Fh, err = f.files.add(fd, nil)
	}
	return status(err)
}

// Release closes one.
func (f *Folder) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.files.close(in.Fh) }

// ReadV fills buffers from an open file, and says how many bytes there were: fewer
// than asked for only at its end. It does not allocate.
func (f *Folder) ReadV(fh uint64, bufs [][]byte, off int64) (int, fuse.Status) {
	return f.vector(fh, bufs, off, unix.SYS_PREADV)
}

// WriteV writes buffers to an open file. What it says that it wrote is fewer bytes
// only with the disk full.
func (f *Folder) WriteV(fh uint64, bufs [][]byte, off int64) (int, fuse.Status) {
	if f.cfg.ReadOnly {
		return 0, fuse.EROFS
	}
	return f.vector(fh, bufs, off, unix.SYS_PWRITEV)
}

// maxVector is the kernel's limit (UIO_MAXIOV).
const maxVector = 1024

// vectors are for the kernel, of transfers under way.
var vectors = sync.Pool{New: func() any { return new([maxVector]unix.Iovec) }}

func (f *Folder) vector(fh uint64, bufs [][]byte, off int64, call uintptr) (int, fuse.Status) {
	if off < 0 {
		return 0, fuse.EINVAL
	}
	h, err := f.files.use(fh)
	if err != nil {
		return 0, fuse.EBADF
	}
	defer h.users.Done()
	if h.dir != nil {
		return 0, fuse.EISDIR
	}
	iov := vectors.Get().(*[maxVector]unix.Iovec)
	defer vectors.Put(iov)
	total, first := 0, 0 // bytes done, of bufs[0] those already done
	for {
		count := 0
		for i, b := range bufs[:min(len(bufs), maxVector)] {
			if i == 0 {
				b = b[first:]
			}
			if len(b) > 0 {
				iov[count].Base = unsafe.SliceData(b)
				iov[count].SetLen(len(b))
				count++
			}
		}
		if count == 0 {
			if len(bufs) > maxVector {
				bufs, first = bufs[maxVector:], 0
				continue
			}
			return total, fuse.OK
		}
		r, _, errno := unix.Syscall6(call, uintptr(h.fd), uintptr(unsafe.Pointer(iov)), uintptr(count), uintptr(off), 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0 && total == 0:
			return 0, fuse.Status(errno)
		case errno != 0 || r == 0:
			return total, fuse.OK
		}
		n := int(r)
		total += n
		off += int64(n)
		for n > 0 {
			left := len(bufs[0]) - first
			if n < left {
				first += n
				break
			}
			n -= left
			bufs, first = bufs[1:], 0
		}
	}
}

// withFile calls do with an open regular file.
func (f *Folder) withFile(fh uint64, do func(fd int) error) fuse.Status {
	h, err := f.files.use(fh)
	if err != nil {
		return fuse.EBADF
	}
	defer h.users.Done()
	if h.dir != nil {
		return fuse.EISDIR
	}
	for {
		if err := do(h.fd); err != unix.EINTR {
			return status(err)
		}
	}
}

// Flush comes at every close of a descriptor in the guest; the host, too, tells
// then of errors that it kept.
func (f *Folder) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return f.withFile(in.Fh, func(fd int) error {
		copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(copied)
	})
}

// fsyncData asks for the data alone (FUSE_FSYNC_FDATASYNC).
const fsyncData = 1

// Fsync returns when a file is on stable storage.
func (f *Folder) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.withFile(in.Fh, func(fd int) error {
		if in.FsyncFlags&fsyncData != 0 {
			return unix.Fdatasync(fd)
		}
		return unix.Fsync(fd)
	})
}

// Fallocate makes room in a file, or takes it.
func (f *Folder) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if f.cfg.ReadOnly {
		return fuse.EROFS
	}
	return f.withFile(in.Fh, func(fd int) error {
		return unix.Fallocate(fd, in.Mode, int64(in.Offset), int64(in.Length))
	})
}

// Lseek finds data and holes; the guest's kernel knows about all else.
func (f *Folder) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	return f.withFile(in.Fh, func(fd int) error {
		at, err := unix.Seek(fd, int64(in.Offset), int(in.Whence))
		out.Offset = uint64(at)
		return err
	})
}

// maxCopy bounds what one request copies, in bytes: it runs to its end before the
// device can stop.
const maxCopy = 64 << 20

// CopyFileRange copies from file to file, within the host.
func (f *Folder) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if f.cfg.ReadOnly {
		return 0, fuse.EROFS
	}
	var n int
	s := f.withFile(in.FhIn, func(from int) error {
		s := f.withFile(in.FhOut, func(to int) (err error) {
			offIn, offOut := int64(in.OffIn), int64(in.OffOut)
			n, err = unix.CopyFileRange(from, &offIn, to, &offOut, int(min(in.Len, maxCopy)), int(uint32(in.Flags)))
			return err
		})
		if s != fuse.OK {
			return unix.Errno(s)
		}
		return nil
	})
	return uint32(max(n, 0)), s
}

// OpenMap opens the regular file that a node is, to be mapped from off on for n
// bytes. Where it is to be written, the room for what the file has there is made
// first: a store into a mapping cannot be told of a full disk. The caller closes
// the descriptor.
func (f *Folder) OpenMap(id uint64, off, n int64, write bool) (int, fuse.Status) {
	if off < 0 || n <= 0 || off+n < 0 {
		return -1, fuse.EINVAL
	}
	if !write {
		fd, err := f.openNode(id, unix.O_RDONLY)
		return fd, status(err)
	}
	if f.cfg.ReadOnly {
		return -1, fuse.EROFS
	}
	fd, err := f.openNode(id, unix.O_RDWR)
	if err != nil {
		return -1, status(err)
	}
	if err := fill(fd, off, n); err != nil {
		_ = unix.Close(fd)
		return -1, status(err)
	}
	return fd, fuse.OK
}

// Size is how long the regular file that a node is is now, in bytes. ESTALE is for one
// that might not be found again: it has no name, and too many have none.
func (f *Folder) Size(id uint64) (int64, fuse.Status) {
	n, fd, err := f.nodes.use(id)
	if err != nil {
		return 0, status(err)
	}
	defer f.nodes.done(n)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, status(err)
	}
	if st.Nlink == 0 {
		f.nodes.mu.Lock()
		held := f.nodes.hold(n)
		f.nodes.mu.Unlock()
		if !held {
			return 0, fuse.Status(unix.ESTALE)
		}
	}
	return st.Size, fuse.OK
}

// fill makes room for the holes of a file in a range.
func fill(fd int, off, n int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	n = min(n, st.Size-off)
	if n <= 0 {
		return nil
	}
	if hole, err := unix.Seek(fd, off, unix.SEEK_HOLE); err == nil && hole >= off+n {
		return nil
	}
	err := unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == unix.EOPNOTSUPP {
		return nil
	}
	return err
}
