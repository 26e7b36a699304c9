package boot

import (
	"fmt"
	"io"

	"disco/memory"
)

// Protocol is how a kernel is begun.
type Protocol int

const (
	// Auto is Linux64, but for an ELF whose entry point is not in its own
	// segments and that has a PVH entry, which is begun by PVH.
	Auto Protocol = iota
	// Linux64 is Linux's 64-bit boot protocol: an ELF begins at its entry
	// point, a bzImage at its own 64-bit entry, from where it unpacks (and may
	// randomize) itself.
	Linux64
	// PVH is Xen's PVH entry of an ELF, in 32-bit mode.
	PVH
)

// Params says what to load.
type Params struct {
	Kernel   *Kernel
	Protocol Protocol
	// Initrd is an initrd of InitrdSize bytes, or nil for none. It is read by
	// Load only, from several goroutines, and stays the caller's.
	Initrd     io.ReaderAt
	InitrdSize int64
	Cmdline    string // the whole of it
	// Share, if not nil, is asked for the kernel's constants.
	Share Share
	RAM   []memory.Range
	CPUs  int // at least 1; local APIC ids are 0 to CPUs-1
}

// Share has pages of the kernel's file that other guests have too be guest memory: n
// bytes from off on at a GPA, all multiples of the page size. It returns how many it
// has mapped, from the first on, also whole pages; what is left is copied.
type Share func(at memory.GPA, off, n int64) int64

// Entry is how the boot CPU begins: interrupts off, all other registers 0.
type Entry struct {
	// Long is 64-bit mode with paging on (CR0.PE and PG, CR4.PAE, EFER.LME and
	// LMA); without it, 32-bit protected mode with paging off.
	Long bool
	RIP  uint64
	RSP  uint64
	RSI  uint64 // the zero page
	RBX  uint64 // the PVH start info
	CR3  uint64
	// GDT is the address of a descriptor table and GDTLimit its last byte.
	GDT      uint64
	GDTLimit uint16
	Code     uint16 // the selector for CS: flat, Long's size
	Data     uint16 // the selector for DS, ES and SS: flat
}

// Load writes the kernel, the initrd, the command line, the boot protocol's
// tables, the page tables, the GDT and the ACPI tables to guest memory, and
// returns how the boot CPU begins.
//
// The offset of w is the guest-physical address. Several goroutines write at
// once, each to places of its own. All RAM must be zero beforehand: zeros are
// not written. After an error, what was written is
// undefined, but nothing outside p.RAM is. An error names what does not fit
// and, where there is one, the flag that mends it.
func (p *Params) Load(w io.WriterAt) (Entry, error) {
	k := p.Kernel
	proto, err := p.protocol()
	if err != nil {
		return Entry{}, k.errorf("%w", err)
	}
	g := &guest{w: w, ram: p.RAM}
	if err := p.putTables(g, proto); err != nil {
		return Entry{}, err
	}
	var (
		base        uint64
		header      []byte
		initrdLimit = uint64(LowRAMTop)
		high        = true
	)
	if k.bz != nil {
		header = k.bz.setupHeader()
		initrdLimit = k.bz.initrdMax + 1
		high = k.bz.above4G
		base, err = k.bz.load(g, k.r)
	} else {
		err = k.elf.load(g, k.r, p.Share)
	}
	if err != nil {
		return Entry{}, k.errorf("%w", err)
	}
	rd, err := putInitrd(g, p.Initrd, p.InitrdSize, initrdLimit, high)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{
		RSP:      stackTop - 16,
		GDT:      gdtAt,
		GDTLimit: uint16(len(gdt)*8 - 1),
		Data:     data,
	}
	if proto == PVH {
		e.RIP, e.RBX, e.Code = uint64(k.elf.pvh), startInfoAt, code32
		return e, putStartInfo(g, rd)
	}
	e.Long, e.RSI, e.CR3, e.Code = true, zeroPageAt, tablesAt, code64
	if k.bz != nil {
		e.RIP = base + entry64
	} else {
		e.RIP = k.elf.entry
	}
	return e, putZeroPage(g, header, uint32(base), rd)
}

// putTables writes what does not depend on where the kernel lies.
func (p *Params) putTables(g *guest, proto Protocol) error {
	if err := putGDT(g); err != nil {
		return err
	}
	if proto != PVH {
		if err := putPageTables(g); err != nil {
			return err
		}
	}
	limit := cmdlineELF
	if p.Kernel.bz != nil {
		limit = p.Kernel.bz.cmdlineSize
	}
	if err := putCmdline(g, p.Cmdline, limit); err != nil {
		return err
	}
	return putACPI(g, p.CPUs)
}

// protocol decides how the kernel is begun.
func (p *Params) protocol() (Protocol, error) {
	k := p.Kernel
	if k.bz != nil {
		if p.Protocol == PVH {
			return 0, fmt.Errorf("is a bzImage, which has no PVH entry point: unpack it")
		}
		return Linux64, nil
	}
	trusted := k.elf.holds(k.elf.entry)
	pvh := k.HasPVH()
	switch {
	case p.Protocol == PVH && !pvh:
		return 0, errNoPVH
	case p.Protocol == PVH, p.Protocol == Auto && !trusted && pvh:
		return PVH, nil
	case !trusted:
		return 0, fmt.Errorf("has its entry point at %#x, outside the memory that it loads", k.elf.entry)
	}
	return Linux64, nil
}
