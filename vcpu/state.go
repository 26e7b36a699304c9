package vcpu

import (
	"fmt"

	"disco/vcpu/kvm"
)

// Boot is the state in which the boot processor enters a kernel.
type Boot struct {
	Long bool   // 64-bit mode with paging through CR3; else 32-bit protected mode, no paging
	CR3  uint64 // with Long: identity map
	RIP  uint64
	RSP  uint64
	RSI  uint64
	RBX  uint64

	// GDT is the address of a descriptor table in guest memory, GDTLimit its
	// last byte, and Code and Data the selectors of its flat segments.
	GDT        uint64
	GDTLimit   uint16
	Code, Data uint16
}

// Control register and EFER bits (Intel SDM vol. 3A §2.5, §2.2.1).
const (
	cr0PE, cr0ET, cr0PG = 1 << 0, 1 << 4, 1 << 31
	cr4PAE              = 1 << 5
	eferLME, eferLMA    = 1 << 8, 1 << 10
	apicX2, apicOn      = 1 << 10, 1 << 11
	msrMiscEnable       = 0x1a0
	msrMTRRDefType      = 0x2ff
	miscFastStrings     = 1
	mtrrOnWriteBack     = 0x800 | 6
)

// Reset puts the vCPU into the state that firmware leaves it in: its CPUID
// leaves set, memory write-back by default, and its APIC in x2APIC mode, so
// that no guest ever touches APIC registers through memory.
func (v *VCPU) Reset(cpuid []kvm.CPUIDEntry) error {
	for _, b := range v.bodies {
		if err := b.reset(cpuid); err != nil {
			return fmt.Errorf("vCPU %d: %w", v.id, err)
		}
	}
	return nil
}

func (b *incarnation) reset(cpuid []kvm.CPUIDEntry) error {
	if err := b.kvm.SetCPUID(cpuid); err != nil {
		return err
	}
	s, err := b.kvm.Sregs()
	if err != nil {
		return err
	}
	s.ApicBase |= apicOn | apicX2
	if err := b.kvm.SetSregs(s); err != nil {
		return fmt.Errorf("x2APIC: %w", err)
	}
	return b.kvm.SetMSRs([]kvm.MSR{
		{Index: msrMiscEnable, Data: miscFastStrings},
		{Index: msrMTRRDefType, Data: mtrrOnWriteBack},
	})
}

// SetBoot makes the vCPU enter a kernel as b says, with interrupts off.
func (v *VCPU) SetBoot(b Boot) error {
	s, err := v.KVM().Sregs()
	if err != nil {
		return fmt.Errorf("vCPU %d: %w", v.id, err)
	}
	code := kvm.Segment{Limit: 0xffffffff, Selector: b.Code, Typ: 0xb, Present: 1, S: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: b.Data, Typ: 0x3, Present: 1, S: 1, G: 1, DB: 1}
	s.CR0 = cr0PE | cr0ET
	s.CR4, s.EFER, s.CR3 = 0, 0, 0
	if b.Long {
		code.L = 1
		s.CR0 |= cr0PG
		s.CR4 = cr4PAE
		s.EFER = eferLME | eferLMA
		s.CR3 = b.CR3
	} else {
		code.DB = 1
	}
	s.CS = code
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.TR = kvm.Segment{Limit: 0x67, Typ: 0xb, Present: 1}
	s.LDT = kvm.Segment{Unusable: 1}
	s.GDT = kvm.Descriptor{Base: b.GDT, Limit: b.GDTLimit}
	s.IDT = kvm.Descriptor{}
	if err := v.KVM().SetSregs(s); err != nil {
		return fmt.Errorf("vCPU %d: %w", v.id, err)
	}
	const reserved = 1 << 1
	err = v.KVM().SetRegs(&kvm.Regs{RIP: b.RIP, RSP: b.RSP, RSI: b.RSI, RBX: b.RBX, RFLAGS: reserved})
	if err != nil {
		return fmt.Errorf("vCPU %d: %w", v.id, err)
	}
	return nil
}
