package qcow2

// Bits of L1 and L2 entries.
const (
	entryCopied     = 1 << 63 // the only reference: may be written in place
	entryCompressed = 1 << 62
	entryZero       = 1 << 0 // version 3: reads as zeroes

	entryOffset = 1<<56 - 1<<9
)

// Where says what a part of the disk is.
type Where byte

const (
	// Below: the image has nothing there, so that it reads as the base does, or as
	// zeroes past the base's end or without one.
	Below Where = iota
	// Zero: it reads as zeroes.
	Zero
	// Own: it is in the image's file.
	Own

	compressed
)

// place is where a run of the disk is.
type place struct {
	where  Where
	bytes  int64
	offset int64  // Own: in the file
	entry  uint64 // compressed: of the L2 table
}

// Lookup says what the disk has at off, and for how many of n bytes.
func (i *Image) Lookup(off, n int64) (where Where, run int64, err error) {
	if err := i.check("lookup", off, n, false); err != nil {
		return 0, 0, err
	}
	i.mu.Lock()
	p, err := i.lookup(off, n)
	i.mu.Unlock()
	if err != nil {
		return 0, 0, i.fail("lookup", off, n, err)
	}
	if p.where == compressed {
		p.where = Own
	}
	return p.where, p.bytes, nil
}

// lookup finds what is at off, and how much of n bytes from there is alike and, if
// in the file, in order. mu is held.
func (i *Image) lookup(off, n int64) (place, error) {
	mask := i.cluster - 1
	p := place{}
	for {
		table, err := i.l2(off)
		if err != nil {
			return p, err
		}
		if table == 0 {
			// Nothing up to the end of what this L1 entry stands for.
			if p.bytes > 0 && p.where != Below {
				return p, nil
			}
			run := min(i.spanLeft(off), n)
			p.bytes += run
			if off, n = off+run, n-run; n == 0 || p.bytes > maxRun {
				return p, nil
			}
			continue
		}
		_, q, err := i.entryAt(table, off)
		if err != nil {
			return p, err
		}
		switch {
		case p.bytes == 0:
			p = q
		case p.where != q.where || p.where == compressed || p.where == Own && p.offset+p.bytes != q.offset:
			return p, nil
		}
		run := min(i.cluster-off&mask, n)
		p.bytes += run
		if off, n = off+run, n-run; n == 0 || p.bytes > maxRun {
			return p, nil
		}
	}
}

// maxRun bounds what one lookup finds, and with it how long mu is held, in bytes.
const maxRun = 16 << 20

// l2 finds the L2 table for off; 0 if there is none. mu is held.
func (i *Image) l2(off int64) (int64, error) {
	e, err := i.pages.entry(kindL1, i.l1At(off))
	if err != nil {
		return 0, err
	}
	table := int64(e & entryOffset)
	switch {
	case e&^(entryOffset|entryCopied) != 0:
		return 0, corrupt("the L1 entry for %d is %#x", off, e)
	case table&(i.cluster-1) != 0 || table>>i.clusterBits >= i.end:
		return 0, corrupt("the L2 table for %d is at %#x", off, table)
	}
	return table, nil
}

// l1At is where the file has the L1 entry for off.
func (i *Image) l1At(off int64) int64 {
	return i.l1Offset + off>>(2*i.clusterBits-3)*8
}

// l2At is where the file has the L2 entry for off, in a given table.
func (i *Image) l2At(table, off int64) int64 {
	return table + off>>i.clusterBits&(i.cluster/8-1)*8
}

// entryAt reads the entry for off in the L2 table at table. The place's bytes are
// left to the caller. mu is held.
func (i *Image) entryAt(table, off int64) (entry uint64, p place, err error) {
	if entry, err = i.pages.entry(kindL2, i.l2At(table, off)); err != nil {
		return 0, p, err
	}
	p, err = i.place(entry)
	p.offset += off & (i.cluster - 1)
	return entry, p, err
}

// place reads an L2 entry. Its bytes are left to the caller.
func (i *Image) place(e uint64) (place, error) {
	switch {
	case e&entryCompressed != 0:
		if e&entryCopied != 0 {
			return place{}, corrupt("an L2 entry %#x", e)
		}
		return place{where: compressed, entry: e}, nil
	case e&^(entryOffset|entryCopied|entryZero) != 0, i.version == 2 && e&entryZero != 0:
		return place{}, corrupt("an L2 entry %#x", e)
	}
	offset := int64(e & entryOffset)
	if offset&(i.cluster-1) != 0 || offset>>i.clusterBits >= i.end {
		return place{}, corrupt("a cluster is at %#x, and the file ends at %#x", offset, i.end<<i.clusterBits)
	}
	switch {
	case e&entryZero != 0:
		return place{where: Zero}, nil
	case offset == 0:
		return place{where: Below}, nil
	}
	return place{where: Own, offset: offset}, nil
}

// packed is where a compressed cluster's bytes are: up to n of them, some at the
// end perhaps of no use.
func (i *Image) packed(e uint64) (offset, n int64) {
	shift := 62 - (i.clusterBits - 8)
	offset = int64(e & (1<<shift - 1))
	sectors := int64(e &^ (entryCopied | entryCompressed) >> shift)
	return offset, (sectors+1)*sectorSize - offset%sectorSize
}
