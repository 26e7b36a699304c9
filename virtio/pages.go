package virtio

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"disco/memory"
	"disco/memory/arena"
)

// pages is a pinned piece of guest memory that is reached page by page, because
// neighbouring guest pages need not be neighbours in the monitor's mapping.
// Whole pages are pinned, so the aligned 32-bit word around any byte is inside.
//
// Go has no 16-bit atomics: a 16-bit word is loaded and stored through the
// aligned 32-bit word that holds it. Loads and stores are sequentially
// consistent, which is more than the barriers of virtio 1.2 §2.7.13 ask for.
type pages struct {
	start memory.GPA // of the first page
	n     int        // bytes pinned
	acc   memory.Access
	first uint32 // offset of the piece in the first page
	page  []*[arena.PageSize]byte
}

// pinPages pins the n bytes (more than none) at a.
func pinPages(s *memory.Space, a memory.GPA, n int, acc memory.Access) (pages, error) {
	p := pages{first: uint32(a % arena.PageSize), acc: acc}
	p.start = a - memory.GPA(p.first)
	p.n = (int(p.first) + n + arena.PageSize - 1) &^ (arena.PageSize - 1)
	segments, err := s.Pin(nil, p.start, p.n, acc)
	if err != nil {
		return pages{}, fmt.Errorf("%#x+%#x: %w", uint64(a), n, err)
	}
	for _, seg := range segments {
		for ; len(seg) > 0; seg = seg[arena.PageSize:] {
			p.page = append(p.page, (*[arena.PageSize]byte)(seg))
		}
	}
	return p, nil
}

func (p *pages) unpin(s *memory.Space) {
	if p.page != nil {
		s.Unpin(p.start, p.n, p.acc)
		p.page = nil
	}
}

// word is the aligned 32-bit word that holds the byte at off.
func (p *pages) word(off uint32) *uint32 {
	off += p.first
	return (*uint32)(unsafe.Pointer(&p.page[off/arena.PageSize][off%arena.PageSize&^3]))
}

func (p *pages) load16(off uint32) uint16 {
	shift := (off + p.first) & 2 * 8
	return uint16(atomic.LoadUint32(p.word(off)) >> shift)
}

// store16 leaves the other half of the word as it is: it may be the driver's.
func (p *pages) store16(off uint32, v uint16) {
	w, shift := p.word(off), (off+p.first)&2*8
	for {
		old := atomic.LoadUint32(w)
		if atomic.CompareAndSwapUint32(w, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}

// store32 is for an aligned off. It is a plain store: what makes the word
// visible is the store16 of an index after it.
func (p *pages) store32(off, v uint32) { *p.word(off) = v }

// descriptor flags (virtio 1.2 §2.7.5)
const (
	flagNext     = 1
	flagWrite    = 2
	flagIndirect = 4
)

const descriptorSize = 16

// descriptor is a copy of a struct virtq_desc.
type descriptor struct {
	addr  memory.GPA
	len   uint32
	flags uint16
	next  uint16
}

// descriptor copies the one at off, a multiple of 16 as is first.
func (p *pages) descriptor(off uint32) descriptor {
	off += p.first
	at := unsafe.Pointer(&p.page[off/arena.PageSize][off%arena.PageSize])
	lo := atomic.LoadUint64((*uint64)(at))
	hi := atomic.LoadUint64((*uint64)(unsafe.Add(at, 8)))
	return descriptor{memory.GPA(lo), uint32(hi), uint16(hi >> 32), uint16(hi >> 48)}
}

func parseDescriptor(b *[descriptorSize]byte) descriptor {
	return descriptor{
		addr:  memory.GPA(binary.LittleEndian.Uint64(b[0:])),
		len:   binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]),
		next:  binary.LittleEndian.Uint16(b[14:]),
	}
}
