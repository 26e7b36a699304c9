package arena

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Policy says on which of the kernel's nodes the pages of an arena are made. It
// is the file's: it holds for every mapping and every thread.
type Policy int

const (
	// Preferred is one node, and others when it is full.
	Preferred Policy = unix.MPOL_PREFERRED
	// Interleave takes the nodes in turn, page by page.
	Interleave Policy = unix.MPOL_INTERLEAVE
	// Balanced is any of the nodes, with the kernel's own NUMA balancing at work,
	// which leaves shared memory alone otherwise.
	Balanced Policy = unix.MPOL_BIND | unix.MPOL_F_NUMA_BALANCING
)

// maxNodes is more than any kernel for x86-64 is built with (CONFIG_NODES_SHIFT).
const maxNodes = 1024

// Place sets the policy for pages that are made from now on. Those that are
// there stay.
func (a *Arena) Place(p Policy, nodes ...int) error {
	var mask [maxNodes / 64]uint64
	for _, n := range nodes {
		if n < 0 || n >= maxNodes {
			return fmt.Errorf("arena: no node %d", n)
		}
		mask[n/64] |= 1 << (n % 64)
	}
	// Through a mapping of its own, because the policy also sticks to the mapping
	// that it is set by, and pieces of that would not merge with newer ones.
	at, err := unix.MmapPtr(a.fd, 0, nil, uintptr(a.size), unix.PROT_NONE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("arena: map to place: %w", err)
	}
	_, _, errno := unix.Syscall6(unix.SYS_MBIND, uintptr(at), uintptr(a.size), uintptr(p), uintptr(unsafe.Pointer(&mask)), maxNodes, 0)
	err = unix.MunmapPtr(at, uintptr(a.size))
	if errno != 0 {
		return errors.Join(fmt.Errorf("arena: place on nodes %v: mbind: %w", nodes, errno), err)
	}
	return err
}

// Batch is how many pages one call to the kernel locates or moves at most.
const Batch = 512

// batch are the arguments of move_pages(2).
type batch struct {
	pages  [Batch]uintptr
	nodes  [Batch]int32
	status [Batch]int32
}

// moveAll also moves pages that are mapped several times (MPOL_MF_MOVE_ALL).
const moveAll = 1 << 2

// Present fills dst with whether the file has the pages from page on; it does
// so without making or mapping any.
func (a *Arena) Present(dst []bool, page uint64) error {
	if len(dst) == 0 {
		return nil
	}
	// mincore's answer is a byte of which bit 0 counts, and is 0 or 1 on Linux.
	at := unsafe.Pointer(&a.bytes[page*PageSize])
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(at), uintptr(len(dst)*PageSize), uintptr(unsafe.Pointer(unsafe.SliceData(dst))))
	if errno != 0 {
		return fmt.Errorf("arena: which pages are there: mincore: %w", errno)
	}
	return nil
}

// Locate fills dst with the kernel's node of each page from page on, -1 where
// the file has none. It is for one goroutine at a time and does not allocate.
func (a *Arena) Locate(dst []int, page uint64) error {
	for len(dst) > 0 {
		n := min(len(dst), Batch)
		if err := a.locate(dst[:n], page); err != nil {
			return err
		}
		dst, page = dst[n:], page+uint64(n)
	}
	return nil
}

func (a *Arena) locate(dst []int, page uint64) error {
	missing, err := a.status(dst, page)
	if err != nil || missing == 0 {
		return err
	}
	// The kernel finds only what this mapping has touched.
	found, err := a.mapPresent(dst, page)
	if err != nil || !found {
		return err
	}
	_, err = a.status(dst, page)
	return err
}

// status asks for the nodes of the pages, and says how many it did not find.
func (a *Arena) status(dst []int, page uint64) (missing int, err error) {
	b := &a.batch
	a.fill(page, len(dst))
	_, _, errno := unix.Syscall6(unix.SYS_MOVE_PAGES, 0, uintptr(len(dst)), uintptr(unsafe.Pointer(&b.pages)), 0, uintptr(unsafe.Pointer(&b.status)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("arena: where pages are: move_pages: %w", errno)
	}
	for i := range dst {
		if dst[i] = int(b.status[i]); dst[i] < 0 {
			dst[i] = -1
			missing++
		}
	}
	return missing, nil
}

func (a *Arena) fill(page uint64, n int) {
	at := uintptr(unsafe.Pointer(&a.bytes[page*PageSize]))
	for i := range n {
		a.batch.pages[i] = at + uintptr(i)*PageSize
		a.batch.status[i] = -int32(unix.ENOENT)
	}
}

// mapPresent touches the pages whose dst is negative and that the file has, and
// says if there were any.
func (a *Arena) mapPresent(dst []int, page uint64) (found bool, err error) {
	var there [Batch]bool
	if err := a.Present(there[:len(dst)], page); err != nil {
		return false, err
	}
	for i := 0; i < len(dst); {
		j := i
		for j < len(dst) && there[j] && dst[j] < 0 {
			j++
		}
		if j == i {
			i++
			continue
		}
		found = true
		if err := a.populate(page+uint64(i), j-i); err != nil {
			return false, err
		}
		i = j
	}
	return found, nil
}

func (a *Arena) populate(page uint64, n int) error {
	b := a.bytes[page*PageSize : (page+uint64(n))*PageSize]
	if err := unix.Madvise(b, unix.MADV_POPULATE_READ); err != nil {
		return fmt.Errorf("arena: touch %d pages: %w", n, err)
	}
	return nil
}

// Move asks the kernel to move the len(status) pages from page on, at most
// Batch, to one of its nodes, under every mapping at once. status becomes the
// node of each afterwards, -1 where the file has no page, or a negative errno:
// -EBUSY for what is held just now, -ENOMEM when the node is full. moved counts
// those that were elsewhere before. It needs CAP_SYS_NICE, is for one goroutine
// at a time, and does not allocate.
func (a *Arena) Move(status []int, page uint64, node int) (moved int, err error) {
	if err := a.locate(status, page); err != nil {
		return 0, err
	}
	b := &a.batch
	a.fill(page, len(status))
	elsewhere := 0
	for i, at := range status {
		if at >= 0 && at != node {
			b.pages[elsewhere], b.nodes[elsewhere] = b.pages[i], int32(node)
			elsewhere++
		}
	}
	if elsewhere == 0 {
		return 0, nil
	}
	left, _, errno := unix.Syscall6(unix.SYS_MOVE_PAGES, 0, uintptr(elsewhere), uintptr(unsafe.Pointer(&b.pages)), uintptr(unsafe.Pointer(&b.nodes)), uintptr(unsafe.Pointer(&b.status)), moveAll)
	reason := -int(unix.EBUSY)
	switch errno {
	case 0:
		if left == 0 && !slices.ContainsFunc(b.status[:elsewhere], func(s int32) bool { return int(s) != node }) {
			for i, at := range status {
				if at >= 0 {
					status[i] = node
				}
			}
			return elsewhere, nil
		}
	case unix.ENOENT:
	case unix.ENOMEM:
		reason = -int(unix.ENOMEM)
	case unix.EPERM:
		return 0, errNotPermitted
	default:
		return 0, fmt.Errorf("arena: move pages to node %d: move_pages: %w", node, errno)
	}
	// What the kernel says of each page is not to be had of those after the first
	// that it could not move. See where they are.
	if err := a.locate(status, page); err != nil {
		return 0, err
	}
	moved = elsewhere
	for i, at := range status {
		if at >= 0 && at != node {
			status[i] = reason
			moved--
		}
	}
	return max(0, moved), nil
}

var errNotPermitted = errors.New("move pages: not permitted: pages that are mapped several times need CAP_SYS_NICE")

// MayMove says whether this process may call Move.
func MayMove() error {
	// Of no pages: permission is looked at first.
	_, _, errno := unix.Syscall6(unix.SYS_MOVE_PAGES, 0, 0, 0, 0, 0, moveAll)
	switch errno {
	case 0:
		return nil
	case unix.EPERM:
		return errNotPermitted
	}
	return fmt.Errorf("move pages: move_pages: %w", errno)
}

// Punch frees n pages from page on, under every mapping. They read as zeroes.
func (a *Arena) Punch(page uint64, n int) error {
	if err := unix.Fallocate(a.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(page*PageSize), int64(n)*PageSize); err != nil {
		return fmt.Errorf("arena: free %d pages: %w", n, err)
	}
	return nil
}
