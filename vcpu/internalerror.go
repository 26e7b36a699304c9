package vcpu

import (
	"encoding/binary"
	"fmt"
)

// The suberrors of KVM_EXIT_INTERNAL_ERROR (linux/kvm.h).
const (
	suberrorEmulation   = 1
	suberrorSimulEx     = 2
	suberrorDeliveryEv  = 3
	suberrorUnexpected  = 4
	flagInstructionData = 1
)

// internalError puts an internal error into words. For a failed emulation KVM
// gives the bytes of the instruction, which are what a reader needs first.
func internalError(code uint32, data []uint64) string {
	switch code {
	case suberrorEmulation:
		return "KVM cannot emulate an instruction" + instruction(data)
	case suberrorSimulEx:
		return "KVM met an exception while it delivered another"
	case suberrorDeliveryEv:
		return "KVM could not deliver an event"
	case suberrorUnexpected:
		return "KVM met an exit that it does not know"
	}
	return fmt.Sprintf("KVM internal error %d", code)
}

func instruction(data []uint64) string {
	// data[0] is flags; then insn_size and insn_bytes, 1 + 15 bytes.
	if len(data) < 3 || data[0]&flagInstructionData == 0 {
		return ""
	}
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], data[1])
	binary.LittleEndian.PutUint64(b[8:], data[2])
	return fmt.Sprintf(" (bytes % x)", b[1:1+min(15, b[0])])
}
