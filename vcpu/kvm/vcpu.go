package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Register sets and states, laid out as the kernel's.
type (
	Regs       = gokvm.Regs
	Sregs      = gokvm.Sregs
	Segment    = gokvm.Segment
	Descriptor = gokvm.Descriptor
	MSR        = gokvm.MSREntry
)

// VCPU is one KVM vCPU. KVM serializes what is done to it: a call from another
// thread while it runs waits until it leaves Run.
type VCPU struct {
	fd    int
	page  []byte
	xsave int // bytes of its extended registers, as far as KVM says
}

// CreateVCPU makes the vCPU with APIC id id. The caller must Close it before
// the VM.
func (m *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := call(m.fd, reqCreateVCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VCPU %d: %w", id, err)
	}
	unix.CloseOnExec(int(fd))
	page, err := unix.Mmap(int(fd), 0, m.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(int(fd))
		return nil, fmt.Errorf("vCPU %d: map the run page: %w", id, err)
	}
	return &VCPU{fd: int(fd), page: page, xsave: m.checkExtension(CapXSave2)}, nil
}

func (c *VCPU) do(name string, req uintptr, p unsafe.Pointer) error {
	if _, err := callPtr(c.fd, req, p); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// SetCPUID is KVM_SET_CPUID2 (KVM api §4.45).
func (c *VCPU) SetCPUID(entries []CPUIDEntry) error {
	if len(entries) > maxCPUID {
		return fmt.Errorf("KVM_SET_CPUID2: %d entries, at most %d", len(entries), maxCPUID)
	}
	t := &cpuidTable{n: uint32(len(entries))}
	copy(t.entries[:], entries)
	return c.do("KVM_SET_CPUID2", reqSetCPUID2, unsafe.Pointer(t))
}

// Regs reads the general registers.
func (c *VCPU) Regs() (*Regs, error) {
	r := &Regs{}
	return r, c.do("KVM_GET_REGS", reqGetRegs, unsafe.Pointer(r))
}

// SetRegs writes the general registers.
func (c *VCPU) SetRegs(r *Regs) error { return c.do("KVM_SET_REGS", reqSetRegs, unsafe.Pointer(r)) }

// Sregs reads segments, control registers and the APIC base.
func (c *VCPU) Sregs() (*Sregs, error) {
	r := &Sregs{}
	return r, c.do("KVM_GET_SREGS", reqGetSregs, unsafe.Pointer(r))
}

// SetSregs writes what Sregs reads.
func (c *VCPU) SetSregs(r *Sregs) error { return c.do("KVM_SET_SREGS", reqSetSregs, unsafe.Pointer(r)) }

const maxMSRs = 64

type msrTable struct {
	n, _    uint32
	entries [maxMSRs]MSR
}

// SetMSRs writes model-specific registers in order. The error names the first
// one that KVM refused.
func (c *VCPU) SetMSRs(msrs []MSR) error {
	for len(msrs) > 0 {
		t := &msrTable{n: uint32(min(len(msrs), maxMSRs))}
		copy(t.entries[:], msrs)
		n, err := callPtr(c.fd, reqSetMSRs, unsafe.Pointer(t))
		if err != nil {
			return fmt.Errorf("KVM_SET_MSRS: %w", err)
		}
		if uint32(n) < t.n {
			return fmt.Errorf("KVM_SET_MSRS: KVM does not take MSR %#x", msrs[n].Index)
		}
		msrs = msrs[n:]
	}
	return nil
}

// Run is KVM_RUN (KVM api §4.10): it lets the guest run on the calling thread
// until it needs the monitor, and leaves the reason in the run page. It does
// not allocate. EINTR and EAGAIN come back as unix.Errno.
func (c *VCPU) Run() error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), reqRun, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Close frees the vCPU. It must not be running.
func (c *VCPU) Close() error {
	err := unix.Munmap(c.page)
	if e := unix.Close(c.fd); err == nil {
		err = e
	}
	return err
}

// ImmediateExit sets or clears kvm_run.immediate_exit, by which the next Run
// returns EINTR at once. It may be called from any thread.
func (c *VCPU) ImmediateExit(on bool) {
	// The flag is the second byte of the page; the word that holds it has
	// request_interrupt_window, which is never used, in the first.
	w := (*uint32)(unsafe.Pointer(&c.page[0]))
	if on {
		atomic.StoreUint32(w, 1<<8)
	} else {
		atomic.StoreUint32(w, 0)
	}
}
