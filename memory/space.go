// Package memory holds what a guest takes for its physical memory.
//
// A [Space] maps guest-physical addresses ([GPA]) to bytes of an arena. A
// [View] is the host-virtual window through which one KVM VM sees the same
// pages; KVM follows a View through the kernel's MMU notifiers, so a slot is
// registered once and never changed.
//
// Devices reach guest memory only by [Space.ReadAt], [Space.WriteAt] and
// [Space.Pin]. Every address and length they pass on from a guest is checked
// here: nothing outside RAM is ever handed out.
//
// Not done here: KVM (memory never calls it), virtio, disks, and any policy.
// Pages do not move yet, so a Pin costs a bounds check and a count; the count
// is what the page states of migration and replication will build on.
package memory

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"disco/memory/arena"
)

// GPA is a guest-physical address in bytes.
type GPA uint64

// Access says what a device will do to the bytes that it pins.
type Access int

const (
	// Read is a device that reads guest memory (a disk write, a frame sent).
	Read Access = iota
	// Write is a device that writes guest memory (a disk read, a frame received).
	Write
)

// Range is a piece of guest-physical address space.
type Range struct {
	Start GPA
	Size  uint64 // bytes
}

// End is the first address after the range.
func (r Range) End() GPA { return r.Start + GPA(r.Size) }

// ErrNotRAM is returned for an address range that is not wholly guest RAM.
var ErrNotRAM = errors.New("not guest RAM")

// Space is one guest's memory. PPN i lives at offset i of its Home, an arena of
// its own that is as sparse as the guest's RAM, so a GPA is an arena offset.
//
// All methods but Close may be called from many goroutines. Concurrent access
// to the same guest bytes is the guest's own race, as on real hardware.
type Space struct {
	home *arena.Arena
	ram  []Range
	pins atomic.Int64
	view []*View
}

// New makes a Space with the given RAM, zeroed. Ranges are page-aligned,
// ascending and disjoint. The caller owns the Space and must Close it after
// the KVM VMs that use its Views are gone.
func New(name string, ram []Range) (*Space, error) {
	if len(ram) == 0 {
		return nil, errors.New("memory: no RAM ranges")
	}
	var top GPA
	for _, r := range ram {
		if r.Size == 0 || r.Start%arena.PageSize != 0 || r.Size%arena.PageSize != 0 || r.Start < top || r.End() < r.Start {
			return nil, fmt.Errorf("memory: RAM range %#x+%#x is empty, unaligned or out of order", uint64(r.Start), r.Size)
		}
		top = r.End()
	}
	home, err := arena.New(name, uint64(top))
	if err != nil {
		return nil, err
	}
	return &Space{home: home, ram: slices.Clone(ram)}, nil
}

// RAM is the guest's memory map, ascending. The caller must not change it.
func (s *Space) RAM() []Range { return s.ram }

// Size is the bytes of RAM, without holes.
func (s *Space) Size() uint64 {
	var n uint64
	for _, r := range s.ram {
		n += r.Size
	}
	return n
}

func (s *Space) bytes(a GPA, n int) ([]byte, error) {
	for _, r := range s.ram {
		if a >= r.Start && a < r.End() && n >= 0 && uint64(n) <= uint64(r.End()-a) {
			return s.home.Bytes()[a : uint64(a)+uint64(n) : uint64(a)+uint64(n)], nil
		}
	}
	return nil, ErrNotRAM
}

// ReadAt fills p from guest memory at a. It returns ErrNotRAM, and reads
// nothing, if any byte lies outside RAM.
func (s *Space) ReadAt(p []byte, a GPA) error {
	b, err := s.bytes(a, len(p))
	if err != nil {
		return err
	}
	copy(p, b)
	return nil
}

// WriteAt copies p to guest memory at a. It returns ErrNotRAM, and writes
// nothing, if any byte lies outside RAM.
func (s *Space) WriteAt(p []byte, a GPA) error {
	b, err := s.bytes(a, len(p))
	if err != nil {
		return err
	}
	copy(b, p)
	return nil
}

// Pin appends to dst the pieces of the monitor's mapping that hold the n bytes
// at a, in order, and keeps their pages where they are until Unpin is called
// with the same a and n. With Write, sharing is broken first. A pin may be held
// for long (rings are). It returns ErrNotRAM, dst as it was, and pins nothing
// if any byte lies outside RAM. It does not allocate when dst has room.
func (s *Space) Pin(dst [][]byte, a GPA, n int, _ Access) ([][]byte, error) {
	b, err := s.bytes(a, n)
	if err != nil {
		return dst, err
	}
	s.pins.Add(1)
	return append(dst, b), nil
}

// Unpin ends one Pin of the same a and n.
func (s *Space) Unpin(_ GPA, _ int) {
	if s.pins.Add(-1) < 0 {
		panic("memory: Unpin without Pin")
	}
}

// Pins is the number of pins now held: zero when no device is running.
func (s *Space) Pins() int64 { return s.pins.Load() }

// View is the window through which one KVM VM sees the guest's RAM: GPA a is
// at host-virtual address Base()+a. The monitor itself never touches it.
type View struct{ window []byte }

// NewView maps a further window on the guest's RAM. It lives until the Space is
// closed. NewView is for one goroutine, while the guest is built.
func (s *Space) NewView() (*View, error) {
	b, err := s.home.Map()
	if err != nil {
		return nil, err
	}
	v := &View{window: b}
	s.view = append(s.view, v)
	return v, nil
}

// Bytes is the window, for KVM_SET_USER_MEMORY_REGION only: reading or writing
// it from Go can hang the process (see package arena).
func (v *View) Bytes() []byte { return v.window }

// Close unmaps every View and frees the memory. Everything pinned must have
// been unpinned, and no KVM VM may run on a View.
func (s *Space) Close() error {
	var errs []error
	for _, v := range s.view {
		errs = append(errs, arena.Unmap(v.window))
	}
	return errors.Join(append(errs, s.home.Close())...)
}
