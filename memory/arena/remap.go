package arena

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Lend puts the mapping src, with the pages that are mapped there, in the place
// of dst, in one step that no thread sees a half of. src stays a mapping of the
// same file with no page mapped. A registration with a userfaultfd and the
// write-protection of pages go with them. Both are page-aligned and as long as
// each other, and dst is part of a mapping made by Map.
//
// It returns when the userfaultfd's event of the move has been read.
func Lend(dst, src []byte) error {
	return remap(dst, src, len(src), unix.MREMAP_DONTUNMAP)
}

// Duplicate puts a further mapping of what src maps in the place of dst, with
// no page mapped yet. For the rest it is like Lend.
func Duplicate(dst, src []byte) error {
	return remap(dst, src, 0, 0)
}

func remap(dst, src []byte, size, flags int) error {
	_, err := unix.MremapPtr(unsafe.Pointer(unsafe.SliceData(src)), uintptr(size), unsafe.Pointer(unsafe.SliceData(dst)), uintptr(len(dst)), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED|flags)
	if err != nil {
		return fmt.Errorf("arena: remap %d bytes: %w", len(dst), err)
	}
	return nil
}

// Drop unmaps the pages of b, but not from the file: the next access finds them
// again.
func Drop(b []byte) error {
	if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("arena: drop %d bytes from a mapping: %w", len(b), err)
	}
	return nil
}

// Graft puts n pages of other from its page on, for reading only, in the place
// of those of the monitor's mapping from at on: Bytes shows them there. Prune
// ends it.
func (a *Arena) Graft(at uint64, other *Arena, page uint64, n int) error {
	return a.replace(at, other, page, n, unix.PROT_READ)
}

// Prune shows the arena's own pages again.
func (a *Arena) Prune(at uint64, n int) error {
	return a.replace(at, a, at, n, unix.PROT_READ|unix.PROT_WRITE)
}

func (a *Arena) replace(at uint64, from *Arena, page uint64, n, prot int) error {
	b := a.bytes[at*PageSize : (at+uint64(n))*PageSize]
	_, err := unix.MmapPtr(from.fd, int64(page*PageSize), unsafe.Pointer(&b[0]), uintptr(len(b)), prot, unix.MAP_SHARED|unix.MAP_NORESERVE|unix.MAP_FIXED)
	if err != nil {
		return fmt.Errorf("arena: map %d pages in the place of others: %w", n, err)
	}
	if err := unix.Madvise(b, unix.MADV_DONTDUMP); err != nil {
		return fmt.Errorf("arena: madvise: %w", err)
	}
	return a.advise(b)
}

// Fill writes p to the file from page on, whatever the mapping shows there.
func (a *Arena) Fill(page uint64, p []byte) error {
	for done := 0; done < len(p); {
		n, err := unix.Pwrite(a.fd, p[done:], int64(page*PageSize)+int64(done))
		if err != nil {
			return fmt.Errorf("arena: write %d bytes: %w", len(p), err)
		}
		done += n
	}
	return nil
}
