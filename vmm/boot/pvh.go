package boot

import "encoding/binary"

// PVH's start info, version 1 (Xen public/arch-x86/hvm/start_info.h).
const (
	startInfoMagic   = 0x336EC578
	startInfoVersion = 1
	startInfoSize    = 56
	moduleSize       = 32
	mapEntrySize     = 24
)

// putStartInfo writes the start info, the list of the one module (the initrd,
// if there is one) and the memory map.
func putStartInfo(g *guest, rd initrd) error {
	le := binary.LittleEndian
	const modulesAt = startInfoAt + startInfoSize
	mapAt := uint64(modulesAt)
	modules := uint32(0)
	if rd.size > 0 {
		modules = 1
		mapAt += moduleSize
	}
	m := memoryMap(g.ram)

	p := le.AppendUint32(nil, startInfoMagic)
	p = le.AppendUint32(p, startInfoVersion)
	p = le.AppendUint32(p, 0) // flags
	p = le.AppendUint32(p, modules)
	p = le.AppendUint64(p, modulesAt)
	p = le.AppendUint64(p, cmdlineAt)
	p = le.AppendUint64(p, acpiAt)
	p = le.AppendUint64(p, mapAt)
	p = le.AppendUint32(p, uint32(len(m)))
	p = le.AppendUint32(p, 0)
	if rd.size > 0 {
		p = le.AppendUint64(p, rd.start)
		p = le.AppendUint64(p, rd.size)
		p = le.AppendUint64(p, 0) // no command line of its own
		p = le.AppendUint64(p, 0)
	}
	for _, e := range m {
		p = le.AppendUint64(p, e.addr)
		p = le.AppendUint64(p, e.size)
		p = le.AppendUint32(p, e.kind)
		p = le.AppendUint32(p, 0)
	}
	return g.put("the start info", startInfoAt, p)
}
