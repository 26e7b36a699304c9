package devices

import (
	"encoding/binary"
	"sync"
)

// IOAPIC registers (Intel 82093AA data sheet §3; EOI from version 0x20 on).
const (
	// IOAPICSize is the size of the register window in bytes.
	IOAPICSize = 0x1000
	// IOAPICPins is the number of interrupt pins.
	IOAPICPins = 24

	ioapicSelect    = 0x00
	ioapicWindow    = 0x10
	ioapicID        = 0x00
	ioapicVersion   = 0x01
	ioapicArb       = 0x02
	ioapicTable     = 0x10
	ioapicVersion20 = 0x20 | (IOAPICPins-1)<<16

	redirReadOnly = 1<<12 | 1<<14 // delivery status, remote IRR
	redirMask     = 1 << 16
	redirLogical  = 1 << 11
	redirVector   = 0xff
	redirDelivery = 7 << 8
	redirDest     = 56

	msiBase    = 0xfee00000
	msiDest    = 12
	msiLogical = 1 << 2
)

// IOAPIC is an I/O APIC of 24 pins for a KVM whose local APICs are in the
// kernel (split irqchip): it turns a pulse on a pin into the message that the
// guest's redirection entry asks for.
//
// All sources are edges. A pulse on a masked pin is remembered, once, and sent
// when the pin is unmasked. A pin that is programmed as level-triggered gets
// one edge message per pulse; there is no remote IRR, and EOI writes do
// nothing. Extended destination ids and interrupt remapping are not done.
type IOAPIC struct {
	send func(addr uint64, data uint32)

	mu      sync.Mutex
	sel     byte
	id      uint32
	redir   [IOAPICPins]uint64
	pending [IOAPICPins]bool
}

// NewIOAPIC makes an IOAPIC with every pin masked. send delivers one message;
// it is called from many goroutines and must not block or call back.
func NewIOAPIC(send func(addr uint64, data uint32)) *IOAPIC {
	a := &IOAPIC{send: send}
	for i := range a.redir {
		a.redir[i] = redirMask
	}
	return a
}

type pin struct {
	a *IOAPIC
	n int
}

func (p pin) Pulse() { p.a.pulse(p.n) }

// Line is the interrupt line of pin n, 0 to 23.
func (a *IOAPIC) Line(n int) Line {
	_ = a.redir[n]
	return pin{a, n}
}

func message(entry uint64) (addr uint64, data uint32) {
	addr = msiBase | entry>>redirDest<<msiDest
	if entry&redirLogical != 0 {
		addr |= msiLogical
	}
	return addr, uint32(entry & (redirVector | redirDelivery))
}

func (a *IOAPIC) pulse(n int) {
	a.mu.Lock()
	entry := a.redir[n]
	a.pending[n] = entry&redirMask != 0
	a.mu.Unlock()
	if entry&redirMask == 0 {
		a.send(message(entry))
	}
}

// Read reads a register: an aligned access of 4 bytes. Others read zeroes.
func (a *IOAPIC) Read(offset uint64, p []byte) {
	clear(p)
	if len(p) != 4 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var v uint32
	switch offset {
	case ioapicSelect:
		v = uint32(a.sel)
	case ioapicWindow:
		v = a.register()
	}
	binary.LittleEndian.PutUint32(p, v)
}

func (a *IOAPIC) register() uint32 {
	switch a.sel {
	case ioapicID, ioapicArb:
		return a.id
	case ioapicVersion:
		return ioapicVersion20
	}
	n, high, ok := a.selected()
	switch {
	case !ok:
		return 0
	case high:
		return uint32(a.redir[n] >> 32)
	}
	return uint32(a.redir[n])
}

// selected is the redirection entry, and which half of it, that sel names.
func (a *IOAPIC) selected() (n int, high, ok bool) {
	n = (int(a.sel) - ioapicTable) >> 1
	return n, a.sel&1 != 0, n >= 0 && n < IOAPICPins
}

// Write writes a register: an aligned access of 4 bytes. Others are ignored.
func (a *IOAPIC) Write(offset uint64, p []byte) {
	if len(p) != 4 {
		return
	}
	v := binary.LittleEndian.Uint32(p)
	a.mu.Lock()
	var entry uint64
	fire := false
	switch offset {
	case ioapicSelect:
		a.sel = byte(v)
	case ioapicWindow:
		entry, fire = a.setRegister(v)
	}
	a.mu.Unlock()
	if fire {
		a.send(message(entry))
	}
}

// setRegister says which entry to send, if unmasking it sets an edge free.
func (a *IOAPIC) setRegister(v uint32) (entry uint64, fire bool) {
	if a.sel == ioapicID {
		a.id = v & (0xf << 24)
		return 0, false
	}
	n, high, ok := a.selected()
	switch {
	case !ok:
		return 0, false
	case high:
		a.redir[n] = a.redir[n]&0xffffffff | uint64(v)<<32
		return 0, false
	}
	a.redir[n] = a.redir[n]&^0xffffffff | uint64(v&^redirReadOnly)
	if fire = a.pending[n] && v&redirMask == 0; fire {
		a.pending[n] = false
	}
	return a.redir[n], fire
}
