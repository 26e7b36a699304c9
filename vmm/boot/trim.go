package boot

import (
	"bufio"
	"debug/elf"
	"encoding/binary"
	"io"
)

// Trim writes an ELF to w that loads as this ELF kernel does, and is nothing
// but what loading needs: one segment for each run of pages that are not zero,
// read-only for those of constants, and the PVH entry point. A stock kernel
// shrinks by almost half. It fails for a bzImage.
func (k *Kernel) Trim(w io.Writer) error {
	if k.elf == nil {
		return k.errorf("is not an ELF: it cannot be trimmed")
	}
	if err := k.elf.trim(w, k.r); err != nil {
		return k.errorf("cannot be trimmed: %w", err)
	}
	return nil
}

func (k *elfImage) trim(w io.Writer, r io.ReaderAt) error {
	var runs []segment
	buf := make([]byte, copyBuffer)
	for i, s := range k.segments {
		var err error
		if runs, err = splitRuns(runs, maxProgs-1-len(k.segments)+i, s, r, buf); err != nil {
			return err
		}
	}

	var note []byte
	if k.hasPVH {
		note = pvhNote(k.pvh)
	}
	noteAt := elfHeaderSize + elfProgSize*(len(runs)+1)
	dataAt := roundUp(int64(noteAt + len(note)))

	out := bufio.NewWriterSize(w, copyBuffer)
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: k.entry, Phoff: elfHeaderSize,
		Ehsize: elfHeaderSize, Phentsize: elfProgSize, Phnum: uint16(len(runs) + 1),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	h.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	h.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	progs := []elf.Prog64{{Type: uint32(elf.PT_NOTE), Off: uint64(noteAt), Filesz: uint64(len(note)), Align: 4}}
	off := dataAt
	for _, s := range runs {
		progs = append(progs, elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(s.flags()),
			Off: uint64(off), Vaddr: s.phys, Paddr: s.phys, Filesz: uint64(s.fileSize), Memsz: s.memSize,
		})
		off += roundUp(s.fileSize)
	}
	// A bufio.Writer keeps its first error for Flush.
	binary.Write(out, binary.LittleEndian, &h)
	binary.Write(out, binary.LittleEndian, progs)
	out.Write(note)
	out.Write(zeroPage[:dataAt-int64(noteAt+len(note))])
	for _, s := range runs {
		if _, err := io.CopyBuffer(out, io.NewSectionReader(r, s.off, s.fileSize), buf); err != nil {
			return err
		}
		out.Write(zeroPage[:roundUp(s.fileSize)-s.fileSize])
	}
	return out.Flush()
}

// flags are those of the program header that a segment is read from again.
func (s segment) flags() elf.ProgFlag {
	if s.constant {
		return elf.PF_R
	}
	return elf.PF_R | elf.PF_W | elf.PF_X
}

func roundUp(n int64) int64 { return (n + pageSize - 1) &^ (pageSize - 1) }

// splitRuns appends to runs what s becomes when its pages of zeros are left out
// of the file: pieces that together cover the same memory. At limit runs, the
// last one keeps its zeros.
func splitRuns(runs []segment, limit int, s segment, r io.ReaderAt, buf []byte) ([]segment, error) {
	run := segment{phys: s.phys, off: s.off, constant: s.constant}
	zeros := int64(0) // at the end of what was looked at so far
	for at := int64(0); at < s.fileSize; {
		p := buf[:min(s.fileSize-at, int64(len(buf)))]
		if n, err := r.ReadAt(p, s.off+at); n < len(p) {
			return nil, noEOF(err)
		}
		for len(p) > 0 {
			n := min(len(p), pageSize)
			switch {
			case isZero(p[:n]):
				zeros += int64(n)
			case zeros > 0 && len(runs) < limit:
				start := s.phys + uint64(at)
				run.memSize = start - run.phys
				if run.memSize > 0 {
					runs = append(runs, run)
				}
				run = segment{phys: start, off: s.off + at, fileSize: int64(n), constant: s.constant}
				zeros = 0
			default:
				run.fileSize += zeros + int64(n)
				zeros = 0
			}
			p = p[n:]
			at += int64(n)
		}
	}
	run.memSize = s.end() - run.phys
	return append(runs, run), nil
}

// pvhNote is the note that names a PVH entry point.
func pvhNote(entry uint32) []byte {
	le := binary.LittleEndian
	var b []byte
	for _, v := range []uint32{4, 4, noteXenPhys32Entry} {
		b = le.AppendUint32(b, v)
	}
	return le.AppendUint32(append(b, "Xen\x00"...), entry)
}
