package qcow2

import (
	"encoding/binary"
	"fmt"
)

// CreateOptions say what image to make.
type CreateOptions struct {
	Size        int64 // that a guest sees, in bytes; a multiple of 512
	ClusterSize int64 // a power of two from 512 to 2 MiB; 0 for 64 KiB

	// Backing is the name of the file that the image stands on, as it is to be
	// written: relative ones are to the image's folder. Empty for none.
	Backing       string
	BackingFormat string // "raw" or "qcow2"
	Stamp         *Stamp // what to remember of it; nil for nothing

	refOrder uint // refcounts of 1<<refOrder bits; 0 for 16 bits
}

// Create writes an empty image, of version 3, to f, which must be empty, and
// syncs it. A crash on the way leaves no image, or one that is whole.
func Create(f File, o CreateOptions) error {
	cluster := o.ClusterSize
	if cluster == 0 {
		cluster = 64 << 10
	}
	bits := uint(0)
	for int64(1)<<bits < cluster {
		bits++
	}
	if bits < minClusterBits || bits > maxClusterBits || cluster != 1<<bits {
		return fmt.Errorf("qcow2: clusters of %d bytes: they are a power of two from 512 to 2 MiB", cluster)
	}
	if o.Size <= 0 || o.Size%sectorSize != 0 || o.Size > maxSize {
		return fmt.Errorf("qcow2: a disk of %d bytes: it must be a multiple of %d", o.Size, sectorSize)
	}
	perL1 := cluster / 8 * cluster
	l1Entries := (o.Size + perL1 - 1) / perL1
	if l1Entries*8 > maxL1 {
		return fmt.Errorf("qcow2: a disk of %d bytes is too large for clusters of %d", o.Size, cluster)
	}
	up := func(n, unit int64) int64 { return (n + unit - 1) / unit }
	l1 := up(l1Entries*8, cluster)
	refOrder := o.refOrder
	if refOrder == 0 {
		refOrder = 4
	}
	perBlock := cluster * 8 >> refOrder
	// Header, refcount table, refcount blocks, L1 table, one after the other.
	table, blocks := int64(1), int64(1)
	for 1+table+blocks+l1 > blocks*perBlock || blocks > table*cluster/8 {
		blocks = up(1+table+blocks+l1, perBlock)
		table = up(blocks*8, cluster)
	}
	used := 1 + table + blocks + l1

	be := binary.BigEndian
	b := make([]byte, (1+table+blocks)*cluster)
	be.PutUint32(b[0:], magic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], uint32(bits))
	be.PutUint64(b[24:], uint64(o.Size))
	be.PutUint32(b[36:], uint32(l1Entries))
	be.PutUint64(b[40:], uint64((1+table+blocks)*cluster))
	be.PutUint64(b[atRefTable:], uint64(cluster))
	be.PutUint32(b[56:], uint32(table))
	be.PutUint32(b[96:], uint32(refOrder))
	be.PutUint32(b[100:], headerSize3+8)
	if err := o.names(b[:cluster], headerSize3+8); err != nil {
		return err
	}
	for i := range blocks {
		be.PutUint64(b[cluster+i*8:], uint64((1+table+i)*cluster))
	}
	for i := range used {
		setCount(b[(1+table)*cluster:], refOrder, i, 1)
	}
	if err := f.Zero((1+table+blocks)*cluster, l1*cluster); err != nil {
		return fmt.Errorf("qcow2: making an image: %w", err)
	}
	// The magic comes last.
	for _, part := range [][2]int64{{cluster, int64(len(b))}, {0, cluster}} {
		if err := f.WriteV([][]byte{b[part[0]:part[1]]}, part[0]); err != nil {
			return fmt.Errorf("qcow2: making an image: %w", err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("qcow2: making an image: %w", err)
		}
	}
	return nil
}

// names writes header extensions and the backing file's name at `at` of the first
// cluster.
func (o *CreateOptions) names(first []byte, at int64) error {
	be := binary.BigEndian
	var b []byte
	extension := func(kind uint32, data []byte) {
		b = be.AppendUint32(b, kind)
		b = be.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
		b = append(b, make([]byte, -len(data)&7)...)
	}
	if o.Backing != "" && o.BackingFormat != "" {
		extension(extBackingFormat, []byte(o.BackingFormat))
	}
	if o.Stamp != nil {
		extension(extStamp, o.Stamp.append(nil))
	}
	extension(extEnd, nil)
	if len(o.Backing) > maxName || at+int64(len(b)+len(o.Backing)) > int64(len(first)) {
		return fmt.Errorf("qcow2: the backing file's name %q is too long", o.Backing)
	}
	copy(first[at:], b)
	if o.Backing != "" {
		at += int64(len(b))
		be.PutUint64(first[8:], uint64(at))
		be.PutUint32(first[16:], uint32(len(o.Backing)))
		copy(first[at:], o.Backing)
	}
	return nil
}
