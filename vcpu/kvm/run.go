package kvm

import (
	"encoding/binary"
	"strconv"
)

// Exit is a reason for which Run returns (struct kvm_run, exit_reason).
type Exit uint32

// The exits that a monitor with in-kernel local APICs can see.
const (
	ExitUnknown       Exit = 0
	ExitException     Exit = 1
	ExitIO            Exit = 2
	ExitHypercall     Exit = 3
	ExitDebug         Exit = 4
	ExitHLT           Exit = 5
	ExitMMIO          Exit = 6
	ExitShutdown      Exit = 8
	ExitFailEntry     Exit = 9
	ExitIntr          Exit = 10
	ExitInternalError Exit = 17
	ExitSystemEvent   Exit = 24
	ExitIOAPICEOI     Exit = 26
)

// NumExits bounds the exit reasons that are told apart when counting.
const NumExits = 64

var exitNames = map[Exit]string{
	ExitUnknown: "unknown", ExitException: "exception", ExitIO: "io", ExitHypercall: "hypercall",
	ExitDebug: "debug", ExitHLT: "hlt", ExitMMIO: "mmio", ExitShutdown: "shutdown",
	ExitFailEntry: "fail-entry", ExitIntr: "intr", ExitInternalError: "internal-error",
	ExitSystemEvent: "system-event", ExitIOAPICEOI: "ioapic-eoi",
}

func (e Exit) String() string {
	if s, ok := exitNames[e]; ok {
		return s
	}
	return "exit-" + strconv.Itoa(int(e))
}

// Offsets in struct kvm_run; the exit's own data begins at runData.
const (
	runExitReason = 8
	runData       = 32
)

// Exit is why the last Run returned.
func (c *VCPU) Exit() Exit { return Exit(binary.LittleEndian.Uint32(c.page[runExitReason:])) }

// IO describes an ExitIO: Count accesses of Size bytes each to Port. Data holds
// them one after the other, in the run page: an input is answered by filling it.
type IO struct {
	Out   bool
	Size  int
	Port  uint16
	Count int
	Data  []byte
}

// IO is the port access behind an ExitIO.
func (c *VCPU) IO() IO {
	d := c.page[runData:]
	io := IO{Out: d[0] == 1, Size: int(d[1]), Port: binary.LittleEndian.Uint16(d[2:]), Count: int(binary.LittleEndian.Uint32(d[4:]))}
	off := binary.LittleEndian.Uint64(d[8:])
	io.Data = c.page[off : off+uint64(io.Size*io.Count)]
	return io
}

// MMIO describes an ExitMMIO. Data is in the run page: a read is answered by
// filling it.
type MMIO struct {
	Write bool
	Addr  uint64
	Data  []byte
}

// MMIO is the memory access behind an ExitMMIO. The guest's instruction is
// already done except for the data of a read.
func (c *VCPU) MMIO() MMIO {
	d := c.page[runData:]
	return MMIO{Addr: binary.LittleEndian.Uint64(d), Data: d[8 : 8+min(8, binary.LittleEndian.Uint32(d[16:]))], Write: d[20] != 0}
}

// Suberror is the first word of an ExitInternalError or the hardware's reason
// of an ExitFailEntry, and the words of data that came with an internal error.
func (c *VCPU) Suberror() (code uint32, data []uint64) {
	d := c.page[runData:]
	code = binary.LittleEndian.Uint32(d)
	if c.Exit() == ExitInternalError {
		for i := range min(16, binary.LittleEndian.Uint32(d[4:])) {
			data = append(data, binary.LittleEndian.Uint64(d[8+8*i:]))
		}
	}
	return code, data
}

// HardwareReason is the CPU's own code of an ExitFailEntry or ExitUnknown.
func (c *VCPU) HardwareReason() uint64 { return binary.LittleEndian.Uint64(c.page[runData:]) }

// SystemEvent is the type of an ExitSystemEvent (1 shutdown, 2 reset, 3 crash).
func (c *VCPU) SystemEvent() uint32 { return binary.LittleEndian.Uint32(c.page[runData:]) }
