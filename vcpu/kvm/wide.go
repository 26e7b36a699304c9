package kvm

import (
	"fmt"
	"io/fs"
	"strings"
)

// wideNeeds are the capabilities without which a guest cannot have several KVM
// VMs, and the Linux that brought each.
var wideNeeds = []struct {
	cap   Capability
	least int
	name  string
	since string
}{
	{CapSplitIRQChip, 1, "KVM_CAP_SPLIT_IRQCHIP", "4.5"},
	{CapX2APICAPI, use32BitIDs | noBroadcastQuirk, "KVM_CAP_X2APIC_API", "4.8"},
	{CapSignalMSI, 1, "KVM_CAP_SIGNAL_MSI", "3.5"},
	{CapImmediateExit, 1, "KVM_CAP_IMMEDIATE_EXIT", "4.13"},
	{CapReadOnlyMemory, 1, "KVM_CAP_READONLY_MEM", "3.7"},
	{CapMPState, 1, "KVM_CAP_MP_STATE", "2.6.26"},
	{CapVCPUEvents, 1, "KVM_CAP_VCPU_EVENTS", "2.6.33"},
	{CapGuestDebug, 1, "KVM_CAP_SET_GUEST_DEBUG", "2.6.30"},
	{CapDebugRegs, 1, "KVM_CAP_DEBUGREGS", "2.6.35"},
	{CapXSave, 1, "KVM_CAP_XSAVE", "2.6.36"},
	{CapXCRS, 1, "KVM_CAP_XCRS", "2.6.36"},
	{CapAdjustClock, 1, "KVM_CAP_ADJUST_CLOCK", "2.6.33"},
	{CapVCPUAttributes, 1, "KVM_CAP_VCPU_ATTRIBUTES (the TSC offset)", "5.16"},
}

// Wide is nil if this KVM has what a guest of several KVM VMs needs. Else the
// error names what is missing and the mend. Whether KVM's page tables are
// two-dimensional is another question: see TwoDimensional.
func (s *System) Wide() error { return wide(s.CheckExtension) }

func wide(check func(Capability) int) error {
	for _, n := range wideNeeds {
		if check(n.cap) < n.least {
			return fmt.Errorf("KVM lacks %s: boot Linux %s or newer, or place the guest on one node", n.name, n.since)
		}
	}
	return nil
}

// TwoDimensional says whether KVM translates guest addresses by a second level
// of page tables in hardware (EPT, NPT). Without it KVM shadows the guest's own
// page tables, in each VM by what happens in that VM: a guest of several VMs
// would run on stale ones. Where it cannot be known, ok is false; why says in a
// few words what was found. root is the host's: os.DirFS("/").
func TwoDimensional(root fs.FS) (ok bool, why string) {
	for _, p := range []struct{ module, parameter string }{{"kvm_intel", "ept"}, {"kvm_amd", "npt"}} {
		module, parameter := p.module, p.parameter
		b, err := fs.ReadFile(root, "sys/module/"+module+"/parameters/"+parameter)
		if err != nil {
			continue
		}
		switch strings.TrimSpace(string(b)) {
		case "Y", "1":
			return true, module + " has " + parameter + " on"
		}
		return false, fmt.Sprintf("%s has %s off: load it with %s=1 on a CPU that can", module, parameter, parameter)
	}
	return false, "neither kvm_intel nor kvm_amd is loaded, so KVM's page tables are not known to be EPT or NPT"
}
