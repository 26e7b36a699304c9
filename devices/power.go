package devices

import (
	"encoding/binary"
	"sync/atomic"
)

// Ports that end or restart the guest. Each calls a function given by its
// owner, on the vCPU thread that did the access and possibly on several at
// once: the function must not wait for that thread to stop.

// Bits of the sleep registers (ACPI 6.5 §4.8.3.7).
const (
	sleepEnable    = 1 << 5
	sleepTypeShift = 2
	sleepTypeMask  = 7
)

// PowerSize is the number of ports of Power.
const PowerSize = 3

// Power is the three 8-bit registers of a hardware-reduced ACPI machine: sleep
// control, sleep status, reset.
type Power struct {
	Sleep func(slpType byte) // SLP_EN was written with this SLP_TYP, 0 to 7
	Reset func()             // 1 was written to the reset register
}

// Read reads zeroes: the machine never wakes.
func (d Power) Read(_ uint64, p []byte) { clear(p) }

// Write acts on each register that it covers.
func (d Power) Write(offset uint64, p []byte) {
	for i, v := range p {
		switch offset + uint64(i) {
		case 0:
			if v&sleepEnable != 0 {
				d.Sleep(v >> sleepTypeShift & sleepTypeMask)
			}
		case 2:
			if v == 1 {
				d.Reset()
			}
		}
	}
}

// ResetControl is the PIIX and ICH reset control register, the single port
// 0xcf9.
type ResetControl struct {
	Reset func()
	last  atomic.Uint32
}

const resetCPU = 1 << 2

// Read reads what was last written.
func (d *ResetControl) Read(_ uint64, p []byte) {
	clear(p)
	p[0] = byte(d.last.Load())
}

// Write resets when the CPU reset bit goes from 0 to 1.
func (d *ResetControl) Write(_ uint64, p []byte) {
	if old := d.last.Swap(uint32(p[0] &^ resetCPU)); p[0]&resetCPU != 0 && old&resetCPU == 0 {
		d.Reset()
	}
}

// KeyboardReset is port 0x64, an i8042's command port, for its one command
// that software without ACPI uses to reset a machine. There is no keyboard:
// its status reads as idle.
type KeyboardReset struct{ Reset func() }

const keyboardPulseReset = 0xfe

// Read reads zeroes: buffers empty.
func (d KeyboardReset) Read(_ uint64, p []byte) { clear(p) }

// Write resets on the pulse-reset-line command.
func (d KeyboardReset) Write(_ uint64, p []byte) {
	if p[0] == keyboardPulseReset {
		d.Reset()
	}
}

// PanicEvents are what a guest tells its pvpanic device, bits to be or'ed.
type PanicEvents byte

const (
	// PanicPanicked says that the guest's kernel panicked.
	PanicPanicked PanicEvents = 1 << 0
	// PanicCrashLoaded says that it panicked and runs its own crash kernel.
	PanicCrashLoaded PanicEvents = 1 << 1
)

// PanicPort is QEMU's pvpanic device, one port.
type PanicPort struct{ Report func(PanicEvents) }

// Read reads the events that are understood.
func (d PanicPort) Read(_ uint64, p []byte) {
	clear(p)
	p[0] = byte(PanicPanicked | PanicCrashLoaded)
}

// Write reports the events that are understood.
func (d PanicPort) Write(_ uint64, p []byte) {
	if e := PanicEvents(p[0]) & (PanicPanicked | PanicCrashLoaded); e != 0 {
		d.Report(e)
	}
}

// DebugExitSize is the number of ports of a DebugExit.
const DebugExitSize = 4

// DebugExit ends the monitor with an exit code of the guest's choice, as QEMU's
// isa-debug-exit does: value v gives v<<1|1, cut to the 8 bits that a process
// can return.
type DebugExit struct{ Exit func(code int) }

// Read reads zeroes.
func (d DebugExit) Read(_ uint64, p []byte) { clear(p) }

// Write exits with the value that begins at the first port; others are ignored.
func (d DebugExit) Write(offset uint64, p []byte) {
	if offset != 0 {
		return
	}
	var v [8]byte
	copy(v[:], p)
	d.Exit(int(uint8(binary.LittleEndian.Uint32(v[:])<<1 | 1)))
}
