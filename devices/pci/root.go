// Package pci is a PCI root complex with one bus: config space through ECAM,
// functions with a 32-bit memory BAR for registers and a 64-bit one for memory
// each, and MSI-X.
//
// The monitor assigns every BAR before the guest starts; a guest turns decoding
// on by the command register, and may move a BAR. One that it moves out of the
// window, or onto another, is not mapped until it is moved away.
//
// Not done here: bridges, further buses, functions other than 0, I/O BARs, INTx
// pins, power management, hot plug, and the command register's bus-master bit,
// which is kept but not obeyed. What a function does is its owner's business.
package pci

import (
	"encoding/binary"
	"fmt"
	"sync"

	"disco/devices"
)

// ECAMSize is the size in bytes of the config space of the one bus. A Root is
// its devices.Handler (PCI Express 3.0 §7.2.2).
const ECAMSize = 1 << 20

// maxSlots is the number of devices on a bus.
const maxSlots = 32

// Function is one PCI function: its Handler is that of BAR 0, and must take any
// access within it.
type Function interface {
	devices.Handler
	// Config is the function's config space, the same at every call.
	Config() *Config
	// Moved says that BAR 0 now answers at base, or (mapped false) nowhere. It
	// is called under the Root's lock and must not access config space.
	Moved(base uint64, mapped bool)
}

// Memory is a Function whose Config has a BAR 2. Nothing of ours answers there:
// the Function has its pci.Host map what the guest sees.
type Memory interface {
	// MovedMemory is Moved of BAR 2.
	MovedMemory(base uint64, mapped bool)
}

// Root is the root complex. Its methods may be called from many goroutines. Its
// lock is held while a Function's Moved, and a Capability's Load and Store, run;
// Functions never call a Root, so it comes first in the order of locks.
type Root struct {
	mmio      *devices.Bus
	low, high span // what BARs 0 and 2 may decode

	mu       sync.Mutex
	free     uint64 // where the next BAR 0 goes
	freeHigh uint64 // and the next BAR 2
	slots    []*slot
}

type slot struct {
	fn     Function
	base   uint64 // where BAR 0 is on the bus
	mapped bool

	memory       uint64 // where BAR 2 is
	memoryMapped bool
}

// span is a range of addresses.
type span struct{ start, size uint64 }

// holds says whether n bytes at base lie inside.
func (s span) holds(base, n uint64) bool {
	return base >= s.start && base-s.start <= s.size && n <= s.size-(base-s.start)
}

// NewRoot makes a root complex whose BARs 0 lie in the size bytes from start,
// below 4 GiB and kept free on mmio for it. Device 0 is its host bridge.
func NewRoot(mmio *devices.Bus, start, size uint64) *Root {
	r := &Root{mmio: mmio, low: span{start, size}, free: start}
	r.slots = []*slot{{fn: bridge{NewConfig(Header{Vendor: 0x1b36, Device: 0x0008, Class: 0x060000})}}}
	return r
}

// SetHigh gives it the size bytes from start, of which nothing else answers, for
// BARs 2. It comes before Add.
func (r *Root) SetHigh(start, size uint64) { r.high, r.freeHigh = span{start, size}, start }

// bridge is the host bridge: a header and nothing else.
type bridge struct{ config *Config }

func (b bridge) Config() *Config       { return b.config }
func (bridge) Moved(uint64, bool)      {}
func (bridge) Read(_ uint64, p []byte) { clear(p) }
func (bridge) Write(uint64, []byte)    {}

// Add plugs a function in as the next device and assigns its BAR. It fails if
// the bus or the window is full. Functions are added before the guest runs, and
// stay.
func (r *Root) Add(fn Function) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.slots) == maxSlots {
		return fmt.Errorf("pci: a bus has no more than %d devices", maxSlots)
	}
	c := fn.Config()
	if n := uint64(c.bar); n != 0 {
		base := (r.free + n - 1) &^ (n - 1)
		if !r.inside(base, n) {
			return fmt.Errorf("pci: no room for a BAR of %#x bytes in the window %#x+%#x", n, r.low.start, r.low.size)
		}
		r.free = base + n
		for i := range 4 {
			c.data[regBAR0+i] = byte(base >> (8 * i))
		}
	}
	if n := c.memory; n != 0 {
		if _, ok := fn.(Memory); !ok {
			panic("pci: a function with memory does not hear where it is")
		}
		base := (r.freeHigh + n - 1) &^ (n - 1)
		if !r.high.holds(base, n) {
			return fmt.Errorf("pci: no room for %#x bytes of a device's memory in the window %#x+%#x", n, r.high.start, r.high.size)
		}
		r.freeHigh = base + n
		binary.LittleEndian.PutUint64(c.data[regBAR2:], base|uint64(c.data[regBAR2]))
	}
	r.slots = append(r.slots, &slot{fn: fn})
	return nil
}

func (r *Root) inside(base, n uint64) bool {
	return r.low.holds(base, n) && base+n <= 1<<32
}

// locate finds the function and register of an ECAM access: nil where there is
// none, and for an access that runs into the next function.
func (r *Root) locate(offset uint64, n int) (*slot, uint64) {
	device, reg := offset>>15, offset&0xfff
	if function := offset >> 12 & 7; function != 0 || device >= uint64(len(r.slots)) || reg+uint64(n) > 0x1000 {
		return nil, 0
	}
	return r.slots[device], reg
}

// Read reads config space; where there is no function it reads as ones.
func (r *Root) Read(offset uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, reg := r.locate(offset, len(p))
	if s == nil {
		for i := range p {
			p[i] = 0xff
		}
		return
	}
	s.fn.Config().Read(reg, p)
}

// Write writes config space, and maps and unmaps BARs as the guest asks.
func (r *Root) Write(offset uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, reg := r.locate(offset, len(p))
	if s == nil {
		return
	}
	s.fn.Config().Write(reg, p)
	if reg < regBAR2+8 && reg+uint64(len(p)) > regCommand {
		r.settle()
		r.settleMemory()
	}
}

// settle brings the bus to what the config spaces say. What one BAR leaves may
// be what another waits for, so it looks at all.
func (r *Root) settle() {
	for _, s := range r.slots {
		if base, on := s.fn.Config().decodes(); s.mapped && (!on || base != s.base) {
			r.mmio.Remove(s.base)
			s.mapped = false
			s.fn.Moved(0, false)
		}
	}
	for _, s := range r.slots {
		c := s.fn.Config()
		base, on := c.decodes()
		if s.mapped || !on || !r.inside(base, uint64(c.bar)) {
			continue
		}
		// An overlap is the guest's doing: neither harms the other.
		if r.mmio.Add(base, uint64(c.bar), s.fn) == nil {
			s.base, s.mapped = base, true
			s.fn.Moved(base, true)
		}
	}
}

// settleMemory does so for BARs 2.
func (r *Root) settleMemory() {
	for _, s := range r.slots {
		if base, on := s.fn.Config().decodesMemory(); s.memoryMapped && (!on || base != s.memory) {
			s.memoryMapped = false
			s.fn.(Memory).MovedMemory(0, false)
		}
	}
	for _, s := range r.slots {
		n := s.fn.Config().memory
		base, on := s.fn.Config().decodesMemory()
		if s.memoryMapped || !on || !r.high.holds(base, n) || r.memoryAt(base, n) {
			continue
		}
		s.memory, s.memoryMapped = base, true
		s.fn.(Memory).MovedMemory(base, true)
	}
}

// memoryAt says whether a BAR 2 is mapped somewhere in the n bytes at base.
func (r *Root) memoryAt(base, n uint64) bool {
	for _, s := range r.slots {
		if s.memoryMapped && base < s.memory+s.fn.Config().memory && s.memory < base+n {
			return true
		}
	}
	return false
}
