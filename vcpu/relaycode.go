package vcpu

import (
	"encoding/binary"
	"math/bits"

	"disco/vcpu/kvm"
)

// RelaySize is how much guest-physical address space a wide Set takes, and
// RelaySlot the first of the two memory slots of each VM that are its own.
const (
	RelaySize = 1 << 20
	RelaySlot = 500
)

// The pages of relays, from SetOptions.RelayBase: code and descriptor tables,
// which no guest can write; then page tables and a stack for each vCPU id, which
// a guest that wants to harm itself can. Page tables must be writable: to a CPU
// with nested paging its walk of them is a write (AMD APM vol. 2 §15.25.6).
const (
	relayGDT    = 0x0000 // null, code, data
	relayLoop   = 0x0040 // hlt; jmp relayLoop
	relayTail   = 0x0050 // end of interrupt
	relayIDT    = 0x1000 // 256 gates of 16 bytes
	relayStubs  = 0x2000 // 256 stubs of relayStub bytes
	relayStub   = 16
	relayTables = 0x3000 // three levels
	relayStacks = 0x6000
	relayStack  = 256 // bytes: an interrupt, an NMI within it, and room

	relayCode, relayData = 0x08, 0x10 // selectors

	// relayPort is where a stub says its vector. Only relays' exits are looked
	// at for it, so it hides no port of the guest's.
	relayPort = 0x80

	maxRelays = (RelaySize - relayStacks) / relayStack
)

// vectorNMI is the IDT vector of NMIs; no interrupt has it.
const vectorNMI = 2

// relayImage is the code and the descriptor tables of relays at guest-physical
// address base, relayTables bytes:
//
//	loop: hlt                  stub: mov al, VECTOR       NMI stub: push rax
//	      jmp loop                   out relayPort, al              mov al, 2
//	tail: mov ecx, x2APIC EOI        jmp tail                       out relayPort, al
//	      xor eax, eax                                              pop rax
//	      xor edx, edx                                              iretq
//	      wrmsr
//	      iretq
//
// A relay keeps nothing in registers outside a stub. An NMI may come within
// one, hence its push and pop. It runs in 64-bit mode only because that is where
// a KVM that emulates CPL 0 knows iret.
func relayImage(base uint64) []byte {
	p := make([]byte, relayTables)
	le := binary.LittleEndian
	// Flat segments, with the accessed bit set: nobody writes to them.
	le.PutUint64(p[relayGDT+relayCode:], 0x00af9b00_0000ffff)
	le.PutUint64(p[relayGDT+relayData:], 0x00cf9300_0000ffff)
	copy(p[relayLoop:], []byte{0xf4, 0xeb, 0xfd})
	copy(p[relayTail:], []byte{0xb9, 0x0b, 0x08, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0x48, 0xcf})
	for v := range 256 {
		at := relayStubs + v*relayStub
		if v == vectorNMI {
			copy(p[at:], []byte{0x50, 0xb0, vectorNMI, 0xe6, relayPort, 0x58, 0x48, 0xcf})
		} else {
			copy(p[at:], []byte{0xb0, byte(v), 0xe6, relayPort, 0xe9})
			le.PutUint32(p[at+5:], uint32(relayTail-(at+9)))
		}
		// A present 64-bit interrupt gate (Intel SDM vol. 3A §6.14.1).
		target := base + uint64(at)
		le.PutUint64(p[relayIDT+v*16:], target&0xffff|relayCode<<16|0x8e00<<32|target>>16&0xffff<<48)
		le.PutUint64(p[relayIDT+v*16+8:], target>>32)
	}
	return p
}

// relayPaging is the page tables of relays, to lie at base+relayTables: the
// gigabyte around base, mapped to itself in pages of 2 MiB.
func relayPaging(base uint64) []byte {
	const (
		present, writable, accessed, dirty, large = 1 << 0, 1 << 1, 1 << 5, 1 << 6, 1 << 7
		gib                                       = 1 << 30
	)
	p := make([]byte, relayStacks-relayTables)
	put := binary.LittleEndian.PutUint64
	put(p, base+relayTables+pageSize|present|writable|accessed)
	put(p[pageSize+base/gib*8:], base+relayTables+2*pageSize|present|writable|accessed)
	for i := range uint64(512) {
		put(p[2*pageSize+i*8:], base&^(gib-1)+i<<21|present|writable|accessed|dirty|large)
	}
	return p
}

// Segments of a relay, as its tables describe them.
var (
	relayCS = kvm.Segment{Limit: 0xffffffff, Selector: relayCode, Typ: 0xb, Present: 1, S: 1, G: 1, L: 1}
	relayDS = kvm.Segment{Limit: 0xffffffff, Selector: relayData, Typ: 0x3, Present: 1, S: 1, G: 1, DB: 1}
)

// x2APIC registers as MSRs (Intel SDM vol. 3A, table 11-6).
const (
	msrAPICTaskPriority = 0x808
	msrAPICEOI          = 0x80b
	msrAPICSpurious     = 0x80f
	msrAPICTimer        = 0x832
	msrAPICThermal      = 0x833
	msrAPICCounters     = 0x834
	msrAPICLINT0        = 0x835
	msrAPICLINT1        = 0x836
	msrAPICError        = 0x837
	msrAPICInitialCount = 0x838

	apicEnabled = 1<<8 | 0xff // in the spurious-interrupt register
	lvtMasked   = 1 << 16
)

// listen makes the APIC take interrupts for a relay, whatever it did before:
// enabled, with no priority held and no source of its own. What it has already
// accepted stays, and is the relay's to pass on.
func (b *incarnation) listen() error {
	l, err := b.kvm.LAPIC()
	if err != nil {
		return err
	}
	msrs := []kvm.MSR{
		{Index: msrAPICTimer, Data: lvtMasked},
		{Index: msrAPICInitialCount, Data: 0},
		{Index: msrAPICThermal, Data: lvtMasked},
		{Index: msrAPICCounters, Data: lvtMasked},
		{Index: msrAPICLINT0, Data: lvtMasked},
		{Index: msrAPICLINT1, Data: lvtMasked},
		{Index: msrAPICError, Data: lvtMasked},
		{Index: msrAPICTaskPriority, Data: 0},
		{Index: msrAPICSpurious, Data: apicEnabled},
	}
	for range vectors(l, lapicISR) {
		msrs = append(msrs, kvm.MSR{Index: msrAPICEOI})
	}
	return b.kvm.SetMSRs(msrs)
}

// Registers of an APIC with a bit for each vector, as offsets in kvm.LAPIC.
const (
	lapicISR = 0x100 // being served
	lapicIRR = 0x200 // accepted
)

// vectors is how many bits are set in a register of 256 bits.
func vectors(l *kvm.LAPIC, register int) (n int) {
	for at := register; at < register+0x80; at += 0x10 {
		n += bits.OnesCount32(l.Register(at))
	}
	return n
}
