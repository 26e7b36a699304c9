package vcpu

import (
	"math/bits"

	"disco/vcpu/kvm"
)

// CPUID leaves and bits that depend on which vCPU asks (Intel SDM vol. 2A,
// CPUID; AMD APM vol. 3, appendix E).
const (
	leafFeatures     = 0x1
	leafCaches       = 0x4
	leafTopology     = 0xb
	leafTopologyV2   = 0x1f
	leafAMDSizes     = 0x80000008
	leafAMDTopology  = 0x8000001e
	leafAMDCaches    = 0x8000001d
	featureX2APIC    = 1 << 21 // leaf 1 ECX
	featureDeadline  = 1 << 24
	featureGuest     = 1 << 31
	featureHTT       = 1 << 28 // leaf 1 EDX
	topologyLevelSMT = 1
	topologyCore     = 2
)

// CPUID makes from what KVM supports the leaves that vCPU id of n sees: one
// package of n cores without hyperthreads, each core with its own caches up to
// the second level, x2APIC and the TSC deadline timer (which KVM emulates but
// does not list). The result is the caller's; supported is left as it was.
func CPUID(supported []kvm.CPUIDEntry, id, n int) []kvm.CPUIDEntry {
	apicBits := uint32(bits.Len(uint(n - 1)))
	out := make([]kvm.CPUIDEntry, 0, len(supported))
	for _, e := range supported {
		switch e.Function {
		case leafFeatures:
			e.Ebx = e.Ebx&0x0000ffff | uint32(id)<<24 | min(uint32(1)<<apicBits, 255)<<16
			e.Ecx |= featureX2APIC | featureDeadline | featureGuest
			e.Edx &^= featureHTT
			if n > 1 {
				e.Edx |= featureHTT
			}
		case leafCaches, leafAMDCaches:
			if e.Eax&0x1f == 0 {
				break
			}
			sharing := uint32(0)
			if level := e.Eax >> 5 & 7; level >= 3 {
				sharing = 1<<apicBits - 1
			}
			e.Eax = e.Eax&^(0xfff<<14) | sharing<<14
			if e.Function == leafCaches {
				e.Eax = e.Eax&^(0x3f<<26) | min(uint32(1)<<apicBits-1, 0x3f)<<26
			}
		case leafTopology, leafTopologyV2:
			// Rewritten whole below.
			continue
		case leafAMDSizes:
			e.Ecx = apicBits<<12 | uint32(n-1)
		case leafAMDTopology:
			e.Eax, e.Ebx, e.Ecx = uint32(id), uint32(id), 0
		}
		out = append(out, e)
	}
	max := uint32(0)
	for _, e := range supported {
		if e.Function == 0 {
			max = e.Eax
		}
	}
	for _, leaf := range []uint32{leafTopology, leafTopologyV2} {
		if leaf > max {
			continue
		}
		out = append(out,
			kvm.CPUIDEntry{Function: leaf, Index: 0, Flags: kvm.CPUIDSignificantIndex, Eax: 0, Ebx: 1, Ecx: 0 | topologyLevelSMT<<8, Edx: uint32(id)},
			kvm.CPUIDEntry{Function: leaf, Index: 1, Flags: kvm.CPUIDSignificantIndex, Eax: apicBits, Ebx: uint32(n), Ecx: 1 | topologyCore<<8, Edx: uint32(id)},
			kvm.CPUIDEntry{Function: leaf, Index: 2, Flags: kvm.CPUIDSignificantIndex, Ecx: 2, Edx: uint32(id)})
	}
	return out
}

// Bits that a wide guest does not get.
const (
	leafKVMFeatures  = 0x40000001
	leafAMDFeatures  = 0x80000001
	featureVMX       = 1 << 5 // leaf 1 ECX
	featureSVM       = 1 << 2 // leafAMDFeatures ECX
	kvmAsyncPF       = 1 << 4 // leafKVMFeatures EAX
	kvmPVUnhalt      = 1 << 7
	kvmAsyncPFVMExit = 1 << 10
	kvmAsyncPFInt    = 1 << 14
	kvmMigration     = 1 << 17
	kvmClockStable   = 1 << 24
	kvmAsyncPFAll    = kvmAsyncPF | kvmAsyncPFVMExit | kvmAsyncPFInt
	kvmNotAcrossVMs  = kvmAsyncPFAll | kvmPVUnhalt | kvmMigration | kvmClockStable
)

// WithoutAsyncPF takes asynchronous page faults from a vCPU's leaves, in place: a
// page that cannot be had is waited for again and again by a guest that has them,
// and is an error of KVM_RUN otherwise.
func WithoutAsyncPF(entries []kvm.CPUIDEntry) []kvm.CPUIDEntry {
	for i := range entries {
		if entries[i].Function == leafKVMFeatures {
			entries[i].Eax &^= kvmAsyncPFAll
		}
	}
	return entries
}

// wideCPUID takes from the leaves of a vCPU, in place, what does not work when a
// guest has several KVM VMs:
//
//   - PV_UNHALT: a kick would wake a relay, which does not tell.
//   - asynchronous page faults: their tokens are a VM's.
//   - CLOCKSOURCE_STABLE_BIT: every VM scales kvmclock from its own moment, so
//     the guest must keep its own last value, by which the clock never goes
//     back. A guest that has an invariant TSC does not use it.
//   - nested virtualization, whose state Move does not carry.
//
// What stays and looks as if it might not work: PV_SEND_IPI, since its target is
// the same relay that an ICR write would reach; PV_EOI, steal time and PV TLB
// flush, since they are words in guest memory that only the live incarnation
// and the guest use.
func wideCPUID(entries []kvm.CPUIDEntry) []kvm.CPUIDEntry {
	for i := range entries {
		switch e := &entries[i]; e.Function {
		case leafFeatures:
			e.Ecx &^= featureVMX
		case leafAMDFeatures:
			e.Ecx &^= featureSVM
		case leafKVMFeatures:
			e.Eax &^= kvmNotAcrossVMs
		}
	}
	return entries
}
