package segment

import (
	"sync"

	"disco/memory"
	"disco/net/frame"
)

// parcel is a copy of a frame, its header before it, in memory of the switch's own.
type parcel struct {
	frame frame.Frame
	bytes []byte
}

var parcels = sync.Pool{New: func() any { return new(parcel) }}

// parcelFor takes a parcel with room for a frame of n bytes.
func parcelFor(n int) *parcel {
	p := parcels.Get().(*parcel)
	if n += frame.HeaderLen; cap(p.bytes) < n {
		p.bytes = make([]byte, n)
	}
	p.bytes = p.bytes[:n]
	return p
}

func (p *parcel) free() {
	p.frame.Pieces = p.frame.Pieces[:0]
	parcels.Put(p)
}

// fill copies a frame.
func (p *parcel) fill(f *frame.Frame) {
	f.Header.Put(p.bytes)
	to := p.bytes[frame.HeaderLen:]
	for i := range f.Pieces {
		to = to[copy(to, f.Pieces[i].Bytes):]
	}
}

// maxCopies bounds the bytes of copies that wait for receivers: what goes to all is
// copied for each that has no buffers.
const maxCopies = 16 << 20

// copyOf is a copy of a frame, to be kept; nil if there are too many already.
func (s *Segment) copyOf(f *frame.Frame) *frame.Frame {
	if s.copies.Add(int64(f.Len)) > maxCopies {
		s.copies.Add(-int64(f.Len))
		return nil
	}
	p := parcelFor(f.Len)
	p.fill(f)
	p.frame.Done = func() {
		s.copies.Add(-int64(p.frame.Len))
		p.free()
	}
	p.frame.Header, p.frame.Len = f.Header, f.Len
	p.frame.Pieces = append(p.frame.Pieces, memory.Loan{Bytes: p.bytes[frame.HeaderLen:]})
	return &p.frame
}
