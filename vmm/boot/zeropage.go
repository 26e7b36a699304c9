package boot

import "encoding/binary"

// Offsets in Linux's boot_params, the "zero page" (Linux
// Documentation/arch/x86/zero-page.rst).
const (
	zpRSDP           = 0x070 // u64
	zpExtInitrdAddr  = 0x0C0 // u32, the upper halves of the header's fields
	zpExtInitrdSize  = 0x0C4 // u32
	zpE820Entries    = 0x1E8 // u8
	zpE820           = 0x2D0
	zpE820Max        = 128
	zpE820EntryBytes = 20
)

// putZeroPage writes boot_params. header is a bzImage's setup header, or nil
// for an ELF, which gets one of our own; code32 is where a bzImage was loaded.
func putZeroPage(g *guest, header []byte, code32 uint32, rd initrd) error {
	le := binary.LittleEndian
	p := make([]byte, pageSize)
	le.PutUint64(p[zpRSDP:], acpiAt)
	if header != nil {
		copy(p[hdrStart:], header)
		le.PutUint32(p[hdrCode32Start:], code32)
	} else {
		le.PutUint16(p[hdrBootFlag:], bootFlag)
		le.PutUint32(p[hdrMagic:], headerMagic)
		le.PutUint16(p[hdrVersion:], protocolMin)
		p[hdrLoadFlags] = loadedHigh
		le.PutUint32(p[hdrAlignment:], 16<<20)
		// As a bzImage's own header has it: the root is mounted read-only
		// unless the command line says otherwise.
		le.PutUint16(p[hdrRootFlags:], 1)
	}
	le.PutUint16(p[hdrVidMode:], vidModeNormal)
	p[hdrLoaderType] = loaderUndefined
	le.PutUint32(p[hdrCmdline:], cmdlineAt)
	le.PutUint32(p[hdrInitrdAddr:], uint32(rd.start))
	le.PutUint32(p[hdrInitrdSize:], uint32(rd.size))
	le.PutUint32(p[zpExtInitrdAddr:], uint32(rd.start>>32))
	le.PutUint32(p[zpExtInitrdSize:], uint32(rd.size>>32))
	m := memoryMap(g.ram)
	m = m[:min(len(m), zpE820Max)]
	p[zpE820Entries] = byte(len(m))
	for i, e := range m {
		b := p[zpE820+i*zpE820EntryBytes:]
		le.PutUint64(b, e.addr)
		le.PutUint64(b[8:], e.size)
		le.PutUint32(b[16:], e.kind)
	}
	return g.put("the zero page", zeroPageAt, p)
}
