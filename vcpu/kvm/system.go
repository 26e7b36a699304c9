// Package kvm is every ioctl that the monitor makes on /dev/kvm and on the VMs
// and vCPUs behind it. It is the only package that holds their file
// descriptors.
//
// The three objects are [System] (/dev/kvm), [VM] and [VCPU]. None has a
// finalizer: whoever makes one closes it, vCPUs before their VM. Types and
// constants that gokvm has right are gokvm's.
//
// Not done here: any policy, such as which CPUID leaves a guest sees, and the
// thread that runs a vCPU (package vcpu).
package kvm

import (
	"fmt"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// APIVersion is the only version of the KVM API there has been since Linux 2.6.22.
const APIVersion = 12

// Capability is a number of KVM api §4.4 and §7.
type Capability = gokvm.Capability

// Capabilities that the monitor asks for by name.
const (
	CapUserMemory      = gokvm.CapUserMemory
	CapMPState         = gokvm.CapMPState
	CapSyncMMU         = gokvm.CapSyncMMU
	CapIRQRouting      = gokvm.CapIRQRouting
	CapIRQFD           = gokvm.CapIRQFD
	CapIOEventFD       = gokvm.CapIOEventFD
	CapTSCDeadline     = Capability(72)
	CapMaxVCPUs        = Capability(66)
	CapSignalMSI       = Capability(77)
	CapSplitIRQChip    = Capability(121)
	CapIOEventFDAnyLen = Capability(122)
	CapX2APICAPI       = Capability(129)
	CapImmediateExit   = Capability(136)
	CapBinaryStats     = Capability(203)
	CapX86DisableExits = Capability(143)
	CapGuestDebug      = Capability(23)
	CapAdjustClock     = Capability(39)
	CapVCPUEvents      = Capability(41)
	CapDebugRegs       = Capability(50)
	CapXSave           = Capability(55)
	CapXCRS            = Capability(56)
	CapReadOnlyMemory  = Capability(81)
	CapVCPUAttributes  = Capability(127)
	CapXSave2          = Capability(208)
	CapExtendedCPUID   = gokvm.CapEXTCPUID
)

// System is an open /dev/kvm.
type System struct {
	fd      int
	runSize int
}

// Open opens the KVM device at path, usually /dev/kvm, and checks its API
// version. The caller must Close it.
func Open(path string) (*System, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOENT || err == unix.ENXIO || err == unix.ENODEV:
		return nil, fmt.Errorf("%s: %w: load kvm_intel or kvm_amd, and see that virtualization is on in the firmware", path, err)
	case err == unix.EACCES || err == unix.EPERM:
		return nil, fmt.Errorf("%s: %w: join the group kvm (usermod -aG kvm $USER, then log in again) or run as root", path, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s := &System{fd: fd}
	v, err := call(fd, reqGetAPIVersion, 0)
	if err != nil || v != APIVersion {
		s.Close()
		if err == nil {
			err = fmt.Errorf("API version %d, not %d", v, APIVersion)
		}
		return nil, fmt.Errorf("%s is no KVM: %w", path, err)
	}
	n, err := call(fd, reqGetVCPUMmapSize, 0)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%s: vCPU map size: %w", path, err)
	}
	s.runSize = int(n)
	return s, nil
}

// CheckExtension is KVM_CHECK_EXTENSION (KVM api §4.4): 0 where the capability
// is absent, else what its description says.
func (s *System) CheckExtension(c Capability) int {
	n, err := call(s.fd, reqCheckExtension, uintptr(c))
	if err != nil {
		return 0
	}
	return int(n)
}

// CPUIDEntry is struct kvm_cpuid_entry2.
type CPUIDEntry = gokvm.CPUIDEntry2

// CPUIDSignificantIndex marks an entry whose sub-leaf counts.
const CPUIDSignificantIndex = 1

const maxCPUID = 256

type cpuidTable struct {
	n, _    uint32
	entries [maxCPUID]CPUIDEntry
}

// SupportedCPUID is KVM_GET_SUPPORTED_CPUID (KVM api §4.46). The slice is the
// caller's.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	t := &cpuidTable{n: maxCPUID}
	if _, err := callPtr(s.fd, reqGetSupportedCPUID, unsafe.Pointer(t)); err != nil {
		return nil, fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", err)
	}
	return t.entries[:t.n], nil
}

// Close closes /dev/kvm. VMs made from it live on.
func (s *System) Close() error { return unix.Close(s.fd) }
