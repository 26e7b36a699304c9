package boot

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// tables follows the RSDP at acpiAt and returns the tables by signature.
func tables(t *testing.T, m *sparse) map[string][]byte {
	t.Helper()
	sum := func(p []byte) (n byte) {
		for _, b := range p {
			n += b
		}
		return n
	}
	root := m.at(acpiAt, rsdpSize)
	if string(root[:8]) != "RSD PTR " || sum(root[:20]) != 0 || sum(root) != 0 {
		t.Fatalf("RSDP %x", root)
	}
	all := map[string][]byte{}
	read := func(a uint64) []byte {
		p := m.at(a, int(m.u32(a+4)))
		if sum(p) != 0 {
			t.Errorf("%s has a wrong checksum", p[:4])
		}
		if a%8 != 0 {
			t.Errorf("%s lies at %#x", p[:4], a)
		}
		all[string(p[:4])] = p
		return p
	}
	for p := read(binary.LittleEndian.Uint64(root[24:]))[headerSize:]; len(p) >= 8; p = p[8:] {
		read(binary.LittleEndian.Uint64(p))
	}
	fadt := all["FACP"]
	if a := binary.LittleEndian.Uint64(fadt[140:]); read(a) == nil || uint64(binary.LittleEndian.Uint32(fadt[40:])) != a {
		t.Errorf("the FADT names two DSDTs")
	}
	return all
}

func TestACPI(t *testing.T) {
	le := binary.LittleEndian
	m := newSparse(RAM(5 * gib))
	if err := putACPI(&guest{w: m, ram: m.ram}, 300); err != nil {
		t.Fatal(err)
	}
	all := tables(t, m)

	fadt := all["FACP"]
	if len(fadt) != 276 || fadt[8] != 6 || le.Uint32(fadt[112:])&(1<<20|1<<10) != 1<<20|1<<10 {
		t.Errorf("FADT of %d bytes, revision %d, flags %#x", len(fadt), fadt[8], le.Uint32(fadt[112:]))
	}
	for _, r := range []struct {
		name string
		off  int
		want uint64
	}{{"reset", 116, ResetPort}, {"sleep control", 244, SleepControl}, {"sleep status", 256, SleepStatus}} {
		if gas := fadt[r.off:]; gas[0] != 1 || gas[1] != 8 || le.Uint64(gas[4:]) != r.want {
			t.Errorf("%s register %x, want port %#x", r.name, gas[:12], r.want)
		}
	}

	madt := all["APIC"]
	seen := map[uint32]byte{}
	ioapics := 0
	for p := madt[headerSize+8:]; len(p) > 0; p = p[p[1]:] {
		switch p[0] {
		case 0:
			seen[uint32(p[3])] = 0
		case 9:
			seen[le.Uint32(p[4:])] = 9
		case 1:
			ioapics++
			if le.Uint32(p[4:]) != IOAPIC || le.Uint32(p[8:]) != 0 {
				t.Errorf("I/O APIC %x", p[:12])
			}
		default:
			t.Errorf("MADT entry of type %d", p[0])
		}
	}
	if len(seen) != 300 || seen[254] != 0 || seen[255] != 9 || seen[299] != 9 || ioapics != 1 {
		t.Errorf("MADT has %d CPUs and %d I/O APICs", len(seen), ioapics)
	}

	if p := all["MCFG"][headerSize+8:]; len(p) != 16 || le.Uint64(p) != ECAM || p[10] != 0 || p[11] != 0 {
		t.Errorf("MCFG %x", p)
	}
	dsdt := all["DSDT"]
	for _, want := range []string{"PCI0", "COM1", "ACPI0013", "_EVT", "PWRB", "QEMU0001", "_S5_"} {
		if !bytes.Contains(dsdt, []byte(want)) {
			t.Errorf("the DSDT lacks %s", want)
		}
	}
	if !bytes.Contains(dsdt, le.AppendUint64(nil, 6*gib)) {
		t.Error("the DSDT's 64-bit window does not begin above RAM")
	}
}

// TestAML holds the encoder to bytes worked out from the grammar by hand.
func TestAML(t *testing.T) {
	for _, c := range []struct {
		name string
		got  aml
		want []byte
	}{
		{"zero", number(0), []byte{0}},
		{"one", number(1), []byte{1}},
		{"byte", number(0xFF), []byte{0x0A, 0xFF}},
		{"word", number(0x100), []byte{0x0B, 0x00, 0x01}},
		{"dword", number(0x12345678), []byte{0x0C, 0x78, 0x56, 0x34, 0x12}},
		{"EISA id", eisaID("PNP0A08"), []byte{0x0C, 0x41, 0xD0, 0x0A, 0x08}},
		{"string", text("ab"), []byte{0x0D, 'a', 'b', 0}},
		{"package", list(number(5), number(0)), []byte{0x12, 5, 2, 0x0A, 5, 0}},
		{"name", name("_UID", number(1)), []byte{0x08, '_', 'U', 'I', 'D', 1}},
		{"device", device("PWRB"), []byte{0x5B, 0x82, 5, 'P', 'W', 'R', 'B'}},
		{"notify", notify("PWRB", number(0x80)), []byte{0x86, 'P', 'W', 'R', 'B', 0x0A, 0x80}},
		{"ports", ports(0x3F8, 8), []byte{0x47, 1, 0xF8, 3, 0xF8, 3, 1, 8}},
		{"interrupt", edge(9), []byte{0x89, 6, 0, 3, 1, 9, 0, 0, 0}},
		{"no resources", resources(), []byte{0x11, 5, 0x0A, 2, 0x79, 0}},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s: % x, want % x", c.name, c.got, c.want)
		}
	}
	for _, c := range []struct {
		rest int
		want []byte
	}{
		{0, []byte{1}},
		{62, []byte{0x3F}},
		{63, []byte{0x41, 0x04}},
		{0xFFF - 2, []byte{0x4F, 0xFF}},
		{0xFFF - 1, []byte{0x81, 0x00, 0x01}},
	} {
		p := packaged([]byte{0x10}, make(aml, c.rest))
		if got := p[1 : len(p)-c.rest]; !bytes.Equal(got, c.want) {
			t.Errorf("length of %d: % x, want % x", c.rest, got, c.want)
		}
	}
}
