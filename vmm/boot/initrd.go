package boot

import (
	"fmt"
	"io"
)

// initrd is where an initrd lies in guest memory; the zero value is none.
type initrd struct{ start, size uint64 }

// putInitrd copies the initrd as high as it may be, so that it is out of the
// way of a kernel that grows: below limit (an address), or above 4 GiB if
// high says that the kernel can find it there.
func putInitrd(g *guest, r io.ReaderAt, n int64, limit uint64, high bool) (initrd, error) {
	if r == nil || n == 0 {
		return initrd{}, nil
	}
	if n < 0 {
		return initrd{}, fmt.Errorf("the initrd has a size of %d", n)
	}
	rd := initrd{size: uint64(n)}
	var ok bool
	if rd.start, ok = g.place("the initrd", rd.size, kernelFloor, min(limit, LowRAMTop)); !ok && high {
		rd.start, ok = g.place("the initrd", rd.size, HighRAM, 1<<63)
	}
	if !ok {
		return initrd{}, g.noRoom(rd.size, limit, high)
	}
	g.add(rd.start, r, 0, n)
	return rd, g.fill("the initrd")
}

// noRoom says why an initrd of n bytes has no place and how much memory gives it one.
func (g *guest) noRoom(n, limit uint64, high bool) error {
	kernel := uint64(kernelFloor)
	for _, u := range g.used {
		kernel = max(kernel, u.end)
	}
	need := kernel + n + pageSize
	what := fmt.Sprintf("an initrd of %s and a kernel that ends at %s do not fit in the guest's %s of memory",
		mib(n), mib(kernel), mib(size(g.ram)))
	if need <= min(limit, LowRAMTop) || high {
		if need > LowRAMTop {
			need = LowRAMTop + n + pageSize
		}
		return fmt.Errorf("%s: give it --memory %s or more", what, mibFlag(need))
	}
	return fmt.Errorf("%s below %s, where this kernel wants it: use a smaller initrd", what, mib(limit))
}
