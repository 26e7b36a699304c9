package boot

import (
	"encoding/binary"
	"fmt"

	"disco/memory"
)

// Fixed parts of ACPI tables (ACPI 6.5 §5.2).
const (
	rsdpSize   = 36
	headerSize = 36
	fadtSize   = 276
	tableAlign = 16

	oemID      = "DISCO "
	oemTableID = "DISCOVM "
	creatorID  = "DSCO"
)

// table is an ACPI table with its header: signature, revision and body.
func table(signature string, revision byte, body []byte) []byte {
	le := binary.LittleEndian
	t := append(make([]byte, 0, headerSize+len(body)), signature...)
	t = le.AppendUint32(t, uint32(headerSize+len(body)))
	t = append(t, revision, 0)
	t = append(t, oemID...)
	t = append(t, oemTableID...)
	t = le.AppendUint32(t, 1)
	t = append(t, creatorID...)
	t = le.AppendUint32(t, 1)
	t = append(t, body...)
	t[9] = checksum(t)
	return t
}

// checksum is what makes the sum of the bytes 0.
func checksum(p []byte) byte {
	var n byte
	for _, b := range p {
		n -= b
	}
	return n
}

// putACPI writes the RSDP at acpiAt and the tables behind it, for a machine
// with the given number of CPUs.
func putACPI(g *guest, cpus int) error {
	if cpus < 1 {
		return fmt.Errorf("a machine needs at least one CPU, not %d: give --cpus 1 or more", cpus)
	}
	image := make([]byte, (rsdpSize+tableAlign-1)&^(tableAlign-1))
	add := func(t []byte) uint64 {
		at := acpiAt + uint64(len(image))
		image = append(image, t...)
		image = append(image, make([]byte, -len(image)&(tableAlign-1))...)
		return at
	}
	dsdtAt := add(dsdt(Window64(g.ram)))
	var xsdt []byte
	for _, t := range [][]byte{fadt(dsdtAt), madt(cpus), mcfg()} {
		xsdt = binary.LittleEndian.AppendUint64(xsdt, add(t))
	}
	copy(image, rsdp(add(table("XSDT", 1, xsdt))))
	if len(image) > acpiRoom {
		return fmt.Errorf("%d CPUs are too many for the ACPI tables: give fewer --cpus", cpus)
	}
	return g.put("the ACPI tables", acpiAt, image)
}

// rsdp is revision 2 of the root pointer (§5.2.5.3), without an RSDT.
func rsdp(xsdtAt uint64) []byte {
	le := binary.LittleEndian
	p := append([]byte("RSD PTR "), 0)
	p = append(p, oemID...)
	p = append(p, 2)
	p = le.AppendUint32(p, 0)
	p = le.AppendUint32(p, rsdpSize)
	p = le.AppendUint64(p, xsdtAt)
	p = append(p, 0, 0, 0, 0)
	p[8] = checksum(p[:20])
	p[32] = checksum(p)
	return p
}

// Flags of the FADT (§5.2.9, table 5.10) and its IA-PC boot flags (§5.2.9.3).
const (
	fadtWBINVD         = 1 << 0
	fadtNoPowerButton  = 1 << 4 // not as a fixed register: it is in the DSDT
	fadtNoSleepButton  = 1 << 5
	fadtNoRTCWake      = 1 << 6
	fadtResetRegister  = 1 << 10
	fadtReducedHW      = 1 << 20
	iapcNoVGA          = 1 << 2
	iapcNoRTC          = 1 << 5
	fadtRevision       = 6
	fadtMinorRevision  = 5
	fadtProfileUnknown = 0
)

// fadt says that this machine is hardware-reduced: no PM timer, no SCI, and
// sleep and reset by one register each (§5.2.9).
func fadt(dsdtAt uint64) []byte {
	le := binary.LittleEndian
	p := make([]byte, fadtSize)
	le.PutUint32(p[40:], uint32(dsdtAt))
	p[45] = fadtProfileUnknown
	le.PutUint16(p[109:], iapcNoVGA|iapcNoRTC)
	le.PutUint32(p[112:], fadtWBINVD|fadtNoPowerButton|fadtNoSleepButton|fadtNoRTCWake|fadtResetRegister|fadtReducedHW)
	copy(p[116:], port(ResetPort))
	p[128] = ResetValue
	p[131] = fadtMinorRevision
	le.PutUint64(p[140:], dsdtAt)
	copy(p[244:], port(SleepControl))
	copy(p[256:], port(SleepStatus))
	return table("FACP", fadtRevision, p[headerSize:])
}

// port is the generic address of an 8-bit port (§5.2.3.2).
func port(n uint64) []byte {
	return binary.LittleEndian.AppendUint64([]byte{1, 8, 0, 1}, n)
}

// madt lists the local APICs and the I/O APIC (§5.2.12). Ids that do not fit
// in a byte, of which 255 is the broadcast, are x2APIC ids. There are no
// overrides: without PC-AT interrupt controllers there is no ISA wiring.
func madt(cpus int) []byte {
	le := binary.LittleEndian
	const (
		enabled   = 1
		x2apicMin = 255
	)
	p := le.AppendUint32(nil, LocalAPIC)
	p = le.AppendUint32(p, 0) // flags: no dual 8259
	for id := range cpus {
		if id < x2apicMin {
			p = append(p, 0, 8, byte(id), byte(id))
			p = le.AppendUint32(p, enabled)
			continue
		}
		p = append(p, 9, 16, 0, 0)
		p = le.AppendUint32(p, uint32(id))
		p = le.AppendUint32(p, enabled)
		p = le.AppendUint32(p, uint32(id)) // processor UID
	}
	p = append(p, 1, 12, 0, 0) // I/O APIC 0
	p = le.AppendUint32(p, IOAPIC)
	p = le.AppendUint32(p, 0) // its first GSI
	return table("APIC", 5, p)
}

// mcfg says where the configuration space of bus 0 is (PCI Firmware 3.3 §4.1.2).
func mcfg() []byte {
	le := binary.LittleEndian
	p := make([]byte, 8) // reserved
	p = le.AppendUint64(p, ECAM)
	p = le.AppendUint16(p, 0) // segment
	p = append(p, 0, 0)       // first and last bus
	p = le.AppendUint32(p, 0)
	return table("MCFG", 1, p)
}

// dsdt describes the devices that cannot be found by probing.
func dsdt(w64 memory.Range) []byte {
	body := join([]aml{
		scope(`\_SB_`,
			device("PCI0",
				name("_HID", eisaID("PNP0A08")),
				name("_CID", eisaID("PNP0A03")),
				name("_UID", number(0)),
				name("_SEG", number(0)),
				name("_BBN", number(0)),
				name("_CRS", resources(
					busRange(0, 0),
					window32(Window32, Window32Size),
					window64(uint64(w64.Start), w64.Size),
				)),
			),
			// Linux uses the ECAM only if a motherboard resource reserves it.
			device("MBRD",
				name("_HID", eisaID("PNP0C02")),
				name("_UID", number(0)),
				name("_CRS", resources(
					fixedMemory(ECAM, ECAMSize),
					ports(SleepControl, ResetPort-SleepControl+1),
				)),
			),
			device("COM1",
				name("_HID", eisaID("PNP0501")),
				name("_UID", number(0)),
				name("_CRS", resources(ports(COM1, COM1Size), edge(COM1GSI))),
			),
			device("PWRB",
				name("_HID", eisaID("PNP0C0C")),
				name("_UID", number(0)),
			),
			// The generic event device turns its interrupt into the button (§5.6.9).
			device("GED_",
				name("_HID", text("ACPI0013")),
				name("_UID", number(0)),
				name("_CRS", resources(edge(PowerButtonGSI))),
				method("_EVT", 1,
					ifEqual(arg0, number(PowerButtonGSI), notify("PWRB", number(0x80)))),
			),
			device("PEVT",
				name("_HID", text("QEMU0001")),
				name("_UID", number(0)),
				name("_CRS", resources(ports(PvpanicPort, 1))),
			),
		),
		name(`\_S5_`, list(number(sleepTypeS5), number(sleepTypeS5), number(0), number(0))),
	})
	return table("DSDT", 2, body)
}
