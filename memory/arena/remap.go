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
