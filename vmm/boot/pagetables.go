package boot

import "encoding/binary"

// Selectors of the boot GDT. Linux's 64-bit boot protocol fixes the first two.
const (
	code64 = 0x10
	data   = 0x18
	code32 = 0x20
)

// gdt holds flat 4 GiB segments (Intel SDM vol. 3 §3.4.5), all marked accessed.
var gdt = [...]uint64{
	0, 0,
	0x00AF_9B00_0000_FFFF,
	0x00CF_9300_0000_FFFF,
	0x00CF_9B00_0000_FFFF,
}

const (
	pageTables  = 6 // PML4, PDPT and four page directories
	pagePresent = 1<<0 | 1<<1
	pageLarge   = 1 << 7
)

// putGDT writes the GDT.
func putGDT(g *guest) error {
	var p []byte
	for _, d := range gdt {
		p = binary.LittleEndian.AppendUint64(p, d)
	}
	return g.put("the GDT", gdtAt, p)
}

// putPageTables writes tables that map the first 4 GiB to themselves by pages
// of 2 MiB, which every 64-bit CPU has.
func putPageTables(g *guest) error {
	p := make([]byte, 0, pageTables*pageSize)
	le := binary.LittleEndian
	p = le.AppendUint64(p, tablesAt+pageSize|pagePresent)
	p = p[:pageSize]
	for i := range uint64(4) {
		p = le.AppendUint64(p, (tablesAt+(2+i)*pageSize)|pagePresent)
	}
	p = p[:2*pageSize]
	for i := range uint64(4 * 512) {
		p = le.AppendUint64(p, i<<21|pagePresent|pageLarge)
	}
	return g.put("the page tables", tablesAt, p)
}
