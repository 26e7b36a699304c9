package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"disco/memory"
)

const (
	elfHeaderSize = 64
	elfProgSize   = 56
	maxProgs      = 4096
	maxNotes      = 64 << 10 // bytes of one PT_NOTE that are looked at
)

// segment is a piece of an ELF file and where it belongs in guest memory.
type segment struct {
	phys     uint64
	memSize  uint64 // ≥ fileSize; the rest stays zero
	off      int64
	fileSize int64
	virt     uint64
	constant bool // its file part is hardly ever written to
}

func (s segment) end() uint64 { return s.phys + s.memSize }

// elfImage is an x86-64 ELF kernel. Its segments are ascending and disjoint,
// and their file parts lie in the file.
type elfImage struct {
	entry    uint64
	segments []segment
	pvh      uint32 // 32-bit physical entry point
	hasPVH   bool
}

// parseELF reads the headers of an ELF kernel. The standard library's reader
// is not used because it also reads section headers, which loading does not
// need and which are more hostile input.
func parseELF(r io.ReaderAt, size int64) (*elfImage, error) {
	var ident [elf.EI_NIDENT]byte
	if err := readFull(r, ident[:], 0, size); err != nil {
		return nil, err
	}
	// The machine lies at the same place in all classes of ELF.
	var em [2]byte
	if err := readFull(r, em[:], 18, size); err != nil {
		return nil, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(ident[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	if m := elf.Machine(order.Uint16(em[:])); m != elf.EM_X86_64 {
		return nil, fmt.Errorf("is an ELF for %s; %s", machineName(m), giveKernel)
	}
	if elf.Class(ident[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(ident[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("is not a 64-bit little-endian ELF; %s", giveKernel)
	}
	raw := make([]byte, elfHeaderSize)
	if err := readFull(r, raw, 0, size); err != nil {
		return nil, err
	}
	var h elf.Header64
	if _, err := binary.Decode(raw, binary.LittleEndian, &h); err != nil {
		return nil, err
	}
	if t := elf.Type(h.Type); t != elf.ET_EXEC && t != elf.ET_DYN {
		return nil, fmt.Errorf("is an ELF that cannot be run (%v); %s", t, giveKernel)
	}
	if h.Phentsize != elfProgSize || h.Phnum == 0 || h.Phnum > maxProgs {
		return nil, fmt.Errorf("has %d ELF program headers of %d bytes; 1 to %d of %d are expected", h.Phnum, h.Phentsize, maxProgs, elfProgSize)
	}
	if h.Phoff > uint64(size) {
		return nil, errTruncated
	}
	raw = make([]byte, int(h.Phnum)*elfProgSize)
	if err := readFull(r, raw, int64(h.Phoff), size); err != nil {
		return nil, err
	}
	k := &elfImage{entry: h.Entry}
	for p := range slices.Chunk(raw, elfProgSize) {
		var ph elf.Prog64
		if _, err := binary.Decode(p, binary.LittleEndian, &ph); err != nil {
			return nil, err
		}
		if err := k.program(r, size, &ph); err != nil {
			return nil, err
		}
	}
	if len(k.segments) == 0 {
		return nil, fmt.Errorf("has nothing to load; %s", giveKernel)
	}
	slices.SortFunc(k.segments, func(a, b segment) int {
		if a.phys < b.phys {
			return -1
		}
		return 1
	})
	var fromFile int64
	for _, s := range k.segments {
		if fromFile += s.fileSize; fromFile > size {
			return nil, fmt.Errorf("has segments that share bytes of the file; %s", giveKernel)
		}
	}
	for i, s := range k.segments[1:] {
		if s.phys < k.segments[i].end() {
			return nil, fmt.Errorf("has overlapping segments at %#x and %#x", k.segments[i].phys, s.phys)
		}
	}
	if at, ok := findConstants(&h, r, size); ok {
		k.splitAt(at)
	}
	return k, nil
}

// program takes in one program header.
func (k *elfImage) program(r io.ReaderAt, size int64, ph *elf.Prog64) error {
	t := elf.ProgType(ph.Type)
	if t != elf.PT_LOAD && t != elf.PT_NOTE {
		return nil
	}
	if ph.Off > uint64(size) || ph.Filesz > uint64(size)-ph.Off {
		return errTruncated
	}
	if t == elf.PT_NOTE {
		raw := make([]byte, min(ph.Filesz, maxNotes))
		if err := readFull(r, raw, int64(ph.Off), size); err != nil {
			return err
		}
		k.findPVH(raw, ph.Align)
		return nil
	}
	if ph.Memsz == 0 {
		return nil
	}
	if ph.Filesz > ph.Memsz || ph.Paddr+ph.Memsz < ph.Paddr {
		return fmt.Errorf("has an absurd segment: %#x bytes of file for %#x of memory at %#x", ph.Filesz, ph.Memsz, ph.Paddr)
	}
	k.segments = append(k.segments, segment{
		phys: ph.Paddr, memSize: ph.Memsz, off: int64(ph.Off), fileSize: int64(ph.Filesz),
		virt: ph.Vaddr, constant: elf.ProgFlag(ph.Flags) == elf.PF_R,
	})
	return nil
}

// noteXenPhys32Entry is XEN_ELFNOTE_PHYS32_ENTRY (Xen public/elfnote.h), the
// physical address of a kernel's 32-bit PVH entry.
const noteXenPhys32Entry = 18

// findPVH looks for the PVH entry point in notes, and stops at the first
// malformed one.
func (k *elfImage) findPVH(notes []byte, align uint64) {
	if align != 8 {
		align = 4
	}
	up := func(n uint32) uint64 { return (uint64(n) + align - 1) &^ (align - 1) }
	for len(notes) >= 12 {
		nameSize := binary.LittleEndian.Uint32(notes)
		descSize := binary.LittleEndian.Uint32(notes[4:])
		kind := binary.LittleEndian.Uint32(notes[8:])
		// Descriptions are aligned from the start of the note, of which the
		// header is 12 bytes.
		desc := (12 + uint64(nameSize) + align - 1) &^ (align - 1)
		end := desc + uint64(descSize)
		if end > uint64(len(notes)) {
			return
		}
		name := notes[12 : 12+nameSize]
		if kind == noteXenPhys32Entry && bytes.Equal(name, []byte("Xen\x00")) && descSize >= 4 {
			k.pvh = binary.LittleEndian.Uint32(notes[desc:])
			k.hasPVH = descSize < 8 || binary.LittleEndian.Uint32(notes[desc+4:]) == 0
			return
		}
		notes = notes[min(desc+up(descSize), uint64(len(notes))):]
	}
}

// holds says whether addr lies in a segment.
func (k *elfImage) holds(addr uint64) bool {
	return slices.ContainsFunc(k.segments, func(s segment) bool { return addr >= s.phys && addr-s.phys < s.memSize })
}

// load brings the segments to guest memory: what is constant by share, where it
// does that, the rest by copying.
func (k *elfImage) load(g *guest, r io.ReaderAt, share Share) error {
	for _, s := range k.segments {
		if s.phys < kernelFloor {
			return fmt.Errorf("has a segment at %#x; it must not lie below 1 MiB, where the boot tables are", s.phys)
		}
	}
	// The highest first, so that a complaint about memory asks for enough.
	for _, s := range slices.Backward(k.segments) {
		if err := g.claim("its code", s.phys, s.memSize); err != nil {
			return err
		}
	}
	for _, s := range k.segments {
		n := int64(0)
		if share != nil && s.constant && s.phys%pageSize == 0 && s.off%pageSize == 0 && s.fileSize >= pageSize {
			n = share(memory.GPA(s.phys), s.off, s.fileSize&^(pageSize-1))
		}
		g.add(s.phys+uint64(n), r, s.off+n, s.fileSize-n)
	}
	return g.fill("its code")
}

var errTruncated = errors.New("is truncated")

// readFull fills p from r at off, in a file of size bytes.
func readFull(r io.ReaderAt, p []byte, off, size int64) error {
	if off < 0 || off > size || int64(len(p)) > size-off {
		return errTruncated
	}
	if n, err := r.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("cannot be read: %w", err)
	}
	return nil
}
