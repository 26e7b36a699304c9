package vcpu

import (
	"testing"

	"disco/vcpu/kvm"
)

// TestWideCPUID: nothing stays that depends on there being one KVM VM, and
// nothing else goes.
func TestWideCPUID(t *testing.T) {
	const all = ^uint32(0)
	in := []kvm.CPUIDEntry{
		{Function: leafFeatures, Ecx: all, Edx: all},
		{Function: leafAMDFeatures, Ecx: all, Edx: all},
		{Function: leafKVMFeatures, Eax: all, Edx: all},
		{Function: 0x80000007, Edx: 1 << 8},
	}
	want := []kvm.CPUIDEntry{
		{Function: leafFeatures, Ecx: all &^ (1 << 5), Edx: all},
		{Function: leafAMDFeatures, Ecx: all &^ (1 << 2), Edx: all},
		{Function: leafKVMFeatures, Eax: all &^ (1<<4 | 1<<7 | 1<<10 | 1<<14 | 1<<17 | 1<<24), Edx: all},
		{Function: 0x80000007, Edx: 1 << 8},
	}
	for i, got := range wideCPUID(in) {
		if got != want[i] {
			t.Errorf("leaf %#x: %+v, want %+v", got.Function, got, want[i])
		}
	}
}

func TestMessageTo(t *testing.T) {
	for id, want := range map[int]uint64{0: 0xfee00000, 5: 0xfee05000, 255: 0xfeeff000, 0x1234: 0x1200_fee3_4000} {
		if got := messageTo(id); got != want {
			t.Errorf("vCPU %d: %#x", id, got)
		}
	}
}
