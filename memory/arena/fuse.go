package arena

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Fuse makes all pages of n bytes from off on, in transparent huge pages where
// the range holds a whole one, whatever sysfs says of them: unlike pages of
// hugetlbfs these need no pool, and can be moved, split and watched in part. Each
// is on the node that the policy chooses for its first page. It fails if the
// kernel finds no 2 MiB in one piece, or has no MADV_COLLAPSE (Linux 6.1).
func (a *Arena) Fuse(off, n uint64) error {
	end := off + n
	for i := off; i < end; i += PageSize {
		if i%hugePageSize == 0 && end-i >= hugePageSize {
			b := a.bytes[i : i+hugePageSize]
			if err := unix.Madvise(b[:PageSize], unix.MADV_POPULATE_WRITE); err != nil {
				return fmt.Errorf("arena: make a page: %w", err)
			}
			err := unix.Madvise(b, unix.MADV_COLLAPSE)
			for try := 0; try < 3 && (err == unix.EAGAIN || err == unix.EBUSY); try++ {
				err = unix.Madvise(b, unix.MADV_COLLAPSE)
			}
			if err != nil {
				return fmt.Errorf("arena: no 2 MiB page after %d of them: %w", (i-off)/hugePageSize, err)
			}
			i += hugePageSize - PageSize
			continue
		}
		if err := unix.Madvise(a.bytes[i:i+PageSize], unix.MADV_POPULATE_WRITE); err != nil {
			return fmt.Errorf("arena: make a page: %w", err)
		}
	}
	return nil
}
