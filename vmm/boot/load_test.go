package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"disco/memory"
)

// load loads p into new memory.
func load(t *testing.T, p *Params) (*sparse, Entry) {
	t.Helper()
	m := newSparse(p.RAM)
	if p.CPUs == 0 {
		p.CPUs = 1
	}
	e, err := p.Load(m)
	if err != nil {
		t.Fatal(err)
	}
	return m, e
}

func TestLoadELF(t *testing.T) {
	code := bytes.Repeat([]byte("code"), 5000)
	k := parse(t, makeELF(16<<20+4, 16<<20+8,
		seg{phys: 17 << 20, data: []byte("data"), memSize: 1 << 20},
		seg{phys: 16 << 20, data: code}))
	const words = "console=hvc0 quiet"
	m, e := load(t, &Params{Kernel: k, Cmdline: words, RAM: RAM(64 << 20), CPUs: 2, Initrd: pattern{5000}, InitrdSize: 5000})

	if want := (Entry{Long: true, RIP: 16<<20 + 4, RSP: stackTop - 16, RSI: zeroPageAt, CR3: tablesAt, GDT: gdtAt, GDTLimit: 39, Code: 0x10, Data: 0x18}); e != want {
		t.Errorf("entry %+v, want %+v", e, want)
	}
	if !bytes.Equal(m.at(16<<20, len(code)), code) || string(m.at(17<<20, 4)) != "data" {
		t.Error("the segments are not where they belong")
	}
	if got := string(m.at(cmdlineAt, len(words)+1)); got != words+"\x00" {
		t.Errorf("command line %q", got)
	}
	// The GDT: code with L, data, and 32-bit code with D (SDM vol. 3 §3.4.5).
	if c, d, c32 := m.u64(gdtAt+0x10), m.u64(gdtAt+0x18), m.u64(gdtAt+0x20); c>>53&1 != 1 || c>>54&1 != 0 || d>>43&1 != 0 || c32>>54&1 != 1 {
		t.Errorf("GDT %#x %#x %#x", c, d, c32)
	}
	for _, a := range []uint64{0, 0x1234567, 3*gib + 5, 4*gib - 1} {
		if got := walk(m, e.CR3, a); got != a {
			t.Errorf("%#x is mapped to %#x", a, got)
		}
	}
	z := func(off uint64) uint64 { return e.RSI + off }
	if m.u32(z(hdrMagic)) != headerMagic || m.u32(z(hdrCmdline)) != cmdlineAt || m.u64(z(zpRSDP)) != acpiAt || m.at(z(hdrLoaderType), 1)[0] != 0xFF {
		t.Error("the zero page's header is not filled in")
	}
	rd := uint64(m.u32(z(hdrInitrdAddr)))
	if m.u32(z(hdrInitrdSize)) != 5000 || rd != 64<<20-8192 {
		t.Errorf("initrd of %d bytes at %#x", m.u32(z(hdrInitrdSize)), rd)
	}
	want := make([]byte, 5000)
	pattern{5000}.ReadAt(want, 0)
	if !bytes.Equal(m.at(rd, 5000), want) {
		t.Error("the initrd's bytes differ")
	}
	entries := memoryMap(RAM(64 << 20))
	if n := int(m.at(z(zpE820Entries), 1)[0]); n != len(entries) {
		t.Fatalf("%d e820 entries, want %d", n, len(entries))
	}
	for i, want := range entries {
		at := z(zpE820) + uint64(i)*20
		if got := (mapEntry{m.u64(at), m.u64(at + 8), m.u32(at + 16)}); got != want {
			t.Errorf("e820 entry %d: %x, want %x", i, got, want)
		}
	}
}

// walk translates a through the page tables at cr3.
func walk(m *sparse, cr3, a uint64) uint64 {
	table := cr3
	for _, shift := range []uint{39, 30, 21} {
		e := m.u64(table + a>>shift&511*8)
		if e&1 == 0 {
			return ^uint64(0)
		}
		table = e &^ 0xFFF
		if e&pageLarge != 0 {
			return table | a&(1<<shift-1)
		}
	}
	return ^uint64(0)
}

func TestLoadBzImage(t *testing.T) {
	image := makeBzImage([]byte("packed"))
	m, e := load(t, &Params{Kernel: parse(t, image), RAM: RAM(64 << 20)})
	if !e.Long || e.RIP != 16<<20+0x200 || e.RSI != zeroPageAt {
		t.Errorf("entry %+v", e)
	}
	if !bytes.Equal(m.at(16<<20, len(image)-2*sector), image[2*sector:]) {
		t.Error("the code is not where it belongs")
	}
	if m.u32(zeroPageAt+hdrCode32Start) != 16<<20 || m.u32(zeroPageAt+hdrInitSize) != 4<<20 {
		t.Error("the file's header is not in the zero page")
	}
	if m.u32(zeroPageAt+hdrInitrdSize) != 0 {
		t.Error("an initrd came from nowhere")
	}
}

func TestLoadPVH(t *testing.T) {
	k := parse(t, makeELF(16<<20, 16<<20+16, seg{phys: 16 << 20, data: make([]byte, 64)}))
	m, e := load(t, &Params{Kernel: k, Protocol: PVH, Cmdline: "x", RAM: RAM(4 * gib), Initrd: pattern{10}, InitrdSize: 10})
	if want := (Entry{RIP: 16<<20 + 16, RSP: stackTop - 16, RBX: startInfoAt, GDT: gdtAt, GDTLimit: 39, Code: 0x20, Data: 0x18}); e != want {
		t.Errorf("entry %+v, want %+v", e, want)
	}
	const si = startInfoAt
	if m.u32(si) != startInfoMagic || m.u32(si+4) != 1 || m.u32(si+12) != 1 || m.u64(si+24) != cmdlineAt || m.u64(si+32) != acpiAt {
		t.Error("the start info is not filled in")
	}
	mod := m.u64(si + 16)
	if m.u64(mod) != 3*gib-4096 || m.u64(mod+8) != 10 {
		t.Errorf("module of %d bytes at %#x", m.u64(mod+8), m.u64(mod))
	}
	at := m.u64(si + 40)
	want := memoryMap(RAM(4 * gib))
	if int(m.u32(si+48)) != len(want) {
		t.Fatalf("%d map entries, want %d", m.u32(si+48), len(want))
	}
	for i, w := range want {
		a := at + uint64(i)*mapEntrySize
		if got := (mapEntry{m.u64(a), m.u64(a + 8), m.u32(a + 16)}); got != w {
			t.Errorf("map entry %d: %x, want %x", i, got, w)
		}
	}
}

func TestProtocol(t *testing.T) {
	s := seg{phys: 16 << 20, data: make([]byte, 64)}
	both := parse(t, makeELF(16<<20, 16<<20, s))
	virtual := parse(t, makeELF(0xFFFFFFFF81000000, 16<<20, s))
	none := parse(t, makeELF(0x1000, 0, s))
	stray := parse(t, makeELF(0x1000, 0x1000, s))
	bz := parse(t, makeBzImage([]byte("x")))
	for _, c := range []struct {
		name string
		k    *Kernel
		ask  Protocol
		want Protocol // or err
		err  string
	}{
		{"both", both, Auto, Linux64, ""},
		{"both, PVH", both, PVH, PVH, ""},
		{"virtual entry", virtual, Auto, PVH, ""},
		{"virtual entry, Linux64", virtual, Linux64, 0, "outside the memory that it loads"},
		{"no entry", none, Auto, 0, "has its entry point at 0x1000, outside"},
		{"no note", none, PVH, 0, "has no PVH entry point"},
		{"note outside", stray, PVH, 0, "has no PVH entry point"},
		{"bzImage", bz, Auto, Linux64, ""},
		{"bzImage, PVH", bz, PVH, 0, "is a bzImage"},
	} {
		got, err := (&Params{Kernel: c.k, Protocol: c.ask}).protocol()
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q in it", c.name, err, c.err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.want)
		}
	}
}

func TestInitrdPlaces(t *testing.T) {
	small := parse(t, makeELF(16<<20, 0, seg{phys: 16 << 20, data: []byte("k"), memSize: 32 << 20}))
	bz := parse(t, makeBzImage([]byte("x")))
	old := makeBzImage([]byte("x"))
	binary.LittleEndian.PutUint16(old[hdrXLoadFlags:], xlfKernel64)
	low := parse(t, old)
	for _, c := range []struct {
		name string
		k    *Kernel
		ram  uint64
		size uint64
		want uint64 // or err
		err  string
	}{
		{"top of memory", small, 64 << 20, 8 << 20, 56 << 20, ""},
		{"below the kernel", small, 56 << 20, 12 << 20, 4 << 20, ""},
		{"below the hole", small, 8 * gib, 1 * gib, 2 * gib, ""},
		{"below 2 GiB, as a bzImage says", bz, 8 * gib, 1 * gib, 1 * gib, ""},
		{"above 4 GiB", small, 8 * gib, 4 * gib, 5 * gib, ""},
		{"above 4 GiB for a bzImage", bz, 8 * gib, 2 * gib, 7 * gib, ""},
		{"does not fit", small, 64 << 20, 100 << 20, 0,
			"an initrd of 100 MiB and a kernel that ends at 48 MiB do not fit in the guest's 64 MiB of memory: give it --memory 149M or more"},
		{"does not fit below 4 GiB", small, 2 * gib, 3 * gib, 0, "give it --memory 6145M or more"},
		{"larger than a whole world", small, 64 << 20, 1 << 62, 0, "do not fit"},
		{"not above 4 GiB", low, 8 * gib, 3 * gib, 0, "below 2048 MiB, where this kernel wants it"},
	} {
		g := &guest{w: refusingAt{}, ram: RAM(c.ram)}
		if c.k.bz != nil {
			_ = g.claim("k", c.k.bz.pref, c.k.bz.initSize)
		} else {
			_ = g.claim("k", c.k.elf.segments[0].phys, c.k.elf.segments[0].memSize)
		}
		limit, high := uint64(LowRAMTop), true
		if c.k.bz != nil {
			limit, high = c.k.bz.initrdMax+1, c.k.bz.above4G
		}
		// The place is decided before a byte is read.
		stop := errors.New("stop")
		rd, err := putInitrd(g, failing{stop}, int64(c.size), limit, high)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q in it", c.name, err, c.err)
			}
		} else if !errors.Is(err, stop) || rd.start != c.want || rd.size != c.size {
			t.Errorf("%s: %#x, %v; want %#x", c.name, rd.start, err, c.want)
		}
	}
}

type refusingAt struct{}

func (refusingAt) WriteAt(p []byte, off int64) (int, error) {
	return 0, fmt.Errorf("%d bytes at %#x", len(p), off)
}

func TestLoadHighInitrd(t *testing.T) {
	k := parse(t, makeELF(16<<20, 0, seg{phys: 16 << 20, data: []byte("k")}))
	m, _ := load(t, &Params{Kernel: k, RAM: RAM(8 * gib), Initrd: sparseFile{}, InitrdSize: 4*gib + 4096})
	at := uint64(m.u32(zeroPageAt+hdrInitrdAddr)) | uint64(m.u32(zeroPageAt+zpExtInitrdAddr))<<32
	n := uint64(m.u32(zeroPageAt+hdrInitrdSize)) | uint64(m.u32(zeroPageAt+zpExtInitrdSize))<<32
	if at != 5*gib-4096 || n != 4*gib+4096 {
		t.Errorf("initrd of %#x bytes at %#x", n, at)
	}
	if string(m.at(at+4*gib, 4)) != "tail" {
		t.Error("the initrd's end is not where it belongs")
	}
}

// sparseFile is zeros with "tail" at 4 GiB.
type sparseFile struct{}

func (sparseFile) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off <= 4*gib && off+int64(len(p)) > 4*gib {
		copy(p[4*gib-off:], "tail")
	}
	return len(p), nil
}

func TestLoadRefuses(t *testing.T) {
	ok := seg{phys: 16 << 20, data: []byte("code")}
	le := binary.LittleEndian
	far := makeBzImage([]byte("x"))
	le.PutUint64(far[hdrPrefAddress:], ^uint64(0))
	huge := makeBzImage([]byte("x"))
	le.PutUint32(huge[hdrInitSize:], ^uint32(0))
	for _, c := range []struct {
		name string
		p    Params
		want string
	}{
		{"too little memory", Params{Kernel: parse(t, makeELF(16<<20, 0, seg{phys: 16 << 20, data: []byte("k"), memSize: 40<<20 + 1})), RAM: RAM(32 << 20)},
			"kernel test: its code needs memory up to 57 MiB, and the guest has 32 MiB: give it --memory 57M or more"},
		{"below 1 MiB", Params{Kernel: parse(t, makeELF(0x7000, 0, seg{phys: 0x7000, data: []byte("k")}))}, "it must not lie below 1 MiB"},
		{"in the PCI hole", Params{Kernel: parse(t, makeELF(16<<20, 0, ok, seg{phys: ECAM, data: []byte("k")})), RAM: RAM(8 * gib)}, "lies outside the guest's memory"},
		{"across the PCI hole", Params{Kernel: parse(t, makeELF(16<<20, 0, seg{phys: 16 << 20, data: []byte("k"), memSize: 6 * gib})), RAM: RAM(8 * gib)}, "lies outside the guest's memory"},
		{"bzImage at the end of the world", Params{Kernel: parse(t, far)}, "wraps around"},
		{"bzImage of 4 GiB", Params{Kernel: parse(t, huge)}, "lies outside the guest's memory"},
		{"no memory", Params{Kernel: parse(t, makeELF(16<<20, 0, ok)), RAM: RAM(4096)}, "give it --memory"},
		{"no CPU", Params{Kernel: parse(t, makeELF(16<<20, 0, ok)), CPUs: -1}, "give --cpus 1 or more"},
		{"too many CPUs", Params{Kernel: parse(t, makeELF(16<<20, 0, ok)), CPUs: 100000}, "give fewer --cpus"},
		{"long command line", Params{Kernel: parse(t, makeELF(16<<20, 0, ok)), Cmdline: strings.Repeat("x", 2048)}, "has 2048 bytes and this kernel takes 2047: shorten --cmdline"},
		{"NUL in the command line", Params{Kernel: parse(t, makeELF(16<<20, 0, ok)), Cmdline: "a\x00b"}, "has a NUL byte"},
		{"shrunk initrd", Params{Kernel: parse(t, makeELF(16<<20, 0, ok)), Initrd: pattern{10}, InitrdSize: 20}, "reading the initrd: unexpected EOF"},
		{"negative initrd", Params{Kernel: parse(t, makeELF(16<<20, 0, ok)), Initrd: pattern{10}, InitrdSize: -1}, "the initrd has a size of -1"},
	} {
		if c.p.RAM == nil {
			c.p.RAM = RAM(64 << 20)
		}
		if c.p.CPUs == 0 {
			c.p.CPUs = 1
		}
		_, err := c.p.Load(newSparse(c.p.RAM))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
}

func TestLoadWriteError(t *testing.T) {
	p := Params{Kernel: parse(t, makeBzImage([]byte("x"))), RAM: RAM(64 << 20), CPUs: 1}
	if _, err := p.Load(refusingAt{}); err == nil {
		t.Error("the writer's error was lost")
	}
}

// TestLoadPieces loads more than one copier takes at once, from and to places
// that are not aligned.
func TestLoadPieces(t *testing.T) {
	const phys, size = 16<<20 + 0x1230, 5<<20 + 77
	want := make([]byte, size)
	pattern{size}.ReadAt(want, 0)
	m, _ := load(t, &Params{Kernel: parse(t, makeELF(phys, 0, seg{phys: phys, data: want})), RAM: RAM(64 << 20), Initrd: pattern{size}, InitrdSize: size})
	if !bytes.Equal(m.at(phys, size), want) {
		t.Error("the kernel's bytes differ")
	}
	if !bytes.Equal(m.at(uint64(m.u32(zeroPageAt+hdrInitrdAddr)), size), want) {
		t.Error("the initrd's bytes differ")
	}
}

// TestLoadStreams holds Load to small buffers, whatever it loads.
func TestLoadStreams(t *testing.T) {
	k := parse(t, makeELF(16<<20, 0, seg{phys: 16 << 20, data: bytes.Repeat([]byte("k"), 8<<20)}))
	p := Params{Kernel: k, RAM: RAM(1 * gib), CPUs: 254, Initrd: pattern{64 << 20}, InitrdSize: 64 << 20}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := p.Load(discardAt{}); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("loading 72 MiB allocated %d bytes; 1 MiB is allowed", n)
	}
}

type discardAt struct{}

func (discardAt) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestTrim(t *testing.T) {
	data := make([]byte, 1<<20)
	copy(data[8192:], "first")
	copy(data[600000:], "second")
	data[len(data)-1] = 1
	fragments := make([]byte, (2*maxProgs+100)*pageSize)
	for i := 0; i < len(fragments); i += 2 * pageSize {
		fragments[i] = 1
	}
	for _, c := range []struct {
		name    string
		image   []byte
		smaller bool
	}{
		{"zeros between", makeELF(16<<20, 16<<20, seg{phys: 32<<20 + 100, data: data, memSize: 3 << 20}, seg{phys: 16 << 20, data: []byte("code")}), true},
		{"all zeros", makeELF(16<<20, 0, seg{phys: 16 << 20, data: make([]byte, 10000)}), true},
		{"more runs than headers", makeELF(16<<20, 0, seg{phys: 16 << 20, data: fragments}), true},
	} {
		before := parse(t, c.image)
		var b bytes.Buffer
		if err := before.Trim(&b); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if (b.Len() < len(c.image)) != c.smaller {
			t.Errorf("%s: %d bytes became %d", c.name, len(c.image), b.Len())
		}
		after := parse(t, b.Bytes())
		if after.elf.hasPVH != before.elf.hasPVH || after.elf.pvh != before.elf.pvh {
			t.Errorf("%s: the PVH entry was lost", c.name)
		}
		ram := RAM(128 << 20)
		m1, e1 := load(t, &Params{Kernel: before, RAM: ram})
		m2, e2 := load(t, &Params{Kernel: after, RAM: ram})
		if e1 != e2 {
			t.Errorf("%s: entry %+v became %+v", c.name, e1, e2)
		}
		for page, want := range m1.pages {
			if got := m2.at(page*pageSize, pageSize); !bytes.Equal(got, want[:]) {
				t.Errorf("%s: page %#x differs", c.name, page)
				break
			}
		}
		last1, last2 := before.elf.segments[len(before.elf.segments)-1], after.elf.segments[len(after.elf.segments)-1]
		if last1.end() != last2.end() {
			t.Errorf("%s: memory up to %#x became %#x", c.name, last1.end(), last2.end())
		}
	}
	if err := parse(t, makeBzImage(nil)).Trim(io.Discard); err == nil {
		t.Error("a bzImage was trimmed")
	}
	if err := parse(t, makeELF(16<<20, 0, seg{phys: 16 << 20, data: data})).Trim(refusing{io.ErrClosedPipe}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v does not wrap the writer's", err)
	}
}

// FuzzLoad loads hostile kernels and initrds: whatever they are, every write
// lies in RAM and outside the tables that are not the files' own.
func FuzzLoad(f *testing.F) {
	f.Add(makeELF(16<<20, 16<<20, seg{phys: 16 << 20, data: []byte("code"), memSize: 8192}), uint16(4), uint32(5000), byte(0))
	f.Add(makeELF(2<<20, 0, seg{phys: 1 << 20, data: bytes.Repeat([]byte("x"), 5000)}), uint16(1), uint32(1<<20), byte(1))
	f.Add(makeBzImage([]byte("payload")), uint16(5000), uint32(0), byte(2))
	f.Add(withConstants(16<<20+pageSize), uint16(64), uint32(5000), byte(4))
	f.Fuzz(func(t *testing.T, image []byte, ramMiB uint16, initrdSize uint32, proto byte) {
		k, err := ParseKernel("k", bytes.NewReader(image), int64(len(image)))
		if err != nil {
			return
		}
		m := &checked{t: t, ram: RAM(uint64(ramMiB) << 20)}
		p := Params{Kernel: k, Protocol: Protocol(proto % 3), RAM: m.ram, CPUs: 1 + int(proto), Initrd: pattern{1 << 40}, InitrdSize: int64(initrdSize % (4 << 20))}
		if proto&4 != 0 {
			p.Share = func(at memory.GPA, off, n int64) int64 {
				if int64(at)%pageSize != 0 || off%pageSize != 0 || n%pageSize != 0 || off < 0 || n <= 0 || n > int64(len(image))-off {
					t.Errorf("asked to share %d bytes at %d for %#x", n, off, at)
				}
				if _, err := m.WriteAt(image[off:off+n], int64(at)); err != nil {
					t.Error(err)
				}
				return n
			}
		}
		e, err := p.Load(m)
		if err != nil {
			return
		}
		for _, r := range m.ram {
			if e.RIP >= uint64(r.Start) && e.RIP < uint64(r.End()) {
				return
			}
		}
		t.Errorf("entry at %#x, outside RAM", e.RIP)
	})
}

// checked fails the test on a write outside RAM.
type checked struct {
	t   *testing.T
	ram []memory.Range
}

func (m *checked) WriteAt(p []byte, off int64) (int, error) {
	for _, r := range m.ram {
		if uint64(off) >= uint64(r.Start) && uint64(off)+uint64(len(p)) <= uint64(r.End()) {
			return len(p), nil
		}
	}
	m.t.Errorf("write of %d bytes at %#x, outside RAM", len(p), off)
	return len(p), nil
}
