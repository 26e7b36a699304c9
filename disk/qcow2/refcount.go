package qcow2

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// errGrow is what allocate says if the refcount table must be larger first.
var errGrow = errors.New("the refcount table is full")

// maxSpare bounds the list of free clusters; beyond, they are searched again.
const maxSpare = 4096

// perBlock is how many clusters a refcount block counts.
func (i *Image) perBlock() int64 { return i.cluster * 8 >> i.refOrder }

// block finds the refcount block of cluster c; 0 if there is none.
func (i *Image) block(c int64) (int64, error) {
	n := c / i.perBlock()
	if n >= i.refEntries {
		return 0, nil
	}
	e, err := i.pages.entry(kindRefTable, i.refOffset+n*8)
	if err != nil {
		return 0, err
	}
	if off := int64(e); off < 0 || off&(i.cluster-1) != 0 || off>>i.clusterBits >= i.end {
		return 0, corrupt("the refcount block for cluster %d is at %#x", c, e)
	}
	return int64(e), nil
}

// getCount and setCount work on the n'th refcount of a part of a block.
func getCount(b []byte, order uint, n int64) uint64 {
	switch order {
	case 3:
		return uint64(b[n])
	case 4:
		return uint64(binary.BigEndian.Uint16(b[n*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[n*4:]))
	case 6:
		return binary.BigEndian.Uint64(b[n*8:])
	}
	bit := n << order
	return uint64(b[bit/8]) >> (bit % 8) & (1<<(1<<order) - 1)
}

func setCount(b []byte, order uint, n int64, v uint64) {
	switch order {
	case 3:
		b[n] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(b[n*2:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(b[n*4:], uint32(v))
	case 6:
		binary.BigEndian.PutUint64(b[n*8:], v)
	default:
		bit := n << order
		mask := byte(1<<(1<<order)-1) << (bit % 8)
		b[bit/8] = b[bit/8]&^mask | byte(v)<<(bit%8)
	}
}

// counts returns the page with the refcount of cluster c, where in it that is, and
// how many it has from there on; a nil page if there is no block. mu is held.
func (i *Image) counts(c int64) (p *page, n, left int64, err error) {
	block, err := i.block(c)
	if err != nil || block == 0 {
		return nil, 0, i.perBlock() - c%i.perBlock(), err
	}
	bit := c % i.perBlock() << i.refOrder
	if p, err = i.pages.page(kindRefcount, block+bit/8); err != nil {
		return nil, 0, 0, err
	}
	perPage := i.pages.size * 8 >> i.refOrder
	n = c % i.perBlock() % perPage
	return p, n, perPage - n, nil
}

// refcount says how many references there are to cluster c. mu is held.
func (i *Image) refcount(c int64) (uint64, error) {
	p, n, _, err := i.counts(c)
	if err != nil || p == nil {
		return 0, err
	}
	return getCount(p.data, i.refOrder, n), nil
}

// setRefcount changes a refcount, whose block must exist. mu is held.
func (i *Image) setRefcount(c int64, v uint64) error {
	p, n, _, err := i.counts(c)
	if err != nil {
		return err
	}
	if p == nil {
		return corrupt("cluster %d is in use and has no refcount", c)
	}
	setCount(p.data, i.refOrder, n, v)
	i.pages.touch(p)
	return nil
}

// reserved says whether cluster c cannot be free, whatever its refcount says.
func (i *Image) reserved(c int64) bool {
	l1 := i.l1Offset >> i.clusterBits
	ref := i.refOffset >> i.clusterBits
	return c == 0 || c >= l1 && c < l1+(i.l1Entries*8+i.cluster-1)>>i.clusterBits ||
		c >= ref && c < ref+i.refEntries*8>>i.clusterBits
}

// allocate takes up to n free clusters that lie side by side, and says whether
// they are past all that the file ever had, and so read as zeroes. errGrow asks
// for grow. mu is held.
func (i *Image) allocate(n int64) (e extent, fresh bool, err error) {
	if k := len(i.spare); k > 0 {
		s := &i.spare[k-1]
		e = extent{s.first, min(n, s.count)}
		if s.first, s.count = s.first+e.count, s.count-e.count; s.count == 0 {
			i.spare = i.spare[:k-1]
		}
	} else if e, err = i.search(n); err != nil {
		return extent{}, false, err
	}
	for c := range e.count {
		if i.reserved(e.first + c) {
			return extent{}, false, i.breaks(corrupt("cluster %d is in use and its refcount is 0; mend it with qemu-img check -r all", e.first+c))
		}
		if err := i.setRefcount(e.first+c, 1); err != nil {
			return extent{}, false, err
		}
	}
	fresh = e.first >= i.end
	i.end = max(i.end, e.first+e.count)
	return e, fresh, nil
}

// search finds up to n free clusters side by side from the cursor on.
func (i *Image) search(n int64) (extent, error) {
	for {
		if i.cursor > 1<<(56-i.clusterBits) {
			return extent{}, unix.ENOSPC
		}
		if err := i.makeBlock(i.cursor); err != nil {
			return extent{}, err
		}
		p, at, left, err := i.counts(i.cursor)
		if err != nil {
			return extent{}, err
		}
		free := func() bool { return getCount(p.data, i.refOrder, at) == 0 }
		for left > 0 && !free() {
			at, left = at+1, left-1
			i.cursor++
		}
		e := extent{first: i.cursor}
		for left > 0 && e.count < n && free() {
			at, left = at+1, left-1
			e.count++
			i.cursor++
		}
		if e.count > 0 {
			return e, nil
		}
	}
}

// makeBlock sees to a refcount block for cluster c. It lies in the first cluster of
// those that it counts: where there was no block, none of them is in use.
func (i *Image) makeBlock(c int64) error {
	n := c / i.perBlock()
	if n >= i.refEntries {
		return errGrow
	}
	if block, err := i.block(c); err != nil || block != 0 {
		return err
	}
	at := n * i.perBlock()
	if i.reserved(at) {
		return i.breaks(corrupt("cluster %d is in use and has no refcount; mend it with qemu-img check -r all", at))
	}
	if err := i.makeTable(at); err != nil {
		return err
	}
	i.end = max(i.end, at+1)
	if err := i.pages.setEntry(kindRefTable, i.refOffset+n*8, uint64(at)<<i.clusterBits); err != nil {
		return err
	}
	return i.setRefcount(at, 1)
}

// makeTable fills a cluster with zeroes, to hold metadata.
func (i *Image) makeTable(c int64) error {
	off := c << i.clusterBits
	if err := i.file.Zero(off, i.cluster); err != nil {
		return err
	}
	i.pages.forget(off, i.cluster)
	return nil
}

// grow gives the image a larger refcount table. It lies past all clusters that
// are counted so far, behind the blocks that count itself. No lock is held.
func (i *Image) grow() error {
	i.flushing.Lock()
	defer i.flushing.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cursor/i.perBlock() < i.refEntries {
		return nil // done meanwhile
	}
	old := i.refEntries * 8 >> i.clusterBits
	table := min(2*old, maxRefTable>>i.clusterBits)
	blocks := (table + i.perBlock() - 2) / (i.perBlock() - 1)
	entries := table * i.cluster / 8
	if entries < i.refEntries+blocks {
		return unix.ENOSPC
	}
	first := i.refEntries * i.perBlock()
	b := make([]byte, (blocks+table)*i.cluster)
	for c := range blocks + table {
		setCount(b, i.refOrder, c, 1)
	}
	// What is not yet stable of the old table stays in pages, which move along.
	t := b[blocks*i.cluster:]
	if err := i.file.ReadV([][]byte{t[:i.refEntries*8]}, i.refOffset); err != nil {
		return err
	}
	for n := range blocks {
		binary.BigEndian.PutUint64(t[(i.refEntries+n)*8:], uint64(first+n)<<i.clusterBits)
	}
	if err := i.file.WriteV([][]byte{b}, first<<i.clusterBits); err != nil {
		return err
	}
	i.end = max(i.end, first+blocks+table)
	if err := i.file.Sync(); err != nil {
		return i.breaks(err)
	}
	if err := i.nameRefTable(first+blocks, table); err != nil {
		return i.breaks(err)
	}
	i.pages.forget(first<<i.clusterBits, (blocks+table)*i.cluster)
	for off := range i.refEntries * 8 {
		if off%i.pages.size != 0 {
			continue
		}
		if p := i.pages.at[i.refOffset+off]; p != nil {
			delete(i.pages.at, i.refOffset+off)
			i.pages.at[(first+blocks)<<i.clusterBits+off] = p
		}
	}
	i.dropped = join(i.dropped, extent{i.refOffset >> i.clusterBits, old})
	i.refOffset, i.refEntries = (first+blocks)<<i.clusterBits, entries
	return nil
}

// nameRefTable has the header name another refcount table, of so many clusters.
func (i *Image) nameRefTable(first, clusters int64) error {
	var b [12]byte
	binary.BigEndian.PutUint64(b[:], uint64(first)<<i.clusterBits)
	binary.BigEndian.PutUint32(b[8:], uint32(clusters))
	if err := i.file.WriteV([][]byte{b[:]}, atRefTable); err != nil {
		return err
	}
	return i.file.Sync()
}

// join adds an extent to a list, to its last one if it goes on there.
func join(list []extent, e extent) []extent {
	if k := len(list); k > 0 && list[k-1].first+list[k-1].count == e.first {
		list[k-1].count += e.count
		return list
	}
	return append(list, e)
}

// drop notes that one reference to what an L2 entry names goes with the next
// flush. mu is held.
func (i *Image) drop(e uint64) {
	if e&entryCompressed != 0 {
		off, n := i.packed(e)
		first := off >> i.clusterBits
		i.dropped = join(i.dropped, extent{first, (off+n-1)>>i.clusterBits - first + 1})
	} else if off := int64(e & entryOffset); off != 0 {
		i.dropped = join(i.dropped, extent{off >> i.clusterBits, 1})
	}
}

// giveBack frees clusters that allocate gave and that nothing refers to. mu is held.
func (i *Image) giveBack(e extent) {
	for c := e.first; c < e.first+e.count; c++ {
		if i.setRefcount(c, 0) == nil {
			i.keep(extent{c, 1})
		}
	}
}

// keep remembers free clusters.
func (i *Image) keep(e extent) {
	if i.spare = join(i.spare, e); len(i.spare) > maxSpare {
		for _, e := range i.spare {
			i.cursor = min(i.cursor, e.first)
		}
		i.spare = i.spare[:0]
	}
}

// free carries out what was dropped, after that is stable. flushing is held.
func (i *Image) free(list []extent) error {
	if len(list) == 0 {
		return nil
	}
	// Who reads or writes there still has begun before it was dropped.
	i.busy.Lock()
	i.busy.Unlock() //lint:ignore SA2001 waiting was all
	for _, e := range list {
		for e.count > 0 {
			last, n, err := i.lasts(e)
			if err != nil {
				return err
			}
			part := extent{e.first, n}
			if last {
				// While they still count as used. It may fail, and only space is lost.
				_ = i.file.Punch(part.first<<i.clusterBits, part.count<<i.clusterBits)
			}
			if err := i.release(part); err != nil {
				return err
			}
			e.first, e.count = e.first+n, e.count-n
		}
	}
	return nil
}

// lasts says whether the next reference to the first cluster of e is the last one
// to it, and for how many clusters of e the answer is the same.
func (i *Image) lasts(e extent) (last bool, n int64, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for n < e.count {
		v, err := i.refcount(e.first + n)
		if err != nil {
			return false, 0, err
		}
		if n > 0 && (v == 1) != last {
			break
		}
		last = v == 1
		n++
	}
	return last, n, nil
}

// release takes one reference from each cluster of e.
func (i *Image) release(e extent) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for c := e.first; c < e.first+e.count; c++ {
		v, err := i.refcount(c)
		if err != nil {
			return err
		}
		if v == 0 {
			return i.breaks(corrupt("cluster %d was in use and its refcount is 0; mend it with qemu-img check -r all", c))
		}
		if err := i.setRefcount(c, v-1); err != nil {
			return err
		}
		if v == 1 && !i.reserved(c) {
			i.keep(extent{c, 1})
		}
	}
	return nil
}
