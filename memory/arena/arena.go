// Package arena owns the files that guest memory lives in: memfds, the monitor's
// own linear mapping of each, and the further mappings (Views are built from
// them) through which KVM sees the same pages; on which node their pages are
// made and moved to; and the budget of mappings of the process.
//
// The monitor reads and writes guest bytes only through [Arena.Bytes]. That
// mapping is never given to KVM and never registered with userfaultfd, so a
// Go copy() on it can not wait for a fault handler goroutine that itself waits
// for the garbage collector.
//
// Not done here: what a page means, who may see it, and where it should live.
// Nodes are the kernel's own numbers.
package arena

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PageSize is the size in bytes of the smallest page that is mapped or moved.
const PageSize = 4096

// hugePageSize is the transparent huge page of x86-64.
const hugePageSize = 2 << 20

// Huge says how large the pages are.
type Huge int

const (
	// HugeTHP asks for transparent huge pages, which a kernel whose shmem_enabled
	// forbids them does not give.
	HugeTHP Huge = iota
	// HugeOff asks for small pages.
	HugeOff
	// Huge2M is as HugeTHP for mappings; Fuse makes the pages.
	Huge2M
)

// Arena is one sparse memfd and the monitor's mapping of all of it.
// Its methods may be called from many goroutines, except Close and where a
// method says so.
type Arena struct {
	fd    int
	size  uint64
	huge  Huge
	bytes []byte
	batch batch
	users users
}

// New makes a sparse, unlinked memory file of size bytes (a positive multiple
// of PageSize) and maps it. name is shown in /proc/PID/maps. The caller owns
// the Arena and must Close it after every mapping made by Map is gone.
func New(name string, size uint64, huge Huge) (*Arena, error) {
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
	a := &Arena{fd: fd, size: size, huge: huge}
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
func (a *Arena) Size() uint64 { return a.size }

// Resident is how much of the file there is, in bytes, wherever it is mapped; all
// of it if the kernel does not tell.
func (a *Arena) Resident() uint64 {
	var st unix.Stat_t
	if unix.Fstat(a.fd, &st) != nil {
		return a.size
	}
	return uint64(st.Blocks) * 512
}

// FD is the memfd. It stays the Arena's own.
func (a *Arena) FD() int { return a.fd }

// Bytes is the monitor's mapping of the whole file. Guests change it at any
// moment: whoever parses what lies there copies it out first.
func (a *Arena) Bytes() []byte { return a.bytes }

// Map maps the whole file once more, shared, readable and writable, with the
// arena's advice on huge pages. It needs every mapping's advice, as whichever
// touches a page first decides its size, and addresses that differ from file
// offsets by whole huge pages. The caller owns the mapping and ends it with
// Unmap.
func (a *Arena) Map() ([]byte, error) {
	// The kernel aligns a mapping of shmem only where huge pages are the
	// default, so we look for the place ourselves: reserve too much, map over
	// the aligned part, and give the rest back.
	total := uintptr(a.size) + hugePageSize
	at, err := unix.MmapPtr(-1, 0, nil, total, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("arena: reserve %d bytes of address space: %w", total, err)
	}
	head := -uintptr(at) & (hugePageSize - 1)
	place := unsafe.Add(at, head)
	if _, err := unix.MmapPtr(a.fd, 0, place, uintptr(a.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE|unix.MAP_FIXED); err != nil {
		return nil, errors.Join(fmt.Errorf("arena: map %d bytes: %w", a.size, err), unix.MunmapPtr(at, total))
	}
	if head > 0 {
		err = unix.MunmapPtr(at, head)
	}
	b := unsafe.Slice((*byte)(place), a.size)
	if e := unix.MunmapPtr(unsafe.Add(place, a.size), hugePageSize-head); err == nil {
		err = e
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("arena: trim a mapping: %w", err), Unmap(b))
	}
	if err := a.advise(b); err != nil {
		return nil, errors.Join(err, Unmap(b))
	}
	return b, nil
}

func (a *Arena) advise(b []byte) error {
	advice := unix.MADV_HUGEPAGE
	if a.huge == HugeOff {
		advice = unix.MADV_NOHUGEPAGE
	}
	// EINVAL is a kernel built without huge pages.
	if err := unix.Madvise(b, advice); err != nil && err != unix.EINVAL {
		return fmt.Errorf("arena: advise on huge pages: %w", err)
	}
	return nil
}

// Unmap ends a mapping made by Map.
func Unmap(b []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)))
}

// Close unmaps and frees the file. Pages live on while other mappings do.
func (a *Arena) Close() error {
	err := Unmap(a.bytes)
	a.bytes = nil
	return errors.Join(err, unix.Close(a.fd))
}
