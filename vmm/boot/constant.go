package boot

import (
	"debug/elf"
	"encoding/binary"
	"io"
	"slices"
)

const (
	elfSectionSize = 64
	maxSections    = 4096
)

// rodata is the section that a kernel's constants begin with. In Linux they reach to
// the end of its segment, and are marked as written to, as some are, once, while it
// boots: flags say nothing of them.
const rodata = ".rodata\x00"

// findConstants is the address of a kernel's constants. Loading needs no sections, so
// a file whose sections make no sense has none.
func findConstants(h *elf.Header64, r io.ReaderAt, size int64) (virt uint64, ok bool) {
	if h.Shentsize != elfSectionSize || h.Shnum == 0 || h.Shnum > maxSections || h.Shstrndx >= h.Shnum || h.Shoff > uint64(size) {
		return 0, false
	}
	raw := make([]byte, int(h.Shnum)*elfSectionSize)
	if readFull(r, raw, int64(h.Shoff), size) != nil {
		return 0, false
	}
	sections := make([]elf.Section64, h.Shnum)
	if _, err := binary.Decode(raw, binary.LittleEndian, sections); err != nil {
		return 0, false
	}
	names := sections[h.Shstrndx]
	for _, s := range sections {
		at := names.Off + uint64(s.Name)
		if elf.SectionType(s.Type) != elf.SHT_PROGBITS || s.Flags&uint64(elf.SHF_ALLOC) == 0 || at > uint64(size) {
			continue
		}
		var name [len(rodata)]byte
		if readFull(r, name[:], int64(at), size) == nil && string(name[:]) == rodata {
			return s.Addr, true
		}
	}
	return 0, false
}

// splitAt makes what a segment has in the file from an address on a constant one of
// its own.
func (k *elfImage) splitAt(virt uint64) {
	for i := range k.segments {
		s := &k.segments[i]
		delta := virt - s.virt
		if virt < s.virt || delta >= uint64(s.fileSize) || delta%pageSize != 0 {
			continue
		}
		rest := segment{
			phys: s.phys + delta, memSize: s.memSize - delta, off: s.off + int64(delta), fileSize: s.fileSize - int64(delta),
			virt: virt, constant: true,
		}
		if delta == 0 {
			*s = rest
			return
		}
		s.memSize, s.fileSize = delta, int64(delta)
		k.segments = slices.Insert(k.segments, i+1, rest)
		return
	}
}
