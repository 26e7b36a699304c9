// Package arena owns the files that guest memory lives in: memfds, the monitor's
// own linear mapping of each, and the further mappings (Views are built from
// them) through which KVM sees the same pages.
//
// The monitor reads and writes guest bytes only through [Arena.Bytes]. That
// mapping is never given to KVM and never registered with userfaultfd, so a
// Go copy() on it can not wait for a fault handler goroutine that itself waits
// for the garbage collector.
//
// Not done here: what a page means, who may see it, and where it should live.
package arena

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// PageSize is the size in bytes of the smallest page that is mapped or moved.
const PageSize = 4096

// Arena is one sparse memfd and the monitor's mapping of all of it.
// Its methods may be called from many goroutines, except Close.
type Arena struct {
	fd    int
	bytes []byte
}

// New makes a sparse, unlinked memory file of size bytes (a positive multiple
// of PageSize) and maps it. name is shown in /proc/PID/maps. The caller owns
// the Arena and must Close it after every mapping made by Map is gone.
func New(name string, size uint64) (*Arena, error) {
	if size == 0 || size%PageSize != 0 {
		return nil, fmt.Errorf("arena %s: size %d is no positive multiple of %d", name, size, PageSize)
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("arena %s: memfd_create: %w", name, err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("arena %s: size to %d bytes: %w", name, size, err), unix.Close(fd))
	}
	a := &Arena{fd: fd}
	a.bytes, err = a.Map()
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// A core dump of the monitor should not hold the guests' memory.
	if err := unix.Madvise(a.bytes, unix.MADV_DONTDUMP); err != nil {
		return nil, errors.Join(fmt.Errorf("arena %s: madvise: %w", name, err), a.Close())
	}
	return a, nil
}

// Size is the length of the file in bytes.
func (a *Arena) Size() uint64 { return uint64(len(a.bytes)) }

// FD is the memfd. It stays the Arena's own.
func (a *Arena) FD() int { return a.fd }

// Bytes is the monitor's mapping of the whole file. Guests change it at any
// moment: whoever parses what lies there copies it out first.
func (a *Arena) Bytes() []byte { return a.bytes }

// Map maps the whole file once more, shared, readable and writable. The caller
// owns the mapping and ends it with Unmap.
func (a *Arena) Map() ([]byte, error) {
	size := a.Size()
	if a.bytes == nil {
		var st unix.Stat_t
		if err := unix.Fstat(a.fd, &st); err != nil {
			return nil, fmt.Errorf("arena: fstat: %w", err)
		}
		size = uint64(st.Size)
	}
	b, err := unix.Mmap(a.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("arena: map %d bytes: %w", size, err)
	}
	return b, nil
}

// Unmap ends a mapping made by Map.
func Unmap(b []byte) error { return unix.Munmap(b) }

// AdviseHuge asks for transparent huge pages behind a mapping made by Map. It
// is advice: a kernel whose shmem_enabled forbids it says nothing.
func AdviseHuge(b []byte) error { return unix.Madvise(b, unix.MADV_HUGEPAGE) }

// Close unmaps and frees the file. Pages live on while other mappings do.
func (a *Arena) Close() error {
	err := unix.Munmap(a.bytes)
	a.bytes = nil
	return errors.Join(err, unix.Close(a.fd))
}
