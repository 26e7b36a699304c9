// Package turns has a disk's requests wait for their guest's turn while the host's
// device is full, as tickets say (package scheduler/flow).
//
// Done: reads, writes, discards and zeroes of one guest as a flow beside those of
// others.
//
// Not done: flushes, of which the host makes others wait anyway, and pages that are
// mapped: they were read long ago.
package turns

import (
	"disco/disk"
	"disco/disk/vector"
	"disco/memory"
	"disco/scheduler/flow"
)

// lender is what it may be besides (blk.Lender).
type lender interface {
	Lend(off, n int64) (r memory.Run, skip int64)
	Return(r memory.Run, mapped int)
}

// Waiting is a disk whose requests wait for their turns. Its methods may be called as
// those of the disk below.
type Waiting struct {
	disk.Disk
	flow *flow.Flow
}

// lending is a Waiting that lends pages.
type lending struct {
	*Waiting
	lender
}

// New has a disk's requests wait in a flow. Without one it is the disk itself.
func New(d disk.Disk, f *flow.Flow) disk.Disk {
	if f == nil {
		return d
	}
	w := &Waiting{d, f}
	if by, ok := d.(lender); ok {
		return &lending{w, by}
	}
	return w
}

// request is what a request costs besides its bytes, in bytes: requests of a few
// pages are divided by their number, larger ones by what they move.
const request = 64 << 10

// Hurry has the requests not wait any more, or again.
func (w *Waiting) Hurry(on bool) {
	w.flow.Hurry(on)
	if by, ok := w.Disk.(interface{ Hurry(bool) }); ok {
		by.Hurry(on)
	}
}

// ReadV reads in its turn.
func (w *Waiting) ReadV(bufs [][]byte, off int64) error {
	p := w.flow.Enter(request + vector.Len(bufs))
	defer w.flow.Done(p)
	return w.Disk.ReadV(bufs, off)
}

// WriteV writes in its turn.
func (w *Waiting) WriteV(bufs [][]byte, off int64) error {
	p := w.flow.Enter(request + vector.Len(bufs))
	defer w.flow.Done(p)
	return w.Disk.WriteV(bufs, off)
}

// Discard counts as a request of no bytes.
func (w *Waiting) Discard(off, n int64) error {
	p := w.flow.Enter(request)
	defer w.flow.Done(p)
	return w.Disk.Discard(off, n)
}

// WriteZeroes counts as a request of no bytes.
func (w *Waiting) WriteZeroes(off, n int64, unmap bool) error {
	p := w.flow.Enter(request)
	defer w.flow.Done(p)
	return w.Disk.WriteZeroes(off, n, unmap)
}
