package rootfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"
)

// partition is a part of an image.
type partition struct {
	name         string // for people
	root         string // what root= says for it
	offset, size int64  // bytes, within the image
	volume       *volume
}

const (
	// maxTable bounds the entries of a partition table, in bytes; usual are 16 KiB.
	maxTable = 1 << 20
	sector   = 512
)

// partitions reads the partition table. An image without one is one partition.
func partitions(r io.ReaderAt, size int64) (parts []partition, err error) {
	// The library trusts what it reads in places.
	defer func() {
		if p := recover(); p != nil {
			parts, err = nil, fmt.Errorf("its partition table is damaged: %v", p)
		}
	}()
	if protective(r) {
		for _, block := range []int64{sector, 4096} {
			if parts, ok, err := readGPT(r, size, block); ok || err != nil {
				return parts, err
			}
		}
	}
	if _, err := openVolume(r, size); !errors.Is(err, errNotExt4) {
		return []partition{{name: "the whole image", root: "/dev/vda", size: size}}, nil
	}
	if parts, ok := readMBR(r, size); ok {
		return parts, nil
	}
	return nil, fmt.Errorf("%w: it has no partition table, and is %s", ErrNoSystem, guess(r))
}

// protective says whether the first sector is an MBR that says to look for a GPT:
// without one, what looks like a GPT is what a former use of the disk left.
func protective(r io.ReaderAt) bool {
	const entries, signature = 446, 510
	b := make([]byte, sector)
	if _, err := r.ReadAt(b, 0); err != nil || b[signature] != 0x55 || b[signature+1] != 0xaa {
		return false
	}
	for e := b[entries:signature]; len(e) > 0; e = e[16:] {
		if e[4] == 0xee {
			return true
		}
	}
	return false
}

// readGPT reads the partitions of a GPT in blocks of so many bytes; ok says whether
// there is one.
func readGPT(r io.ReaderAt, size, block int64) (parts []partition, ok bool, err error) {
	const magic = "EFI PART"
	// UEFI 2.10 §5.3.2; the second header is in the last block.
	h := make([]byte, 92)
	for _, at := range []int64{block, size/block*block - block} {
		if n, _ := r.ReadAt(h, at); n < len(h) || string(h[:len(magic)]) != magic {
			continue
		}
		ok = true
		count, each := uint64(binary.LittleEndian.Uint32(h[80:])), uint64(binary.LittleEndian.Uint32(h[84:]))
		if each == 0 || count*each > maxTable {
			return nil, false, fmt.Errorf("its partition table is damaged: %d entries of %d bytes", count, each)
		}
	}
	if !ok {
		return nil, false, nil
	}
	t, err := gpt.Read(&file{io.NewSectionReader(r, 0, size)}, int(block), int(block))
	if err != nil {
		return nil, false, fmt.Errorf("its partition table is damaged: %w", err)
	}
	for _, p := range t.Partitions {
		parts = appendPart(parts, p.Index, "PARTUUID="+strings.ToLower(p.GUID), p.Start, p.End+1, block, size)
	}
	return parts, true, nil
}

// readMBR reads the primary partitions of an MBR.
func readMBR(r io.ReaderAt, size int64) (parts []partition, ok bool) {
	t, err := mbr.Read(&file{io.NewSectionReader(r, 0, size)}, sector, sector)
	if err != nil {
		return nil, false
	}
	for i, p := range t.Partitions {
		if p == nil || p.Type == mbr.Empty || p.Size == 0 {
			continue
		}
		parts = appendPart(parts, i+1, "PARTUUID="+p.UUID(), uint64(p.Start), uint64(p.Start)+uint64(p.Size), sector, size)
	}
	return parts, true
}

// appendPart adds the partition from one block to before another, if it lies within
// the image.
func appendPart(parts []partition, number int, root string, from, to uint64, block, size int64) []partition {
	blocks := uint64(size / block)
	if from >= to || to > blocks {
		return parts
	}
	return append(parts, partition{
		name: fmt.Sprintf("partition %d", number), root: root,
		offset: int64(from) * block, size: int64(to-from) * block,
	})
}

// file is an image as the library wants it.
type file struct{ *io.SectionReader }

func (f *file) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }
func (f *file) Close() error               { return nil }
