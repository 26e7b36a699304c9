package devices

import (
	"encoding/binary"
	"sync"
	"testing"
)

type msi struct {
	addr uint64
	data uint32
}

func newIOAPIC() (*IOAPIC, *[]msi) {
	var sent []msi
	return NewIOAPIC(func(addr uint64, data uint32) { sent = append(sent, msi{addr, data}) }), &sent
}

func apicWrite(a *IOAPIC, reg byte, v uint32) {
	a.Write(ioapicSelect, []byte{reg, 0, 0, 0})
	a.Write(ioapicWindow, binary.LittleEndian.AppendUint32(nil, v))
}

func apicRead(a *IOAPIC, reg byte) uint32 {
	a.Write(ioapicSelect, []byte{reg, 0, 0, 0})
	var p [4]byte
	a.Read(ioapicWindow, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

func program(a *IOAPIC, pin int, entry uint64) {
	apicWrite(a, byte(ioapicTable+2*pin+1), uint32(entry>>32))
	apicWrite(a, byte(ioapicTable+2*pin), uint32(entry))
}

func TestIOAPICMessages(t *testing.T) {
	for _, c := range []struct {
		name  string
		entry uint64
		want  msi
	}{
		{"fixed, physical", 3<<56 | 0x31, msi{0xfee03000, 0x31}},
		{"physical broadcast", 0xff<<56 | 0x40, msi{0xfeeff000, 0x40}},
		{"lowest priority, logical", 1<<56 | 1<<11 | 1<<8 | 0x51, msi{0xfee01004, 0x151}},
		{"NMI", 2<<56 | 4<<8, msi{0xfee02000, 0x400}},
		{"level and polarity are not sent", 1<<15 | 1<<13 | 0x22, msi{0xfee00000, 0x22}},
		{"extended destination is not sent", 0x7f<<49 | 0x22, msi{0xfee00000, 0x22}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, sent := newIOAPIC()
			program(a, 4, c.entry)
			a.Line(4).Pulse()
			a.Line(4).Pulse()
			a.Line(5).Pulse()
			if len(*sent) != 2 || (*sent)[0] != c.want || (*sent)[1] != c.want {
				t.Errorf("sent %x, want %x twice", *sent, c.want)
			}
		})
	}
}

func TestIOAPICMask(t *testing.T) {
	a, sent := newIOAPIC()
	line := a.Line(23)
	line.Pulse()
	line.Pulse()
	program(a, 23, redirMask|0x33)
	if len(*sent) != 0 {
		t.Fatalf("a masked pin sent %x", *sent)
	}
	program(a, 23, 1<<56|0x33)
	if want := (msi{0xfee01000, 0x33}); len(*sent) != 1 || (*sent)[0] != want {
		t.Fatalf("unmasking sent %x, want %x once", *sent, want)
	}
	program(a, 23, redirMask|0x33)
	program(a, 23, 0x33)
	if len(*sent) != 1 {
		t.Errorf("an edge was sent twice: %x", *sent)
	}
}

func TestIOAPICRegisters(t *testing.T) {
	a, _ := newIOAPIC()
	if v := apicRead(a, ioapicVersion); v != 0x170020 {
		t.Errorf("version register %#x", v)
	}
	for pin := range IOAPICPins {
		if v := apicRead(a, byte(ioapicTable+2*pin)); v != redirMask {
			t.Fatalf("pin %d starts as %#x, want masked", pin, v)
		}
	}
	apicWrite(a, ioapicID, 0xffffffff)
	if apicRead(a, ioapicID) != 0x0f000000 || apicRead(a, ioapicArb) != 0x0f000000 {
		t.Error("id register")
	}
	apicWrite(a, ioapicTable, 0xffffffff)
	if v := apicRead(a, ioapicTable); v != 0xffffffff&^redirReadOnly {
		t.Errorf("read-only bits took a write: %#x", v)
	}
	apicWrite(a, ioapicTable+1, 0x12345678)
	if v := apicRead(a, ioapicTable+1); v != 0x12345678 {
		t.Errorf("high half %#x", v)
	}
	for _, reg := range []byte{3, 15, ioapicTable + 2*IOAPICPins, 255} {
		apicWrite(a, reg, 0xffffffff)
		if v := apicRead(a, reg); v != 0 {
			t.Errorf("register %#x reads %#x", reg, v)
		}
	}
	p := []byte{9, 9, 9, 9, 9, 9, 9, 9}
	a.Write(ioapicSelect, p)
	a.Read(ioapicSelect, p)
	if binary.LittleEndian.Uint64(p) != 0 {
		t.Errorf("an access of 8 bytes read %x", p)
	}
}

func TestIOAPICDoesNotAllocate(t *testing.T) {
	a := NewIOAPIC(func(uint64, uint32) {})
	program(a, 4, 0x31)
	line, p := a.Line(4), make([]byte, 4)
	if n := testing.AllocsPerRun(1000, func() {
		line.Pulse()
		a.Write(ioapicSelect, p)
		a.Read(ioapicWindow, p)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// An edge that races with masking is sent or remembered, never lost.
func TestIOAPICRace(t *testing.T) {
	var mu sync.Mutex
	n := 0
	a := NewIOAPIC(func(uint64, uint32) { mu.Lock(); n++; mu.Unlock() })
	var wg sync.WaitGroup
	for range 1000 {
		n = 0
		wg.Go(a.Line(1).Pulse)
		wg.Go(func() { program(a, 1, redirMask); program(a, 1, 0x20) })
		wg.Wait()
		if n != 1 {
			t.Fatalf("one edge gave %d messages", n)
		}
	}
}

// FuzzIOAPIC throws accesses: six bytes of (kind and size, offset, data) each.
func FuzzIOAPIC(f *testing.F) {
	f.Add([]byte{4, 0, 0x12, 0, 0, 0, 4, 0x10, 0x31, 0, 0, 0, 0xff, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		a := NewIOAPIC(func(addr uint64, data uint32) {
			if addr&^0xff004 != msiBase || data&^0x7ff != 0 {
				t.Fatalf("message %#x %#x", addr, data)
			}
		})
		for ; len(ops) >= 6; ops = ops[6:] {
			p := append(ops[2:6:6], 0, 0, 0, 0)[:1+ops[0]&7]
			switch {
			case ops[0] >= 0xc0:
				a.Line(int(ops[1]) % IOAPICPins).Pulse()
			case ops[0]&8 == 0:
				a.Write(uint64(ops[1]), p)
			default:
				a.Read(uint64(ops[1]), p)
			}
		}
	})
}
