package qcow2

import "disco/disk/vector"

// Discard gives up the whole clusters of a range. They read as zeroes afterwards;
// what the image does not have stays as the base has it. Version 2 has no zero
// clusters, so that it keeps everything that is above a base.
func (i *Image) Discard(off, n int64) error {
	if err := i.check("discard", off, n, true); err != nil {
		return err
	}
	if i.version == 2 && i.base != nil {
		return nil
	}
	first, last := i.whole(off, n)
	if err := i.zero(first, last, dropAll); err != nil {
		return i.fail("discard", off, n, err)
	}
	return i.through()
}

// WriteZeroes makes n bytes at off read as zeroes, giving up their storage if unmap
// says that it may.
func (i *Image) WriteZeroes(off, n int64, unmap bool) error {
	if err := i.check("zeroing", off, n, true); err != nil {
		return err
	}
	first, last := i.whole(off, n)
	if i.version == 2 && i.base != nil {
		first, last = off, off
	}
	how := keepPlace
	if unmap {
		how = dropPlace
	}
	err := i.zero(first, last, how)
	if err == nil && first < last {
		if err = i.scrub(off, first-off); err == nil {
			err = i.scrub(last, off+n-last)
		}
	} else if err == nil {
		err = i.scrub(off, n)
	}
	if err != nil {
		return i.fail("zeroing", off, n, err)
	}
	return i.through()
}

// whole is the part of a range that is whole clusters; the disk's end ends one.
func (i *Image) whole(off, n int64) (first, last int64) {
	mask := i.cluster - 1
	first, last = (off+mask)&^mask, off+n
	if last < i.size {
		last &^= mask
	}
	return first, max(first, last)
}

// scrub writes zeroes where there is anything else.
func (i *Image) scrub(off, n int64) error {
	r := i.request(nil)
	defer i.done(r)
	for n > 0 {
		i.mu.Lock()
		p, err := i.lookup(off, n)
		i.mu.Unlock()
		if err != nil {
			return err
		}
		if i.empty(p, off) {
			off, n = off+p.bytes, n-p.bytes
			continue
		}
		part := min(p.bytes, int64(len(zeroes)))
		r.blank[0] = zeroes[:part]
		for r.rest = vector.New(r.blank[:]); part > 0; {
			m, err := i.write(r, off, part)
			if err != nil {
				return err
			}
			off, n, part = off+m, n-m, part-m
		}
	}
	return nil
}

// What becomes of the storage of clusters that are to read as zeroes.
type storage byte

const (
	keepPlace storage = iota
	dropPlace
	dropAll // and what is below may be seen again where it was
)

// zero makes the clusters of a range of the disk read as zeroes.
func (i *Image) zero(off, last int64, how storage) error {
	for off < last {
		if err := i.begin(); err != nil {
			return err
		}
		next, err := i.zeroTable(off, i.settled(off, last-off), how)
		i.leave()
		if err = i.enough(err); err != nil {
			return err
		}
		off = next
	}
	return nil
}

// zeroTable does so for those clusters of n bytes at off that one L2 table maps,
// and returns where they end. mu is held.
func (i *Image) zeroTable(off, n int64, how storage) (int64, error) {
	last := off + min(n, i.spanLeft(off))
	table, err := i.l2(off)
	if err != nil {
		return off, err
	}
	if table == 0 && (how == dropAll || i.empty(place{}, off)) {
		return last, nil
	}
	if table, err = i.ownTable(off); err != nil {
		return off, err
	}
	for ; off < last; off += i.cluster {
		at := i.l2At(table, off)
		old, err := i.pages.entry(kindL2, at)
		if err != nil {
			return off, err
		}
		p, err := i.place(old)
		if err != nil {
			return off, err
		}
		if p.where == Below && (how == dropAll || i.empty(p, off)) {
			continue
		}
		entry := uint64(0)
		if !i.empty(place{}, off) {
			entry = entryZero
		}
		if how == keepPlace && old&(entryCompressed|entryCopied) == entryCopied && i.version == 3 {
			entry = old | entryZero
		}
		if err := i.pages.setEntry(kindL2, at, entry); err != nil {
			return off, err
		}
		if entry&entryOffset == 0 {
			i.drop(old)
		}
	}
	return min(off, last), nil
}
