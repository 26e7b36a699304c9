package fs

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"disco/memory/arena"
)

// A window is mapped in pieces of 2 MiB, aligned in the window and in the file:
// what Linux asks for (FUSE_DAX_SHIFT), and all that it is offered
// (map_alignment). So its mappings are bounded by its size.
const (
	pieceShift = 21
	piece      = 1 << pieceShift
	pageSize   = arena.PageSize
)

// MinWindow is the smallest window, in bytes; its size is a power of two.
const MinWindow = piece

// Window is address space of this process in which parts of files are mapped for a
// guest. It costs nothing but mappings: those that it may come to have are reserved
// in arena.VMAs. Nothing here reads or writes it: an access behind the end of a
// file is a fault that would end the process.
type Window struct {
	memory []byte // PROT_NONE where nothing is mapped

	mu       sync.Mutex
	pieces   []Piece
	mapped   atomic.Uint64 // bytes of files
	mappings atomic.Uint64
}

// Piece is a part of a file that is mapped in a window.
type Piece struct {
	Device, Inode uint64 // of the file
	Offset        int64  // in it, a multiple of 2 MiB
	Bytes         uint64 // of the file there, when it was mapped; at most 2 MiB
	mapped        bool
}

// Same is equal for pieces of the same place of the same file, which show the same
// pages.
func (p Piece) Same() Piece { return Piece{Device: p.Device, Inode: p.Inode, Offset: p.Offset} }

// ErrMappings says that this process may not have so many mappings.
var ErrMappings = errors.New("not enough memory mappings: raise vm.max_map_count")

// NewWindow reserves a window of size bytes, a power of two from MinWindow. The
// caller closes it once no VM has it.
func NewWindow(size uint64) (*Window, error) {
	if size < MinWindow || size&(size-1) != 0 {
		return nil, fmt.Errorf("a window of %d bytes is no power of two from %d", size, MinWindow)
	}
	w := &Window{pieces: make([]Piece, size/piece)}
	if !arena.VMAs.Reserve(int64(len(w.pieces))) {
		return nil, ErrMappings
	}
	// Aligned like the pieces, so that huge pages of a file can be used as such.
	all, err := unix.MmapPtr(-1, 0, nil, uintptr(size+piece), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		arena.VMAs.Add(-int64(len(w.pieces)))
		return nil, fmt.Errorf("window of %d bytes: %w", size, err)
	}
	before := -uintptr(all) & (piece - 1)
	start := unsafe.Add(all, before)
	if before > 0 {
		_ = unix.MunmapPtr(all, before)
	}
	if after := piece - before; after > 0 {
		_ = unix.MunmapPtr(unsafe.Add(start, uintptr(size)), after)
	}
	w.memory = unsafe.Slice((*byte)(start), size)
	return w, nil
}

// Bytes is the window, for a VM's memory slot. It must not be read or written.
func (w *Window) Bytes() []byte { return w.memory }

// Mapped is how many bytes of files are in it now, Mappings how often some were
// put there.
func (w *Window) Mapped() uint64   { return w.mapped.Load() }
func (w *Window) Mappings() uint64 { return w.mappings.Load() }

// holds says whether n bytes from at are pieces of the window.
func (w *Window) holds(at, n uint64) bool {
	size := uint64(len(w.memory))
	return at%piece == 0 && n%piece == 0 && n > 0 && n <= size && at <= size-n
}

// place is where the bytes from at are.
func (w *Window) place(at uint64) unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(unsafe.SliceData(w.memory)), uintptr(at))
}

// put maps n bytes of fd from off on, in place of what is there. The arguments are
// such that holds.
func (w *Window) put(at, n uint64, fd int, off int64, write bool) fuse.Status {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fuse.ToStatus(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := unix.MmapPtr(fd, off, w.place(at), uintptr(n), prot, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		return fuse.ToStatus(err)
	}
	w.mappings.Add(1)
	for i := uint64(0); i < n; i += piece {
		p := Piece{Device: st.Dev, Inode: st.Ino, Offset: off + int64(i), mapped: true}
		p.Bytes = uint64(min(max(st.Size-p.Offset, 0), piece))
		w.set(at+i, p)
	}
	return fuse.OK
}

// take unmaps n bytes.
func (w *Window) take(at, n uint64) fuse.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fuse.ToStatus(w.reserve(at, n))
}

// reserve is called with mu held.
func (w *Window) reserve(at, n uint64) error {
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE | unix.MAP_FIXED
	if _, err := unix.MmapPtr(-1, 0, w.place(at), uintptr(n), unix.PROT_NONE, flags); err != nil {
		return err
	}
	for i := uint64(0); i < n; i += piece {
		w.set(at+i, Piece{})
	}
	return nil
}

// set says what is at a piece of the window now.
func (w *Window) set(at uint64, p Piece) {
	was := &w.pieces[at/piece]
	w.mapped.Add(p.Bytes - was.Bytes)
	*was = p
}

// Pieces appends what is mapped.
func (w *Window) Pieces(dst []Piece) []Piece {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.pieces {
		if p.mapped {
			dst = append(dst, p)
		}
	}
	return dst
}

// Clear unmaps all.
func (w *Window) Clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.ContainsFunc(w.pieces, func(p Piece) bool { return p.mapped }) {
		return
	}
	if err := w.reserve(0, uint64(len(w.memory))); err != nil {
		panic(fmt.Sprintf("fs: a window cannot be cleared: %v", err))
	}
}

// Close gives the address space back.
func (w *Window) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.memory == nil {
		return nil
	}
	err := unix.MunmapPtr(w.place(0), uintptr(len(w.memory)))
	arena.VMAs.Add(-int64(len(w.pieces)))
	w.memory, w.pieces = nil, nil
	w.mapped.Store(0)
	return err
}

// mend puts zeros where a file that is mapped has no page any more, and says how
// many pages. Which those are the kernel tells (madvise(2), MADV_POPULATE_READ).
func (w *Window) mend() (pages uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, p := range w.pieces {
		at := uint64(i) * piece
		if !p.mapped || w.reaches(at, piece) {
			continue
		}
		for end := at + piece; at < end; at += pageSize {
			if w.reaches(at, pageSize) {
				continue
			}
			const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED
			if _, err := unix.MmapPtr(-1, 0, w.place(at), pageSize, unix.PROT_READ|unix.PROT_WRITE, flags); err == nil {
				pages++
			}
		}
	}
	return pages
}

// reaches says whether all pages of a range exist. Only an access that would fail
// counts as none: no other reason makes a page go.
func (w *Window) reaches(at, n uint64) bool {
	for {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(w.place(at)), uintptr(n), unix.MADV_POPULATE_READ)
		if errno != unix.EINTR && errno != unix.EAGAIN {
			return errno != unix.EFAULT
		}
	}
}
