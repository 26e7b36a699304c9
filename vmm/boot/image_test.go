package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"testing"

	"disco/memory"
)

// seg is a PT_LOAD of a kernel made for a test.
type seg struct {
	phys    uint64
	data    []byte
	memSize uint64 // 0 for the length of data
}

// makeELF is an x86-64 ELF with the given segments and, if it is not 0, a PVH
// entry point.
func makeELF(entry uint64, pvh uint32, segs ...seg) []byte {
	n := len(segs)
	var note []byte
	if pvh != 0 {
		n++
		note = pvhNote(pvh)
	}
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: entry,
		Phoff: elfHeaderSize, Ehsize: elfHeaderSize, Phentsize: elfProgSize, Phnum: uint16(n),
	}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	off := uint64(elfHeaderSize + n*elfProgSize)
	var progs []elf.Prog64
	var body []byte
	if pvh != 0 {
		progs = append(progs, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: off, Filesz: uint64(len(note)), Align: 4})
		body = append(body, note...)
	}
	for _, s := range segs {
		progs = append(progs, elf.Prog64{
			Type: uint32(elf.PT_LOAD), Off: off + uint64(len(body)), Vaddr: s.phys, Paddr: s.phys,
			Filesz: uint64(len(s.data)), Memsz: max(s.memSize, uint64(len(s.data))),
		})
		body = append(body, s.data...)
	}
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, &h)
	binary.Write(&b, binary.LittleEndian, progs)
	b.Write(body)
	return b.Bytes()
}

// makeBzImage is a bzImage that prefers 16 MiB and holds payload.
func makeBzImage(payload []byte) []byte {
	const sects, stub = 1, 0x400
	le := binary.LittleEndian
	start := (sects + 1) * sector
	code := append(bytes.Repeat([]byte{0xF4}, stub), payload...)
	code = append(code, make([]byte, -len(code)&15)...)
	p := append(make([]byte, start), code...)
	p[hdrStart] = sects
	le.PutUint16(p[hdrRootFlags:], 1)
	le.PutUint32(p[hdrSysSize:], uint32(len(code)/16))
	le.PutUint16(p[hdrBootFlag:], bootFlag)
	p[hdrJump] = 0x6A
	le.PutUint32(p[hdrMagic:], headerMagic)
	le.PutUint16(p[hdrVersion:], 0x20F)
	p[hdrLoadFlags] = loadedHigh
	le.PutUint16(p[hdrXLoadFlags:], xlfKernel64|xlfAbove4G)
	le.PutUint32(p[hdrInitrdMax:], 0x7FFF_FFFF)
	le.PutUint32(p[hdrCmdlineSize:], 2047)
	le.PutUint32(p[hdrPayload:], stub)
	le.PutUint32(p[hdrPayloadSize:], uint32(len(payload)))
	le.PutUint64(p[hdrPrefAddress:], 16<<20)
	le.PutUint32(p[hdrInitSize:], 4<<20)
	return p
}

func parse(t testing.TB, image []byte) *Kernel {
	t.Helper()
	k, err := ParseKernel("test", bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sparse is guest memory of any size. It refuses writes outside RAM and counts
// the bytes written.
type sparse struct {
	ram []memory.Range

	mu      sync.Mutex
	pages   map[uint64]*[pageSize]byte
	written int
}

func newSparse(ram []memory.Range) *sparse {
	return &sparse{ram: ram, pages: map[uint64]*[pageSize]byte{}}
}

func (m *sparse) WriteAt(p []byte, off int64) (int, error) {
	a := uint64(off)
	ok := false
	for _, r := range m.ram {
		ok = ok || a >= uint64(r.Start) && a <= uint64(r.End()) && uint64(len(p)) <= uint64(r.End())-a
	}
	if !ok {
		return 0, fmt.Errorf("write of %d bytes at %#x, outside RAM", len(p), a)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.written += len(p)
	for n := 0; n < len(p); {
		page := m.pages[(a+uint64(n))/pageSize]
		if page == nil {
			page = new([pageSize]byte)
			m.pages[(a+uint64(n))/pageSize] = page
		}
		n += copy(page[(a+uint64(n))%pageSize:], p[n:])
	}
	return len(p), nil
}

func (m *sparse) at(a uint64, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		if page := m.pages[(a+uint64(i))/pageSize]; page != nil {
			p[i] = page[(a+uint64(i))%pageSize]
		}
	}
	return p
}

func (m *sparse) u32(a uint64) uint32 { return binary.LittleEndian.Uint32(m.at(a, 4)) }
func (m *sparse) u64(a uint64) uint64 { return binary.LittleEndian.Uint64(m.at(a, 8)) }

// pattern is an io.ReaderAt of any size whose byte at i depends on i.
type pattern struct{ size int64 }

// period is one period of every pattern, many times over.
var period = func() []byte {
	p := make([]byte, 251)
	for i := range p {
		p[i] = byte(i) + 1
	}
	return bytes.Repeat(p, 300)
}()

func (r pattern) ReadAt(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), r.size-off)))
	for done := 0; done < n; {
		done += copy(p[done:n], period[(off+int64(done))%251:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
