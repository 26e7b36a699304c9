package qcow2

import (
	"encoding/binary"
	"slices"
)

// kind says what a page of metadata holds. Their order is the one in which they
// become stable (see Flush).
type kind byte

const (
	kindRefcount kind = iota
	kindRefTable
	kindL2
	kindL1
	kinds
)

func (k kind) String() string {
	return [...]string{"a refcount block", "the refcount table", "an L2 table", "the L1 table"}[k]
}

const (
	maxPageSize = 4096
	// maxPages bounds the metadata in memory: 8 MiB in pages of 4 KiB, with which
	// 64 GiB of a disk in clusters of 64 KiB are mapped without asking the file.
	maxPages = 2048
	// maxDirty are written back before more are made.
	maxDirty = maxPages / 2
)

// page is a piece of metadata as it is, or is to be, in the file.
type page struct {
	kind     kind
	dirty    bool // differs from the file
	flushing bool // was, when the flush that is under way began
	data     []byte
}

// pages holds pages of the image's metadata by their offset in the file.
// Image.mu guards it. A *page is good only until the next one is asked for.
type pages struct {
	file  File
	size  int64 // of one page
	at    map[int64]*page
	dirty int // pages dirty or flushing
}

func newPages(f File, cluster int64) pages {
	return pages{file: f, size: min(cluster, maxPageSize), at: map[int64]*page{}}
}

// page returns the page that holds offset off.
func (s *pages) page(k kind, off int64) (*page, error) {
	off &^= s.size - 1
	p := s.at[off]
	if p == nil {
		p = s.evict()
		p.kind = k
		if err := s.file.ReadV([][]byte{p.data}, off); err != nil {
			return nil, err
		}
		s.at[off] = p
	}
	if p.kind != k {
		return nil, corrupt("at %#x is both %s and %s", off, p.kind, k)
	}
	return p, nil
}

// evict makes room for a page: that of a clean one, taken at random, or more.
func (s *pages) evict() *page {
	if len(s.at) >= maxPages && s.dirty < len(s.at) {
		for off, p := range s.at {
			if !p.dirty && !p.flushing {
				delete(s.at, off)
				return p
			}
		}
	}
	return &page{data: make([]byte, s.size)}
}

// forget drops what is known of a range that begins another life.
func (s *pages) forget(off, n int64) {
	for ; n > 0; off, n = off+s.size, n-s.size {
		if p := s.at[off]; p != nil && !p.flushing {
			if p.dirty {
				s.dirty--
			}
			delete(s.at, off)
		}
	}
}

// touch marks a page as changed.
func (s *pages) touch(p *page) {
	if !p.dirty && !p.flushing {
		s.dirty++
	}
	p.dirty = true
}

// entry reads the table entry at off.
func (s *pages) entry(k kind, off int64) (uint64, error) {
	p, err := s.page(k, off)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(p.data[off&(s.size-1):]), nil
}

// setEntry changes the table entry at off.
func (s *pages) setEntry(k kind, off int64, v uint64) error {
	p, err := s.page(k, off)
	if err != nil {
		return err
	}
	b := p.data[off&(s.size-1):]
	if binary.BigEndian.Uint64(b) != v {
		binary.BigEndian.PutUint64(b, v)
		s.touch(p)
	}
	return nil
}

// snapshot is the dirty metadata of a moment, by kind, in order of offset.
type snapshot struct {
	off  [kinds][]int64
	data [kinds][]byte // a page for each
}

// take copies all dirty pages to snap and lets them be written.
func (s *pages) take(snap *snapshot) {
	for k := range kinds {
		snap.off[k], snap.data[k] = snap.off[k][:0], snap.data[k][:0]
	}
	if s.dirty == 0 {
		return
	}
	for off, p := range s.at {
		if p.dirty {
			snap.off[p.kind] = append(snap.off[p.kind], off)
		}
	}
	for k := range kinds {
		slices.Sort(snap.off[k])
		for _, off := range snap.off[k] {
			p := s.at[off]
			snap.data[k] = append(snap.data[k], p.data...)
			p.dirty, p.flushing = false, true
		}
	}
}

// settle ends what take began.
func (s *pages) settle(snap *snapshot, written bool) {
	for k := range kinds {
		for _, off := range snap.off[k] {
			p := s.at[off]
			p.flushing = false
			p.dirty = p.dirty || !written
			if !p.dirty {
				s.dirty--
			}
		}
	}
}

// write writes the pages of a kind, those side by side at once.
func (snap *snapshot) write(f File, k kind, pageSize int64) error {
	off, data := snap.off[k], snap.data[k]
	for len(off) > 0 {
		n := 1
		for n < len(off) && off[n] == off[0]+int64(n)*pageSize {
			n++
		}
		if err := f.WriteV([][]byte{data[:int64(n)*pageSize]}, off[0]); err != nil {
			return err
		}
		off, data = off[n:], data[int64(n)*pageSize:]
	}
	return nil
}
