package kvm

import (
	"fmt"
	"unsafe"
)

// MSR reads one model-specific register, on the vCPU's thread.
func (c *VCPU) MSR(index uint32) (uint64, error) {
	t := &struct {
		n, _  uint32
		entry MSR
	}{n: 1, entry: MSR{Index: index}}
	n, err := callPtr(c.fd, reqGetMSRs, unsafe.Pointer(t))
	if err == nil && n != 1 {
		err = fmt.Errorf("there is no MSR %#x", index)
	}
	if err != nil {
		return 0, fmt.Errorf("KVM_GET_MSRS: %w", err)
	}
	return t.entry.Data, nil
}
