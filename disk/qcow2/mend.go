package qcow2

import (
	"encoding/binary"
	"fmt"
)

// maxMended bounds the clusters of a file that is mended, for their counts are kept
// in memory: 128 MiB of them, for 2 TiB in clusters of 64 KiB.
const maxMended = 1 << 25

// mend counts all references of an image that was not closed by who wrote it last,
// which may have kept its refcounts in memory (lazy refcounts), and gives it new
// ones. An image in which more than those are wrong is refused, and not changed.
//
// The new refcount table and its blocks lie past the end of the file, so at every
// moment the header names whole ones, the old or the new; what the old ones were in
// is free then. The dirty mark goes last. Nothing else uses the image meanwhile.
func (i *Image) mend(h *header) error {
	if i.end > maxMended {
		return fmt.Errorf("%d clusters are too many", i.end)
	}
	c := &checker{i: i, mending: true}
	if err := c.references(h); err != nil {
		return err
	}
	if c.report.Corruptions > 0 {
		return corrupt("%s", c.report.Problems[0])
	}
	if err := i.recount(&c.seen); err != nil {
		return err
	}
	if err := i.remark(&c.seen); err != nil {
		return err
	}
	if err := i.file.Sync(); err != nil {
		return err
	}
	h.incompatible &^= featureDirty
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], h.incompatible)
	if err := i.file.WriteV([][]byte{b[:]}, atIncompatible); err != nil {
		return err
	}
	return i.file.Sync()
}

// recount writes refcounts that say what was seen, and has the header name them.
func (i *Image) recount(seen *counts) error {
	old := i.end
	// The table, and a block for each group of clusters in use, which the table and
	// the blocks themselves are, too.
	var groups []int64
	table := int64(0)
	for more := int64(1); ; more = int64(len(groups)) + table {
		n := (old+more-1)/i.perBlock() + 1
		groups = groups[:0]
		for g := range n {
			if (g+1)*i.perBlock() > old || seen.any(g*i.perBlock(), i.perBlock()) {
				groups = append(groups, g)
			}
		}
		if table = (n*8 + i.cluster - 1) / i.cluster; int64(len(groups))+table == more {
			break
		}
	}
	if table*i.cluster > maxRefTable {
		return fmt.Errorf("its refcount table would have %d bytes", table*i.cluster)
	}
	for k := range int64(len(groups)) + table {
		seen.add(old+k, 1)
	}

	most := ^uint64(0) >> (64 - 1<<i.refOrder)
	t := make([]byte, table*i.cluster)
	block := make([]byte, i.cluster)
	at := old + table
	for _, g := range groups {
		clear(block)
		for k := range i.perBlock() {
			v := uint64(seen.of(g*i.perBlock() + k))
			if v > most {
				return corrupt("cluster %d has %d references, and refcounts of %d bits", g*i.perBlock()+k, v, 1<<i.refOrder)
			}
			if v != 0 {
				setCount(block, i.refOrder, k, v)
			}
		}
		if err := i.file.WriteV([][]byte{block}, at<<i.clusterBits); err != nil {
			return err
		}
		binary.BigEndian.PutUint64(t[g*8:], uint64(at)<<i.clusterBits)
		at++
	}
	if err := i.file.WriteV([][]byte{t}, old<<i.clusterBits); err != nil {
		return err
	}
	if err := i.file.Sync(); err != nil {
		return err
	}
	if err := i.nameRefTable(old, table); err != nil {
		return err
	}
	i.end, i.refOffset, i.refEntries = at, old<<i.clusterBits, table*i.cluster/8
	return nil
}

// remark has the active tables say of each cluster whether theirs is the only
// reference to it. A crash on the way is no harm while the image is marked dirty.
func (i *Image) remark(seen *counts) error {
	mark := func(b []byte) (changed bool) {
		for ; len(b) > 0; b = b[8:] {
			e := binary.BigEndian.Uint64(b)
			if e&entryCompressed != 0 || e&entryOffset == 0 {
				continue
			}
			v := e &^ entryCopied
			if seen.of(int64(e&entryOffset)>>i.clusterBits) == 1 {
				v |= entryCopied
			}
			if v != e {
				binary.BigEndian.PutUint64(b, v)
				changed = true
			}
		}
		return changed
	}
	l1 := make([]byte, i.l1Entries*8)
	if err := i.file.ReadV([][]byte{l1}, i.l1Offset); err != nil {
		return err
	}
	l2 := make([]byte, i.cluster)
	for k := int64(0); k < i.l1Entries; k++ {
		at := int64(binary.BigEndian.Uint64(l1[k*8:]) & entryOffset)
		if at == 0 {
			continue
		}
		if err := i.file.ReadV([][]byte{l2}, at); err != nil {
			return err
		}
		// A table that a snapshot has, too, is its as much.
		if seen.of(at>>i.clusterBits) == 1 && mark(l2) {
			if err := i.file.WriteV([][]byte{l2}, at); err != nil {
				return err
			}
		}
	}
	if mark(l1) {
		return i.file.WriteV([][]byte{l1}, i.l1Offset)
	}
	return nil
}
