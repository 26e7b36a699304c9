package host

import (
	"errors"
	"fmt"
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

// paging is whether guests have page tables of their own, which KVM does not shadow.
func (h Host) paging() Finding {
	f := Finding{Name: "two-dimensional paging", Status: OK}
	var ok bool
	if ok, f.Found = kvm.TwoDimensional(h.Root); !ok {
		f.Status = Warn
		f.Mend = "use a host whose KVM is kvm_intel with ept=1 or kvm_amd with npt=1; until then guests run slower, and on one node"
	}
	return f
}
