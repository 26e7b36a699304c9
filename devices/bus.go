// Package devices holds the buses that carry a guest's port and memory-mapped
// accesses, and the plain devices on them: the 8250, the I/O APIC, the reset
// and power registers.
//
// Guest accesses are hostile input: a Handler takes any offset inside its
// region, any size from 1 to 8 and any data, in any order, from many vCPU
// threads at once.
//
// Not done here: virtio, and which address a device has (package vmm decides).
package devices

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// Handler is one device's registers. Offsets count from the region's base;
// p is 1 to 8 bytes, little-endian, and lies wholly inside the region. Calls
// come from many vCPU threads at once and must not block for long.
type Handler interface {
	Read(offset uint64, p []byte)
	Write(offset uint64, p []byte)
}

// Line is an edge-triggered interrupt line. Pulse never blocks.
type Line interface{ Pulse() }

type region struct {
	base, size uint64
	h          Handler
}

// Bus finds the device for an address. Lookups take no lock and allocate
// nothing; Add and Remove may run beside them. The zero Bus is empty and ready.
type Bus struct {
	mu      sync.Mutex // serializes Add and Remove
	regions atomic.Pointer[[]region]
	missed  atomic.Uint64
}

func (b *Bus) load() []region {
	if r := b.regions.Load(); r != nil {
		return *r
	}
	return nil
}

// Add puts h at [base, base+size). It fails if that is empty, wraps, or
// overlaps another region.
func (b *Bus) Add(base, size uint64, h Handler) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if size == 0 || base+size-1 < base {
		return fmt.Errorf("bus: region %#x+%#x is empty or wraps", base, size)
	}
	old := b.load()
	for _, r := range old {
		if base <= r.base+r.size-1 && r.base <= base+size-1 {
			return fmt.Errorf("bus: region %#x+%#x overlaps %#x+%#x", base, size, r.base, r.size)
		}
	}
	next := append(slices.Clone(old), region{base, size, h})
	slices.SortFunc(next, func(x, y region) int {
		if x.base < y.base {
			return -1
		}
		return 1
	})
	b.regions.Store(&next)
	return nil
}

// Remove takes away the region that begins at base, if there is one. A call
// already under way in its Handler may still finish.
func (b *Bus) Remove(base uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := slices.DeleteFunc(slices.Clone(b.load()), func(r region) bool { return r.base == base })
	b.regions.Store(&next)
}

func (b *Bus) find(addr uint64, n int) (Handler, uint64) {
	rs := b.load()
	i := sort.Search(len(rs), func(i int) bool { return rs[i].base > addr }) - 1
	if i < 0 || n < 1 || n > 8 {
		return nil, 0
	}
	off := addr - rs[i].base
	if off >= rs[i].size || uint64(n) > rs[i].size-off {
		return nil, 0
	}
	return rs[i].h, off
}

// Read fills p from the device at addr; where there is none, with ones, as a
// real bus floats.
func (b *Bus) Read(addr uint64, p []byte) {
	if h, off := b.find(addr, len(p)); h != nil {
		h.Read(off, p)
		return
	}
	b.missed.Add(1)
	for i := range p {
		p[i] = 0xff
	}
}

// Write gives p to the device at addr; where there is none it is dropped.
func (b *Bus) Write(addr uint64, p []byte) {
	if h, off := b.find(addr, len(p)); h != nil {
		h.Write(off, p)
		return
	}
	b.missed.Add(1)
}

// Missed counts accesses that found no device.
func (b *Bus) Missed() uint64 { return b.missed.Load() }
