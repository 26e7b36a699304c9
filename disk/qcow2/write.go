package qcow2

import (
	"errors"
	"slices"
	"unsafe"

	"disco/disk/vector"
)

const (
	// maxAllocation bounds what one step of a write allocates, in bytes, unless it
	// is one cluster.
	maxAllocation = 4 << 20
	// maxDropped are freed before more are given up.
	maxDropped = 4096
)

// zeroes are aligned to pages: a write that a kill interrupts ends where a page of
// its source does, which must not be within a sector.
var zeroes = func() []byte {
	b := make([]byte, 64<<10+4096)
	return b[-uintptr(unsafe.Pointer(&b[0]))%4096:][:64<<10]
}()

// WriteV writes bufs, in order, to the disk at off. It is on stable storage after
// Flush. A write that fails may have been done in part.
func (i *Image) WriteV(bufs [][]byte, off int64) error {
	n := vector.Len(bufs)
	if err := i.check("write", off, n, true); err != nil {
		return err
	}
	r := i.request(bufs)
	defer i.done(r)
	for at, left := off, n; left > 0; {
		m, err := i.write(r, at, left)
		if err != nil {
			return i.fail("write", off, n, err)
		}
		at, left = at+m, left-m
	}
	return i.through()
}

// through ends a change.
func (i *Image) through() error {
	if i.options.WriteThrough {
		return i.Flush()
	}
	return nil
}

// begin starts a change of metadata, and holds busy and mu if it returns nil.
func (i *Image) begin() error {
	for {
		i.busy.RLock()
		i.mu.Lock()
		full := i.pages.dirty > maxDirty || len(i.dropped) > maxDropped
		if i.broken == nil && !full {
			return nil
		}
		err := i.broken
		i.mu.Unlock()
		i.busy.RUnlock()
		if err != nil {
			return err
		}
		if err := i.Flush(); err != nil {
			return err
		}
	}
}

func (i *Image) leave() {
	i.mu.Unlock()
	i.busy.RUnlock()
}

// settled waits until nobody moves the cluster of the disk at off, and returns how
// much of n bytes is free of that. mu is held.
func (i *Image) settled(off, n int64) int64 {
	g := off >> i.clusterBits
	for slices.ContainsFunc(i.moving, func(e extent) bool { return g >= e.first && g < e.first+e.count }) {
		i.moved.Wait()
	}
	for _, e := range i.moving {
		if e.first > g {
			n = min(n, e.first<<i.clusterBits-off)
		}
	}
	return n
}

// write writes the next part of r to the disk at off, of n bytes that are left, and
// returns its length.
func (i *Image) write(r *request, off, n int64) (int64, error) {
	if err := i.begin(); err != nil {
		return 0, err
	}
	n = i.settled(off, n)
	table, err := i.ownTable(off)
	var p place
	if err == nil {
		p, err = i.inPlace(table, off, n)
	}
	if err != nil {
		i.leave()
		return 0, i.enough(err)
	}
	if p.bytes > 0 {
		i.mu.Unlock()
		defer i.busy.RUnlock()
		r.part = r.rest.Take(r.part[:0], p.bytes)
		return p.bytes, i.file.WriteV(r.part, p.offset)
	}
	n, err = i.move(r, table, off, n)
	i.leave()
	return n, i.enough(err)
}

// enough sees to what a change lacked; nil says to try again.
func (i *Image) enough(err error) error {
	if errors.Is(err, errGrow) {
		return i.grow()
	}
	return err
}

// inPlace finds how much of n bytes at off can be written where it is, in order.
// mu is held.
func (i *Image) inPlace(table, off, n int64) (place, error) {
	mask := i.cluster - 1
	n = min(n, i.spanLeft(off), maxRun)
	var p place
	for n > 0 {
		e, q, err := i.entryAt(table, off)
		if err != nil {
			return p, err
		}
		if q.where != Own || e&entryCopied == 0 || p.bytes > 0 && p.offset+p.bytes != q.offset {
			break
		}
		if i.reserved(q.offset >> i.clusterBits) {
			return p, i.breaks(corrupt("the disk at %d is where the image's own tables are", off))
		}
		if p.bytes == 0 {
			p = q
		}
		run := min(i.cluster-off&mask, n)
		p.bytes += run
		off, n = off+run, n-run
	}
	return p, nil
}

// spanLeft is what is left at off of the part of the disk that one L2 table maps.
func (i *Image) spanLeft(off int64) int64 {
	span := i.cluster / 8 * i.cluster
	return span - off&(span-1)
}

// ownTable returns the L2 table for off, which nobody else refers to. mu is held.
func (i *Image) ownTable(off int64) (int64, error) {
	old, err := i.l2(off)
	if err != nil {
		return 0, err
	}
	if old != 0 {
		e, err := i.pages.entry(kindL1, i.l1At(off))
		if err != nil || e&entryCopied != 0 {
			return old, err
		}
	}
	e, _, err := i.allocate(1)
	if err != nil {
		return 0, err
	}
	table := e.first << i.clusterBits
	if err := i.makeTable(e.first); err != nil {
		i.giveBack(e)
		return 0, err
	}
	if old != 0 {
		// As it is in the file: what is shared does not change.
		b := make([]byte, i.cluster)
		err := i.file.ReadV([][]byte{b}, old)
		if err == nil {
			err = i.file.WriteV([][]byte{b}, table)
		}
		if err != nil {
			i.giveBack(e)
			return 0, err
		}
	}
	if err := i.pages.setEntry(kindL1, i.l1At(off), uint64(table)|entryCopied); err != nil {
		i.giveBack(e)
		return 0, err
	}
	i.drop(uint64(old))
	return table, nil
}

// move writes the next part of r, of at most n bytes, to clusters of their own,
// with what else the old ones have. The first one cannot be written in place. mu is
// held, but not while data moves.
func (i *Image) move(r *request, table, off, n int64) (int64, error) {
	mask := i.cluster - 1
	head := off & mask
	n = min(n, i.spanLeft(off), max(maxAllocation, i.cluster)-head)
	want := (head + n + mask) >> i.clusterBits
	first, err := i.pages.entry(kindL2, i.l2At(table, off))
	if err != nil {
		return 0, err
	}
	last := first
	count := int64(1)
	// A zero cluster that has a place already is written there.
	kept := first&(entryZero|entryCopied|entryCompressed) == entryZero|entryCopied && first&entryOffset != 0
	for ; count < want && !kept; count++ {
		e, err := i.pages.entry(kindL2, i.l2At(table, off+count<<i.clusterBits))
		if err != nil {
			return 0, err
		}
		if !i.moves(e) {
			break
		}
		last = e
	}
	var to extent
	fresh := false
	if kept {
		to = extent{int64(first&entryOffset) >> i.clusterBits, 1}
		if i.reserved(to.first) {
			return 0, i.breaks(corrupt("the disk at %d is where the image's own tables are", off))
		}
	} else if to, fresh, err = i.allocate(count); err != nil {
		return 0, err
	}
	if to.count < count {
		count = to.count
		if last, err = i.pages.entry(kindL2, i.l2At(table, off+(count-1)<<i.clusterBits)); err != nil {
			i.giveBack(to)
			return 0, err
		}
	}
	n = min(n, count<<i.clusterBits-head)

	var around [2]place
	for k, e := range []uint64{first, last} {
		if around[k], err = i.place(e); err != nil {
			if !kept {
				i.giveBack(to)
			}
			return 0, err
		}
	}

	moving := extent{off >> i.clusterBits, count}
	i.moving = append(i.moving, moving)
	i.mu.Unlock()
	err = i.fill(r, off, n, to.first<<i.clusterBits, around, fresh)
	i.mu.Lock()
	k := slices.Index(i.moving, moving)
	i.moving = slices.Delete(i.moving, k, k+1)
	i.moved.Broadcast()

	done := int64(0)
	for ; done < count && err == nil; done++ {
		at := i.l2At(table, (moving.first+done)<<i.clusterBits)
		var old uint64
		if old, err = i.pages.entry(kindL2, at); err != nil {
			break
		}
		if err = i.pages.setEntry(kindL2, at, uint64(to.first+done)<<i.clusterBits|entryCopied); err != nil {
			break
		}
		if !kept {
			i.drop(old)
		}
	}
	if !kept && done < count {
		i.giveBack(extent{to.first + done, count - done})
	}
	return n, err
}

// moves says whether the cluster of an L2 entry is to be allocated anew before it
// is written.
func (i *Image) moves(e uint64) bool {
	switch {
	case e&entryCompressed != 0, e&entryCopied == 0:
		return true
	}
	return e&entryOffset == 0
}

// fill writes the next n bytes of r to the file for the disk at off, whose clusters
// are now at `to`, and around them what the first and the last one have been. Fresh
// clusters read as zeroes. busy is held.
func (i *Image) fill(r *request, off, n, to int64, old [2]place, fresh bool) error {
	mask := i.cluster - 1
	head, end := off&mask, off+n
	r.bufs = r.bufs[:0]
	var err error
	if r.head, err = i.around(r, r.head, off-head, head, old[0], fresh); err != nil {
		return err
	}
	if len(r.bufs) == 0 {
		to += head
	}
	r.bufs = r.rest.Take(r.bufs, n)
	if r.tail, err = i.around(r, r.tail, end, -end&mask, old[1], fresh); err != nil {
		return err
	}
	return i.file.WriteV(r.bufs, to)
}

// around appends to r.bufs what a cluster has been in a range of the disk; nothing
// if it reads as zeroes and the new one does so, too. It uses and returns buf.
func (i *Image) around(r *request, buf []byte, off, n int64, p place, fresh bool) ([]byte, error) {
	if n == 0 {
		return buf, nil
	}
	if i.empty(p, off) {
		for ; n > 0 && !fresh; n -= int64(len(zeroes)) {
			r.bufs = append(r.bufs, zeroes[:min(n, int64(len(zeroes)))])
		}
		return buf, nil
	}
	p.offset += off & (i.cluster - 1)
	buf = slices.Grow(buf[:0], int(n))[:n]
	r.alone[0] = buf
	err := i.read(r.alone[:], off, p)
	r.alone[0] = nil
	r.bufs = append(r.bufs, buf)
	return buf, err
}

// empty says whether a place, for the disk from off on, reads as zeroes.
func (i *Image) empty(p place, off int64) bool {
	return p.where == Zero || p.where == Below && (i.base == nil || off >= i.base.Size())
}
