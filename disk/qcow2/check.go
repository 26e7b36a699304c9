package qcow2

import (
	"encoding/binary"
	"fmt"
)

// maxProblems are told by Check; more are counted.
const maxProblems = 20

// maxWalked bounds the L2 tables that are read, in bytes, however often snapshots
// name them: those of 32 TiB in clusters of 64 KiB.
const maxWalked = 4 << 30

var errWalked = fmt.Errorf("more than %d MiB of L2 tables", maxWalked>>20)

// Report is what Check found.
type Report struct {
	// Corruptions are references that make no sense or that refcounts do not know
	// of: writing to such an image may destroy data.
	Corruptions int
	// Leaks are clusters that count as used more often than they are.
	Leaks    int
	Problems []string // the first of both, one line each
}

// Check compares all references in the image in f, those of its snapshots too,
// with its refcounts, as qemu-img check does. It changes nothing, and takes memory
// in proportion to the clusters in use. An error is one of reading the file, of a
// header that leaves nothing to check, or of more than can be checked.
func Check(f File) (*Report, error) {
	i, err := Open(f, Options{ReadOnly: true, Backing: func(Backing) (Base, error) { return nil, nil }})
	if err != nil {
		return nil, err
	}
	fileSize, err := f.Size()
	if err != nil {
		return nil, err
	}
	h, err := readHeader(f, fileSize)
	if err != nil {
		return nil, err
	}
	c := &checker{i: i}
	if err := c.references(h); err != nil {
		return nil, err
	}
	c.refer("the refcount table", i.refOffset, i.refEntries*8)
	if h.autoclear&1 != 0 {
		c.note("it has bitmaps, whose clusters count as leaks here")
	}
	if err := c.compare(); err != nil {
		return nil, err
	}
	return &c.report, nil
}

// checker goes through the references of an image.
type checker struct {
	i       *Image
	mending bool // refcounts, and what is said of them, are wrong to begin with
	seen    counts
	walked  int64 // bytes of L2 tables
	report  Report
}

// counts are the references to each cluster. The zero value is none.
type counts struct {
	parts map[int64]*[countsPart]uint32
}

const countsPart = 1024

func (s *counts) add(cluster int64, n uint32) {
	if s.parts == nil {
		s.parts = map[int64]*[countsPart]uint32{}
	}
	p := s.parts[cluster/countsPart]
	if p == nil {
		p = new([countsPart]uint32)
		s.parts[cluster/countsPart] = p
	}
	p[cluster%countsPart] += n
}

func (s *counts) of(cluster int64) uint32 {
	if p := s.parts[cluster/countsPart]; p != nil {
		return p[cluster%countsPart]
	}
	return 0
}

// any says whether there are references to some of n clusters.
func (s *counts) any(cluster, n int64) bool {
	for end := cluster + n; cluster < end; {
		next := min((cluster/countsPart+1)*countsPart, end)
		if p := s.parts[cluster/countsPart]; p != nil {
			for ; cluster < next; cluster++ {
				if p[cluster%countsPart] != 0 {
					return true
				}
			}
		}
		cluster = next
	}
	return false
}

// take is of, and forgets it.
func (s *counts) take(cluster int64) uint32 {
	n := s.of(cluster)
	if n != 0 {
		s.parts[cluster/countsPart][cluster%countsPart] = 0
	}
	return n
}

// references counts all references to clusters but those of the refcounts.
func (c *checker) references(h *header) error {
	c.refer("the header", 0, c.i.cluster)
	if err := c.l1(c.i.l1Offset, c.i.l1Entries, true); err != nil {
		return err
	}
	return c.snapshots(h)
}

func (c *checker) note(format string, args ...any) {
	if len(c.report.Problems) < maxProblems {
		c.report.Problems = append(c.report.Problems, fmt.Sprintf(format, args...))
	}
}

func (c *checker) corrupt(format string, args ...any) {
	c.report.Corruptions++
	c.note(format, args...)
}

// refer counts a reference to a range of the file, and says whether it is in it.
func (c *checker) refer(what string, off, n int64) bool {
	if off < 0 || off>>c.i.clusterBits >= c.i.end {
		c.corrupt("%s is at %#x, and the file ends at %#x", what, off, c.i.end<<c.i.clusterBits)
		return false
	}
	for k := off >> c.i.clusterBits; k <= (off+n-1)>>c.i.clusterBits; k++ {
		c.seen.add(k, 1)
	}
	return true
}

// table reads a table of the file, past whose end are zeroes.
func (c *checker) table(off, entries int64) ([]uint64, error) {
	b := make([]byte, entries*8)
	if err := c.i.file.ReadV([][]byte{b}, off); err != nil {
		return nil, err
	}
	t := make([]uint64, entries)
	for k := range t {
		t[k] = binary.BigEndian.Uint64(b[k*8:])
	}
	return t, nil
}

// l1 counts what an L1 table refers to, and checks the marks of being the only
// reference in the active one.
func (c *checker) l1(off, entries int64, active bool) error {
	if !c.refer("an L1 table", off, entries*8) {
		return nil
	}
	l1, err := c.table(off, entries)
	if err != nil {
		return err
	}
	own := map[int64]bool{} // L2 tables
	for k, e := range l1 {
		at := int64(e & entryOffset)
		if at == 0 {
			continue
		}
		if at&(c.i.cluster-1) != 0 {
			c.corrupt("L1 entry %d is %#x", k, e)
			continue
		}
		if !c.refer("an L2 table", at, c.i.cluster) {
			continue
		}
		if own[at] {
			c.corrupt("two entries of an L1 table name the L2 table at %#x", at)
			continue
		}
		own[at] = true
		if c.walked += c.i.cluster; c.walked > maxWalked {
			return errWalked
		}
		if active {
			if err := c.copied("L1", at, e); err != nil {
				return err
			}
		}
		l2, err := c.table(at, c.i.cluster/8)
		if err != nil {
			return err
		}
		for _, e := range l2 {
			if err := c.l2(e, active); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) l2(e uint64, active bool) error {
	if e&entryCompressed != 0 {
		if e&entryCopied != 0 {
			c.corrupt("an L2 entry %#x", e)
		}
		off, n := c.i.packed(e)
		c.refer("a compressed cluster", off, n)
		return nil
	}
	if _, err := c.i.place(e); err != nil {
		c.corrupt("%v", err)
		return nil
	}
	off := int64(e & entryOffset)
	if off == 0 || !c.refer("a cluster", off, c.i.cluster) || !active {
		return nil
	}
	return c.copied("L2", off, e)
}

// copied compares the mark of the only reference with the refcount.
func (c *checker) copied(what string, off int64, e uint64) error {
	if c.mending {
		return nil
	}
	v, err := c.i.refcount(off >> c.i.clusterBits)
	if err == nil && (v == 1) != (e&entryCopied != 0) {
		c.corrupt("the %s entry %#x, where the refcount is %d", what, e, v)
	}
	return err
}

// snapshots counts what the snapshots refer to.
func (c *checker) snapshots(h *header) error {
	if h.snapshots == 0 {
		return nil
	}
	at := h.snapsOffset
	for k := range h.snapshots {
		var b [40]byte
		if err := c.i.file.ReadV([][]byte{b[:]}, at); err != nil {
			return err
		}
		be := binary.BigEndian
		l1, entries := int64(be.Uint64(b[0:])), int64(be.Uint32(b[8:]))
		if entries*8 > maxL1 || l1 < 0 || l1&(c.i.cluster-1) != 0 {
			c.corrupt("snapshot %d has an L1 table of %d entries at %#x", k, entries, l1)
		} else if err := c.l1(l1, entries, false); err != nil {
			return err
		}
		at += 40 + int64(be.Uint32(b[36:])) + int64(be.Uint16(b[12:])) + int64(be.Uint16(b[14:]))
		at = (at + 7) &^ 7
	}
	c.refer("the snapshot table", h.snapsOffset, at-h.snapsOffset)
	return nil
}

// compare compares what was seen with what the refcounts say.
func (c *checker) compare() error {
	i := c.i
	table, err := c.table(i.refOffset, i.refEntries)
	if err != nil {
		return err
	}
	for n, e := range table {
		if e == 0 {
			continue
		}
		if int64(e)&(i.cluster-1) != 0 {
			c.corrupt("refcount table entry %d is %#x", n, e)
			continue
		}
		c.refer("a refcount block", int64(e), i.cluster)
	}
	block := make([]byte, i.cluster)
	for n, e := range table {
		if e == 0 || int64(e)&(i.cluster-1) != 0 || int64(e) < 0 || int64(e)>>i.clusterBits >= i.end {
			continue
		}
		if err := i.file.ReadV([][]byte{block}, int64(e)); err != nil {
			return err
		}
		for k := range i.perBlock() {
			cluster := int64(n)*i.perBlock() + k
			have, want := getCount(block, i.refOrder, k), uint64(c.seen.take(cluster))
			switch {
			case have < want:
				c.corrupt("cluster %d has %d references and a refcount of %d", cluster, want, have)
			case have > want:
				c.report.Leaks++
				c.note("cluster %d has %d references and a refcount of %d", cluster, want, have)
			}
		}
	}
	for n, part := range c.seen.parts {
		for k, want := range part {
			if want != 0 {
				c.corrupt("cluster %d has %d references and no refcount", n*countsPart+int64(k), want)
			}
		}
	}
	return nil
}
