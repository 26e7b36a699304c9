package host

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

// cause is the innermost reason of a system call that failed.
func cause(err error) string {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}

func kvmMend(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return "switch virtualization on in the firmware, then modprobe kvm_intel (or kvm_amd)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "join the group kvm (usermod -aG kvm $USER, then log in again), or run as root"
	default:
		return "use a kernel with KVM"
	}
}

type capability struct {
	c    kvm.Capability
	name string
}

// needed are the capabilities without which no guest is built.
var needed = []capability{
	{kvm.CapUserMemory, "USER_MEMORY"},
	{kvm.CapSyncMMU, "SYNC_MMU"},
	{kvm.CapExtendedCPUID, "EXT_CPUID"},
	{kvm.CapMPState, "MP_STATE"},
	{kvm.CapIRQRouting, "IRQ_ROUTING"},
	{kvm.CapIRQFD, "IRQFD"},
	{kvm.CapIOEventFD, "IOEVENTFD"},
	{kvm.CapSignalMSI, "SIGNAL_MSI"},
	{kvm.CapSplitIRQChip, "SPLIT_IRQCHIP"},
	{kvm.CapX2APICAPI, "X2APIC_API"},
	{kvm.CapImmediateExit, "IMMEDIATE_EXIT"},
}

// wished are capabilities that the monitor uses where they are.
var wished = []capability{
	{kvm.CapTSCDeadline, "TSC_DEADLINE_TIMER"},
	{kvm.CapIOEventFDAnyLen, "IOEVENTFD_ANY_LENGTH"},
	{kvm.CapX86DisableExits, "X86_DISABLE_EXITS"},
	{kvm.CapBinaryStats, "BINARY_STATS_FD"},
}

// extensions is the part of kvm.System that capabilities asks.
type extensions interface {
	CheckExtension(kvm.Capability) int
}

// absent returns the names of those of the list that sys does not have.
func absent(sys extensions, list []capability) []string {
	var names []string
	for _, l := range list {
		if sys.CheckExtension(l.c) == 0 {
			names = append(names, l.name)
		}
	}
	return names
}

func capabilities(sys extensions) Finding {
	f := Finding{Name: "KVM capabilities"}
	missing, without := absent(sys, needed), absent(sys, wished)
	switch {
	case missing != nil:
		f.Status, f.Found = Missing, "without "+strings.Join(missing, ", ")
		f.Mend = "use a newer kernel: 4.20 has all that is needed"
	case without != nil:
		f.Status, f.Found = Warn, "all that are needed; slower without "+strings.Join(without, ", ")
		f.Mend = "use a newer kernel: 5.14 has them all"
	default:
		f.Status, f.Found = OK, fmt.Sprintf("all %d; up to %d vCPUs in a guest", len(needed)+len(wished), sys.CheckExtension(kvm.CapMaxVCPUs))
	}
	return f
}

// paging reads what KVM's module says of itself; a KVM that is built in or of
// another kind says nothing, and is taken to have none.
func (h Host) paging() Finding {
	f := Finding{Name: "two-dimensional paging"}
	for _, p := range []struct{ module, parameter string }{{"kvm_intel", "ept"}, {"kvm_amd", "npt"}} {
		b, err := fs.ReadFile(h.Root, "sys/module/"+p.module+"/parameters/"+p.parameter)
		if err != nil {
			continue
		}
		if v := strings.TrimSpace(string(b)); v == "Y" || v == "1" {
			f.Status, f.Found = OK, fmt.Sprintf("yes, %s of %s", p.parameter, p.module)
			return f
		}
		f.Status, f.Found = Warn, fmt.Sprintf("off: %s has %s=0 (shadow paging)", p.module, p.parameter)
		f.Mend = fmt.Sprintf("modprobe -r %s && modprobe %s %s=1", p.module, p.module, p.parameter)
		return f
	}
	f.Status, f.Found = Warn, "no (shadow paging)"
	f.Mend = "use a host whose KVM is kvm_intel or kvm_amd; guests run slower without it"
	return f
}
