package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"slices"
	"testing"

	"disco/memory"
)

// withConstants is an ELF of code at 16 MiB, whose pages begin with their numbers
// from 1, and of data. Sections say that the code's constants begin at an address.
func withConstants(at uint64) []byte {
	code := make([]byte, 7*pageSize+100)
	for i := range 8 {
		code[i*pageSize] = byte(i + 1)
	}
	clear(code[5*pageSize : 6*pageSize]) // a page of zeros
	// The file's headers are shorter than a page, which comes before the code.
	pad := pageSize - elfHeaderSize - 3*elfProgSize
	image := makeELF(16<<20, 0, seg{phys: 1 << 20, data: make([]byte, pad)}, seg{phys: 16 << 20, data: code}, seg{phys: 32 << 20, data: []byte("data")})
	le := binary.LittleEndian
	le.PutUint64(image[40:], uint64(len(image))) // e_shoff
	le.PutUint16(image[58:], elfSectionSize)
	le.PutUint16(image[60:], 3)
	le.PutUint16(image[62:], 2) // the names
	names := "\x00.text\x00.rodata\x00"
	var b bytes.Buffer
	b.Write(image)
	binary.Write(&b, le, []elf.Section64{
		{},
		{Name: 7, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC | elf.SHF_WRITE), Addr: at, Size: pageSize},
		{Type: uint32(elf.SHT_STRTAB), Off: uint64(len(image) + 3*elfSectionSize), Size: uint64(len(names))},
	})
	b.WriteString(names)
	return b.Bytes()
}

// asked is what Load asked to be shared.
type asked struct {
	at     memory.GPA
	off, n int64
}

// TestConstants: what a kernel's sections or segments say is constant is asked for,
// whole pages of it, and what is not given is copied.
func TestConstants(t *testing.T) {
	const code, off = 16 << 20, pageSize
	image := withConstants(code + 2*pageSize)
	var b bytes.Buffer
	if err := parse(t, image).Trim(&b); err != nil {
		t.Fatal(err)
	}
	trimmed := parse(t, b.Bytes())
	edit := func(at int, v uint16) []byte {
		p := slices.Clone(image)
		binary.LittleEndian.PutUint16(p[at:], v)
		return p
	}
	all := []asked{{code + 2*pageSize, off + 2*pageSize, 5 * pageSize}}
	want, entry := load(t, &Params{Kernel: parse(t, image), RAM: RAM(64 << 20)})
	for _, c := range []struct {
		name  string
		k     *Kernel
		given int64
		asked []asked
	}{
		{"all of it", parse(t, image), 5 * pageSize, all},
		{"two pages", parse(t, image), 2 * pageSize, all},
		{"nothing", parse(t, image), 0, all},
		{"all of a segment", parse(t, withConstants(code)), 7 * pageSize, []asked{{code, off, 7 * pageSize}}},
		{"not from a page's beginning", parse(t, withConstants(code+100)), 0, nil},
		{"in no segment", parse(t, withConstants(8<<20)), 0, nil},
		{"sections beyond the end", parse(t, edit(60, 4000)), 0, nil},
		{"sections of another size", parse(t, edit(58, 40)), 0, nil},
		{"no names", parse(t, edit(62, 3)), 0, nil},
		{"names that are none", parse(t, edit(62, 0)), 0, nil},
		{"trimmed", trimmed, 2 * pageSize, []asked{
			{code + 2*pageSize, trimmed.elf.segments[2].off, 3 * pageSize},
			{code + 6*pageSize, trimmed.elf.segments[3].off, 1 * pageSize},
		}},
	} {
		var was []asked
		var m *sparse
		share := func(at memory.GPA, off, n int64) int64 {
			was = append(was, asked{at, off, n})
			n = min(n, c.given)
			p := make([]byte, n)
			if _, err := c.k.r.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
			if _, err := m.WriteAt(p, int64(at)); err != nil {
				t.Fatal(err)
			}
			return n
		}
		m = newSparse(RAM(64 << 20))
		e, err := (&Params{Kernel: c.k, RAM: RAM(64 << 20), CPUs: 1, Share: share}).Load(m)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !slices.Equal(was, c.asked) {
			t.Errorf("%s: asked for %+v, want %+v", c.name, was, c.asked)
		}
		if e != entry {
			t.Errorf("%s: %+v", c.name, e)
		}
		for page, bytes := range want.pages {
			if got := m.at(page*pageSize, pageSize); string(got) != string(bytes[:]) {
				t.Errorf("%s: page %#x differs", c.name, page)
				break
			}
		}
	}
}
