package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestParseKernelRefuses(t *testing.T) {
	le := binary.LittleEndian
	edit := func(p []byte, change func(p []byte)) []byte {
		change(p)
		return p
	}
	goodELF := func() []byte { return makeELF(16<<20, 0, seg{phys: 16 << 20, data: []byte("code")}) }
	const prog = elfHeaderSize
	for _, c := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"empty", nil, "is empty"},
		{"text", []byte("#!/bin/sh\n"), "is not a kernel; give an x86-64 bzImage or vmlinux"},
		{"arm64 Image", edit(make([]byte, 4096), func(p []byte) { copy(p[0x38:], "ARM\x64") }), "an arm64 kernel Image"},
		{"riscv Image", edit(make([]byte, 4096), func(p []byte) { copy(p[0x38:], "RSC\x05") }), "a RISC-V kernel Image"},
		{"gzip", []byte("\x1f\x8b\x08\x00"), "a gzip file"},
		{"initrd", []byte("070701000000"), "a cpio archive"},
		{"qcow2", []byte("QFI\xfb\x00\x00\x00\x03"), "a qcow2 disk image"},
		{"EFI program", []byte("MZ\x00\x00"), "an EFI program"},
		{"aarch64", edit(goodELF(), func(p []byte) { le.PutUint16(p[18:], uint16(elf.EM_AARCH64)) }), "is an ELF for aarch64; give an x86-64"},
		{"big-endian s390", edit(goodELF(), func(p []byte) {
			p[5] = byte(elf.ELFDATA2MSB)
			binary.BigEndian.PutUint16(p[18:], uint16(elf.EM_S390))
		}), "is an ELF for s390"},
		{"ELF32", edit(goodELF(), func(p []byte) { p[4] = byte(elf.ELFCLASS32) }), "is not a 64-bit"},
		{"object", edit(goodELF(), func(p []byte) { p[16] = byte(elf.ET_REL) }), "cannot be run"},
		{"magic only", []byte("\x7fELF"), "is truncated"},
		{"half a header", goodELF()[:40], "is truncated"},
		{"no headers", goodELF()[:elfHeaderSize], "is truncated"},
		{"cut code", goodELF()[:elfHeaderSize+elfProgSize+2], "is truncated"},
		{"phoff far away", edit(goodELF(), func(p []byte) { le.PutUint64(p[32:], 1<<63) }), "is truncated"},
		{"no program headers", edit(goodELF(), func(p []byte) { le.PutUint16(p[56:], 0) }), "program headers"},
		{"too many program headers", edit(goodELF(), func(p []byte) { le.PutUint16(p[56:], 0xFFFF) }), "program headers"},
		{"odd program headers", edit(goodELF(), func(p []byte) { le.PutUint16(p[54:], 8) }), "program headers"},
		{"nothing to load", edit(goodELF(), func(p []byte) { p[prog] = byte(elf.PT_NULL) }), "nothing to load"},
		{"file larger than memory", edit(goodELF(), func(p []byte) { le.PutUint64(p[prog+40:], 1) }), "absurd segment"},
		{"wrapping memory", edit(goodELF(), func(p []byte) { le.PutUint64(p[prog+40:], ^uint64(0)) }), "absurd segment"},
		{"file size wraps", edit(goodELF(), func(p []byte) { le.PutUint64(p[prog+32:], ^uint64(0)) }), "is truncated"},
		{"overlap", makeELF(16<<20, 0, seg{phys: 16 << 20, data: make([]byte, 8192)}, seg{phys: 16<<20 + 4096, data: []byte("x")}), "overlapping segments"},
		{"short bzImage", makeBzImage(nil)[:0x240], "is truncated"},
		{"cut bzImage", makeBzImage(make([]byte, 4096))[:3000], "is truncated: its header promises"},
		{"old bzImage", edit(makeBzImage(nil), func(p []byte) { le.PutUint16(p[hdrVersion:], 0x204) }), "speaks boot protocol 2.04"},
		{"32-bit bzImage", edit(makeBzImage(nil), func(p []byte) { p[hdrXLoadFlags] = 0 }), "without a 64-bit entry"},
		{"zImage", edit(makeBzImage(nil), func(p []byte) { p[hdrLoadFlags] = 0 }), "without a 64-bit entry"},
		{"no code", edit(makeBzImage(nil), func(p []byte) { le.PutUint32(p[hdrSysSize:], 1) }), "only 16 bytes of code"},
		{"payload outside", edit(makeBzImage(nil), func(p []byte) { le.PutUint32(p[hdrPayloadSize:], 1<<31) }), "has a payload at"},
	} {
		k, err := ParseKernel("vmlinuz", bytes.NewReader(c.image), int64(len(c.image)))
		if err == nil {
			t.Errorf("%s: parsed as %+v", c.name, k)
		} else if !strings.HasPrefix(err.Error(), "kernel vmlinuz: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, want %q in it", c.name, err, c.want)
		}
	}
}

func TestParseKernelReadError(t *testing.T) {
	boom := errors.New("boom")
	if _, err := ParseKernel("k", failing{boom}, 4096); !errors.Is(err, boom) {
		t.Errorf("error %v does not wrap the reader's", err)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestFindPVH(t *testing.T) {
	le := binary.LittleEndian
	other := func() []byte {
		var b []byte
		for _, v := range []uint32{4, 3, 6} {
			b = le.AppendUint32(b, v)
		}
		return append(b, "GNU\x00abc\x00"...)
	}
	for _, c := range []struct {
		name  string
		notes []byte
		want  uint32
	}{
		{"none", nil, 0},
		{"alone", pvhNote(0x1000), 0x1000},
		{"after another", append(other(), pvhNote(0x2000)...), 0x2000},
		{"another of the same owner", bytes.Replace(pvhNote(0x1000), []byte{noteXenPhys32Entry, 0}, []byte{1, 0}, 1), 0},
		{"cut", pvhNote(0x1000)[:18], 0},
		{"name longer than the notes", le.AppendUint32(nil, ^uint32(0)), 0},
		{"absurd lengths", bytes.Repeat([]byte{0xFF}, 64), 0},
		{"another's type 18", bytes.Replace(pvhNote(0x1000), []byte("Xen"), []byte("Foo"), 1), 0},
	} {
		k := &elfImage{}
		k.findPVH(c.notes, 4)
		if k.hasPVH != (c.want != 0) || k.pvh != c.want {
			t.Errorf("%s: %#x, %v; want %#x", c.name, k.pvh, k.hasPVH, c.want)
		}
	}
}

func FuzzParseKernel(f *testing.F) {
	f.Add(makeELF(16<<20, 16<<20, seg{phys: 16 << 20, data: []byte("code")}))
	f.Add(makeBzImage([]byte("\x1f\x8b\x08")))
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, image []byte) {
		k, err := ParseKernel("k", bytes.NewReader(image), int64(len(image)))
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has more than one line: %q", err)
			}
			return
		}
		if !k.Packed() {
			if err := k.Trim(io.Discard); err != nil {
				t.Errorf("a parsed ELF cannot be trimmed: %v", err)
			}
		}
	})
}
