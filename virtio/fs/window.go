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
	cuts     atomic.Int64 // pieces with zeros
}

// Piece is a part of a file that is mapped in a window.
type Piece struct {
	Device, Inode uint64 // of the file
	Offset        int64  // in it, a multiple of 2 MiB
	Bytes         uint64 // of the file there, when it was last looked at; at most 2 MiB
	mapped        bool
	node          uint64
	write         bool
	cut           bool   // there are zeros in place of the file,
	end           uint64 // from here on, a whole number of pages
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
	if !arena.VMAs.Reserve(w.most()) {
		return nil, ErrMappings
	}
	// Aligned like the pieces, so that huge pages of a file can be used as such.
	all, err := unix.MmapPtr(-1, 0, nil, uintptr(size+piece), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		arena.VMAs.Add(-w.most())
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

// most is how many mappings it may come to have: a piece's file, and zeros behind
// its end.
func (w *Window) most() int64 { return 2 * int64(len(w.pieces)) }

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

// put maps n bytes of fd, which is node's, from off on, in place of what is there. The
// arguments are such that holds.
func (w *Window) put(at, n uint64, fd int, off int64, node uint64, write bool) fuse.Status {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fuse.ToStatus(err)
	}
	if st.Size <= off {
		return fuse.EIO // it has become shorter than the guest knows
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := unix.MmapPtr(fd, off, w.place(at), uintptr(n), prot, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		return fuse.ToStatus(err)
	}
	w.mappings.Add(1)
	for i := uint64(0); i < n; i += piece {
		p := Piece{Device: st.Dev, Inode: st.Ino, Offset: off + int64(i), mapped: true, node: node, write: write}
		p.Bytes = p.of(st.Size)
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
	if was.cut {
		w.cuts.Add(-1)
	}
	w.mapped.Add(p.Bytes - was.Bytes)
	*was = p
}

// of is how much of a file of that size is in the piece.
func (p *Piece) of(size int64) uint64 { return uint64(min(max(size-p.Offset, 0), piece)) }

// files is what a window asks of the files mapped in it.
type files interface {
	Size(node uint64) (int64, fuse.Status)
	OpenMap(node uint64, off, n int64, write bool) (int, fuse.Status)
}

// follow looks at the sizes of the files that are mapped, and puts zeros where one
// has become shorter, and the file again where one has become longer after that. With
// grown it looks at those alone that have zeros. It says how many pages were replaced.
func (w *Window) follow(f files, grown bool) (pages uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.pieces {
		p, at := &w.pieces[i], uint64(i)*piece
		if !p.mapped || grown && !p.cut {
			continue
		}
		size, s := f.Size(p.node)
		if s != fuse.OK {
			continue
		}
		now := p.of(size)
		end := (now + pageSize - 1) &^ (pageSize - 1)
		switch {
		case p.cut && end > p.end:
			if !w.restore(f, at, p) {
				continue
			}
			w.cutAt(at, p, end)
		case p.cut && end < p.end, !p.cut && now < p.Bytes && end < piece:
			before := uint64(piece)
			if p.cut {
				before = p.end
			}
			if w.cutAt(at, p, end) {
				pages += (before - end) / pageSize
			}
		}
		w.mapped.Add(now - p.Bytes)
		p.Bytes = now
	}
	return pages
}

// cutAt puts zeros from end on into the piece at at.
func (w *Window) cutAt(at uint64, p *Piece, end uint64) bool {
	if end < piece {
		const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE | unix.MAP_FIXED
		if _, err := unix.MmapPtr(-1, 0, w.place(at+end), uintptr(piece-end), unix.PROT_READ|unix.PROT_WRITE, flags); err != nil {
			return false
		}
	}
	if !p.cut {
		w.cuts.Add(1)
	}
	p.cut, p.end = true, end
	return true
}

// restore maps the file again, in all of a piece.
func (w *Window) restore(f files, at uint64, p *Piece) bool {
	fd, s := f.OpenMap(p.node, p.Offset, piece, p.write)
	if s != fuse.OK {
		return false
	}
	defer unix.Close(fd)
	prot := unix.PROT_READ
	if p.write {
		prot |= unix.PROT_WRITE
	}
	_, err := unix.MmapPtr(fd, p.Offset, w.place(at), piece, prot, unix.MAP_SHARED|unix.MAP_FIXED)
	return err == nil
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
	arena.VMAs.Add(-w.most())
	w.memory, w.pieces = nil, nil
	w.mapped.Store(0)
	return err
}
