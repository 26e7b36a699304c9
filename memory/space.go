// Package memory holds what a guest takes for its physical memory, and moves and
// copies it between NUMA nodes while the guest uses it.
//
// A [Space] maps guest-physical addresses ([GPA]) to bytes. It has one Home, a
// file as sparse as the guest's RAM, with the canonical copy of every page: PPN
// i lies at offset i. A [View] is the host-virtual window through which one KVM
// VM sees it; KVM follows a View through the kernel's MMU notifiers, so a slot
// is registered once and never changed.
//
// Devices reach guest memory only by [Space.ReadAt], [Space.WriteAt] and
// [Space.Pin]. Every address and length they pass on from a guest is checked
// here: nothing outside RAM is ever handed out. The monitor's addresses of
// pages never change, whatever moves.
//
// # Thin and tracked
//
// A thin Space has one View and no states: no tables, no faults, no cost. A
// sharing Space has one View, too, and a state per page, but only Private and
// Shared: nothing faults there but stores to Shared pages. A tracked Space has a
// View per node and a state per page:
//
//		            Guard                  Replicate
//		 Private ──────────► Guarded ───────────────────► Replicated
//		  ▲ ▲ ▲                 │                             │  ▲
//		  │ │ └─────────────────┘                             │  │ Replicate
//		  │ │   Unguard, store, Pin(Write), WriteAt           └──┘ on one more node
//		  │ └─────────────────────────────────────────────────┤
//		  │     Collapse, store, Pin(Write), WriteAt, Reclaim │
//		  └──────────────────────────────── Shared ◄──────────┘
//		        the same                             Share (also from Private, Guarded)
//
//	  - Private: every View that has the page mapped maps the canonical copy, and
//	    may write it (where a protection is left over, the first store lifts it).
//	  - Guarded: the same, but write-protected in every View: the first store is
//	    reported and makes it Private.
//	  - Replicated: write-protected in every View, and some Views map a copy of
//	    their node's own instead. The canonical copy is equal to all of them.
//	  - Shared: write-protected in every View, and all of them map a page of
//	    another arena. Home has no page. The monitor reads it where that arena has
//	    it; where a device wants an address for it, the monitor's mapping shows it.
//
// Migrate moves the canonical copy to another node in any state: the kernel does
// that under all mappings at once.
//
// # Order of locks
//
//  1. block.mu, one per 2 MiB of RAM: held by whoever changes states or mappings
//     there, and while a fault there is answered. Never two at a time.
//  2. View.mu: one move of mappings at a time in each View.
//  3. Space.edges: which pages are mapped from elsewhere than Home. Short.
//  4. Space.kernel: the arguments of a system call on Home. Never with another
//     taken inside.
//
// A goroutine that reads faults never waits for a lock: if the block's is taken
// it leaves the fault alone, and whoever unlocks wakes the thread, which tries
// again. It must be so, because moving a mapping waits until that goroutine has
// read of it. What takes a move is handed to the View's second goroutine.
// Nothing waits for a fault with a lock held, as nothing here touches a View.
//
// Not done here: KVM (memory never calls it), virtio, disks, and any policy:
// which page is worth watching or moving is asked of nobody.
package memory

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"disco/memory/arena"
	"disco/numa"
)

// GPA is a guest-physical address in bytes.
type GPA uint64

// PPN is a guest page number: a GPA divided by the page size.
type PPN uint64

// Access says what a device will do to the bytes that it pins.
type Access int

const (
	// Read is a device that reads guest memory (a disk write, a frame sent).
	Read Access = iota
	// Write is a device that writes guest memory (a disk read, a frame received).
	Write
	// Overwrite is Write by a device that has no need of what is there: pages that
	// are pinned whole need not keep it, and what it does not write may be zeros.
	Overwrite
)

// Range is a piece of guest-physical address space.
type Range struct {
	Start GPA
	Size  uint64 // bytes
}

// End is the first address after the range.
func (r Range) End() GPA { return r.Start + GPA(r.Size) }

// Errors that tell the caller to do something else, or the same later.
var (
	// ErrNotRAM is returned for an address range that is not wholly guest RAM.
	ErrNotRAM = errors.New("not guest RAM")
	// ErrBudget says that no more pieces may be mapped away from Home.
	ErrBudget = errors.New("out of memory mappings: raise sysctl vm.max_map_count")
	// ErrNodeFull says that the node has no memory for a copy or for more pages.
	ErrNodeFull = errors.New("the node's memory is full")
	// ErrPinned says that devices write to all of the pages just now.
	ErrPinned = errors.New("pinned by a device")
	// ErrBusy says that the kernel could not move the pages just now.
	ErrBusy = errors.New("pages are busy")
	// ErrNotTracked is returned by what needs page states from a thin Space.
	ErrNotTracked = errors.New("memory is not tracked")
)

// Huge is the size of pages; see package arena.
type Huge = arena.Huge

// The sizes of pages.
const (
	// HugeTHP asks for transparent huge pages; the kernel may forbid them, and a
	// Space for Sharing does not ask.
	HugeTHP = arena.HugeTHP
	HugeOff = arena.HugeOff
	// Huge2M makes all of RAM in transparent huge pages when the Space is opened,
	// or fails. There is no first touch of a guest then: pages that would be
	// placed by it are interleaved.
	Huge2M = arena.Huge2M
)

// Options say how a Space is made.
type Options struct {
	// Name is shown in /proc/PID/maps.
	Name string
	// RAM is the memory map: page-aligned, ascending, disjoint.
	RAM []Range
	// Topology is what Nodes are of. Without one, places are not looked at.
	Topology *numa.Topology
	// Nodes are those whose CPUs run the guest, each once.
	Nodes []numa.Node
	// Place says where pages are made.
	Place Placement
	// Tracked is page states, and a View for each of Nodes, in their order.
	// Otherwise there is one View.
	Tracked bool
	// Sharing is Share and Collapse alone, for one View: a thin Space until
	// something is shared, but of small pages. A tracked Space can share without.
	Sharing bool
	// HostBalancing leaves it to the kernel's NUMA balancing (sysctl
	// kernel.numa_balancing) where pages are, among Nodes. Not with Tracked.
	HostBalancing bool
	// Huge is the size of pages. In a tracked Space what a fault maps, or what is
	// replicated, is mapped by 4 KiB; the canonical copy stays as large as it is,
	// and migrates whole.
	Huge Huge
	// Log gets what the host should know. None is fine.
	Log *slog.Logger
}

// MaxViews is the largest number of Nodes of a tracked Space.
const MaxViews = 16

// Space is one guest's memory.
//
// All methods but Close may be called from many goroutines. Concurrent access
// to the same guest bytes is the guest's own race, as on real hardware.
type Space struct {
	home *arena.Arena
	ram  []Range
	opt  Options
	log  *slog.Logger
	pins atomic.Int64
	view []*View
	node atomic.Int64 // where a Bound guest's pages are made

	// The rest is for a tracked Space only.
	words    []atomic.Uint64 // by PPN; see word
	blocks   []block
	edges    sync.Mutex
	vmas     int64 // taken from the budget; under edges
	pooling  sync.Mutex
	pools    atomic.Pointer[[]*pool] // grows under pooling
	stamp    atomic.Uint64
	onTouch  atomic.Pointer[func(Touch)]
	threads  atomic.Pointer[[]thread]
	counters counters
	workers  sync.WaitGroup
	readers  sync.WaitGroup

	kernel  sync.Mutex // home's batch, and what follows
	places  [arena.Batch]int
	there   [arena.Batch]bool
	where   []int8 // fake nodes: 1 + the node, by PPN; 0: not known yet
	pagemap *os.File
	entry   [8]byte
}

// New makes a thin Space with the given RAM, zeroed, and no View yet. Ranges are
// page-aligned, ascending and disjoint. The caller owns the Space and must Close
// it after the KVM VMs that use its Views are gone.
func New(name string, ram []Range) (*Space, error) {
	return newSpace(Options{Name: name, RAM: ram})
}

// Open makes a Space and its Views. The caller owns it and must Close it after
// the KVM VMs that use its Views are gone.
func Open(o Options) (_ *Space, err error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	if o.Huge == Huge2M && o.Place == FirstTouch && len(o.Nodes) > 1 {
		o.Place = Interleaved
	}
	s, err := newSpace(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.place(); err != nil {
		return nil, err
	}
	if o.Huge == Huge2M {
		for _, r := range o.RAM {
			if err := s.home.Fuse(uint64(r.Start), r.Size); err != nil {
				return nil, fmt.Errorf("memory: 2 MiB pages: %w: take transparent ones as they come", err)
			}
		}
	}
	if o.Tracked || o.Sharing {
		return s, s.track()
	}
	_, err = s.NewView()
	return s, err
}

func (o *Options) check() error {
	for i, n := range o.Nodes {
		if o.Topology == nil {
			return errors.New("nodes without a topology")
		}
		if !o.Topology.Has(n) {
			return fmt.Errorf("no node %d among %v", n, o.Topology.Nodes())
		}
		if slices.Contains(o.Nodes[:i], n) {
			return fmt.Errorf("node %d is given twice", n)
		}
	}
	switch {
	case o.Place != FirstTouch && len(o.Nodes) == 0:
		return errors.New("no nodes to place pages on")
	case o.Place < FirstTouch || o.Place > Interleaved:
		return fmt.Errorf("no placement %d", o.Place)
	case o.Huge < HugeTHP || o.Huge > Huge2M:
		return fmt.Errorf("no size of pages %d", o.Huge)
	case o.HostBalancing && len(o.Nodes) == 0:
		return errors.New("no nodes for the kernel to balance")
	case o.HostBalancing && (o.Tracked || o.Sharing):
		return errors.New("either the kernel balances pages or they are tracked")
	case o.Tracked && o.Sharing:
		return errors.New("a tracked Space shares without being told to")
	case o.Tracked && len(o.Nodes) == 0:
		return errors.New("no nodes to track pages on")
	case o.Tracked && len(o.Nodes) > MaxViews:
		return fmt.Errorf("%d nodes to track pages on, at most %d", len(o.Nodes), MaxViews)
	}
	return nil
}

// pages is the size of Home's pages. Sharing leaves holes in Home, and where huge pages
// are made of small ones (khugepaged), holes are filled: what is shared would be there
// twice after all, more of it every minute.
func (o *Options) pages() Huge {
	if o.Sharing && o.Huge == HugeTHP {
		return HugeOff
	}
	return o.Huge
}

func newSpace(o Options) (*Space, error) {
	if len(o.RAM) == 0 {
		return nil, errors.New("memory: no RAM ranges")
	}
	var top GPA
	for _, r := range o.RAM {
		if r.Size == 0 || r.Start%arena.PageSize != 0 || r.Size%arena.PageSize != 0 || r.Start < top || r.End() < r.Start {
			return nil, fmt.Errorf("memory: RAM range %#x+%#x is empty, unaligned or out of order", uint64(r.Start), r.Size)
		}
		top = r.End()
	}
	home, err := arena.New(o.Name, uint64(top), o.pages())
	if err != nil {
		return nil, err
	}
	s := &Space{home: home, ram: slices.Clone(o.RAM), opt: o, log: o.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, nil
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

// Resident is how much of its own the guest's memory has, in bytes: what it has
// touched, less what it shares.
func (s *Space) Resident() uint64 { return s.home.Resident() }

func (s *Space) bytes(a GPA, n int) ([]byte, error) {
	for _, r := range s.ram {
		if a >= r.Start && a < r.End() && n >= 0 && uint64(n) <= uint64(r.End()-a) {
			return s.home.Bytes()[a : uint64(a)+uint64(n) : uint64(a)+uint64(n)], nil
		}
	}
	return nil, ErrNotRAM
}

// run returns ErrNotRAM unless the n pages at p, one or more, are RAM, in one
// range.
func (s *Space) run(p PPN, n int) error {
	for _, r := range s.ram {
		first, end := PPN(r.Start/arena.PageSize), PPN(r.End()/arena.PageSize)
		if p >= first && p < end && n > 0 && uint64(n) <= uint64(end-p) {
			return nil
		}
	}
	return ErrNotRAM
}

// ReadAt fills p from guest memory at a. It returns ErrNotRAM, and reads
// nothing, if any byte lies outside RAM.
func (s *Space) ReadAt(p []byte, a GPA) error {
	b, err := s.bytes(a, len(p))
	if err != nil {
		return err
	}
	if s.words != nil {
		s.readShared(p, a)
		return nil
	}
	copy(p, b)
	return nil
}

// Check returns ErrNotRAM if any of the n bytes at a lies outside RAM.
func (s *Space) Check(a GPA, n int) error {
	_, err := s.bytes(a, n)
	return err
}

// WriteAt copies p to guest memory at a. It returns ErrNotRAM, and writes
// nothing, if any byte lies outside RAM.
func (s *Space) WriteAt(p []byte, a GPA) error {
	b, err := s.bytes(a, len(p))
	if err != nil {
		return err
	}
	if err := s.pinWrite(a, len(p), Write); err != nil {
		return err
	}
	copy(b, p)
	s.unpinWrite(a, len(p))
	return nil
}

// Close stops answering faults, unmaps every View and frees the memory.
// Everything pinned must have been unpinned, and no KVM VM may run on a View.
func (s *Space) Close() error {
	// The goroutines that collapse need those that read.
	for _, v := range s.view {
		if v.quit != nil {
			close(v.quit)
		}
	}
	s.workers.Wait()
	var errs []error
	for _, v := range s.view {
		errs = append(errs, v.stop())
	}
	s.readers.Wait()
	for _, v := range s.view {
		errs = append(errs, v.close())
	}
	errs = append(errs, s.unhold())
	arena.VMAs.Add(-s.vmas)
	if s.pagemap != nil {
		errs = append(errs, s.pagemap.Close())
	}
	return errors.Join(append(errs, s.home.Close())...)
}
