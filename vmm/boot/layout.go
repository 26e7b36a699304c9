package boot

import (
	"disco/memory"
	"disco/memory/arena"
)

// The machine's map of physical addresses.
const (
	// LowRAMTop is the end of the RAM below the PCI hole.
	LowRAMTop = 3 << 30
	// HighRAM is where the rest of the RAM begins.
	HighRAM = 4 << 30

	// Window32 is the 32-bit PCI window, for BARs.
	Window32     = 0xC000_0000
	Window32Size = 0x2000_0000
	// ECAM is the PCI configuration space of bus 0, the only one.
	ECAM     = 0xE000_0000
	ECAMSize = 1 << 20
	// Window64Size is the length of the 64-bit PCI window.
	Window64Size = 16 << 30

	// IOAPIC and LocalAPIC are the registers of the interrupt controllers.
	IOAPIC    = 0xFEC0_0000
	LocalAPIC = 0xFEE0_0000
	// RelayArea is where the relays of a guest on several nodes live: 1 MiB that
	// no table names.
	RelayArea = 0xFEF0_0000
)

// The machine's ports and the interrupts (GSIs) that go with them.
const (
	COM1     = 0x3F8 // 8 ports
	COM1Size = 8
	COM1GSI  = 4

	SleepControl = 0x600 // a write of SleepOff powers the machine off
	SleepStatus  = 0x601
	ResetPort    = 0x602 // a write of ResetValue resets the machine
	ResetValue   = 1

	PowerButtonGSI = 9 // an edge presses the power button

	PvpanicPort = 0x505

	DebugExit   = 0xF4  // isa-debug-exit, as QEMU is often told to place it
	DebugExit32 = 0x501 // isa-debug-exit at its own default
)

// sleepTypeS5 is SLP_TYP for the soft-off state, ours to choose (ACPI 6.5 §4.8.3.7).
const sleepTypeS5 = 5

// SleepOff is what the guest writes to SleepControl to power off: SLP_TYP and
// SLP_EN (ACPI 6.5 §4.8.3.7).
const SleepOff = sleepTypeS5<<2 | 1<<5

// Where the loader puts its own tables, all below 1 MiB. Guests may reuse this
// memory once they have read it, but for the ACPI tables, which lie in an area
// that the memory map calls reserved.
const (
	gdtAt       = 0x0500
	startInfoAt = 0x6000 // PVH start info, module list and memory map
	zeroPageAt  = 0x7000
	stackTop    = 0x9000 // the stack grows down to the end of the zero page
	tablesAt    = 0x9000 // page tables: 6 pages
	cmdlineAt   = 0x2_0000
	cmdlineRoom = 0x1_0000
	legacyAt    = 0xA_0000 // video memory and ROMs on a PC; RAM here, but reserved
	acpiAt      = 0xE_0000
	acpiRoom    = 0x2_0000
	kernelFloor = 0x10_0000 // the lowest address a kernel may have
)

// RAM is the memory map of a guest with size bytes of memory, a multiple of the
// page size: as much as fits below the PCI hole, and the rest from 4 GiB up.
// A size of 0 has no ranges.
func RAM(size uint64) []memory.Range {
	switch {
	case size == 0:
		return nil
	case size <= LowRAMTop:
		return []memory.Range{{Start: 0, Size: size}}
	}
	return []memory.Range{{Start: 0, Size: LowRAMTop}, {Start: HighRAM, Size: size - LowRAMTop}}
}

// Window64 is the 64-bit PCI window of a machine with the given RAM: above all
// of it, and above 4 GiB, on a 1 GiB boundary.
func Window64(ram []memory.Range) memory.Range {
	top := memory.GPA(HighRAM)
	for _, r := range ram {
		top = max(top, r.End())
	}
	const gib = 1 << 30
	return memory.Range{Start: (top + gib - 1) &^ (gib - 1), Size: Window64Size}
}

// Types of e820 entries (ACPI 6.5 §15.1). PVH uses the same numbers.
const (
	e820RAM      = 1
	e820Reserved = 2
)

// mapEntry is a line of the memory map that the guest is told.
type mapEntry struct {
	addr, size uint64
	kind       uint32
}

// memoryMap is what the guest is told about the RAM ranges: all of it is
// usable but for the PC's legacy area, and the ECAM is reserved, without which
// Linux does not trust it.
func memoryMap(ram []memory.Range) []mapEntry {
	var m []mapEntry
	for _, r := range ram {
		start, end := uint64(r.Start), uint64(r.End())
		if start < legacyAt {
			m = append(m, mapEntry{start, min(end, legacyAt) - start, e820RAM})
		}
		if start < kernelFloor && end > legacyAt {
			from := max(start, legacyAt)
			m = append(m, mapEntry{from, min(end, kernelFloor) - from, e820Reserved})
		}
		if end > kernelFloor {
			from := max(start, kernelFloor)
			m = append(m, mapEntry{from, end - from, e820RAM})
		}
	}
	i := len(m)
	for i > 0 && m[i-1].addr > ECAM {
		i--
	}
	m = append(m, mapEntry{})
	copy(m[i+1:], m[i:])
	m[i] = mapEntry{ECAM, ECAMSize, e820Reserved}
	return m
}

const pageSize = arena.PageSize
