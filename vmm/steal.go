package vmm

import (
	"encoding/binary"
	"time"

	"disco/memory"
)

// stolen adds to the steal time that a guest keeps at an address: an unsigned
// count of nanoseconds, first in struct kvm_steal_time (Linux
// Documentation/virt/kvm/x86/msr.rst). It is called on the thread of the vCPU whose
// it is, outside KVM_RUN, so nobody else writes it. The guest may read it at any
// time, which the 8 aligned bytes are written at once for.
func (m *machine) stolen(at uint64, d time.Duration) {
	var p [8]byte
	a := memory.GPA(at)
	if m.space.ReadAt(p[:], a) != nil {
		return // it is no memory, and KVM will have found that out too
	}
	binary.LittleEndian.PutUint64(p[:], binary.LittleEndian.Uint64(p[:])+uint64(d))
	_ = m.space.WriteAt(p[:], a) // as above
}
