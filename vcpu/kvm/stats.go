package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Stats are KVM's own counters by name, such as exits, io_exits, mmio_exits and
// halt_exits for a vCPU.
type Stats map[string]uint64

// Stats reads the vCPU's counters (KVM_GET_STATS_FD, KVM api §4.133). Only
// what counts up is there: no peaks, momentary values or histograms. On a kernel without
// KVM_CAP_BINARY_STATS_FD the error is unix.ENOTTY.
func (c *VCPU) Stats() (Stats, error) {
	fd, err := call(c.fd, reqGetStatsFD, 0)
	if err != nil {
		return nil, fmt.Errorf("KVM_GET_STATS_FD: %w", err)
	}
	defer unix.Close(int(fd))
	return readStats(int(fd))
}

func readStats(fd int) (Stats, error) {
	head := make([]byte, 24)
	if n, err := unix.Pread(fd, head, 0); err != nil || n < len(head) {
		return nil, errors.Join(errors.New("KVM statistics: no header"), err)
	}
	u32 := binary.LittleEndian.Uint32
	nameSize, num, descOff, dataOff := int(u32(head[4:])), int(u32(head[8:])), int64(u32(head[16:])), int64(u32(head[20:]))
	const fixed, limit = 16, 4096
	if nameSize > limit || num > limit {
		return nil, fmt.Errorf("KVM statistics: %d descriptors with names of %d bytes", num, nameSize)
	}
	desc := make([]byte, num*(fixed+nameSize))
	if n, err := unix.Pread(fd, desc, descOff); err != nil || n < len(desc) {
		return nil, errors.Join(errors.New("KVM statistics: short descriptors"), err)
	}
	s := make(Stats, num)
	var value [8]byte
	for ; len(desc) > 0; desc = desc[fixed+nameSize:] {
		const kindMask, cumulative = 0xf, 0
		if u32(desc)&kindMask != cumulative || binary.LittleEndian.Uint16(desc[6:]) != 1 {
			continue
		}
		name, _, _ := strings.Cut(string(desc[fixed:fixed+nameSize]), "\x00")
		if n, err := unix.Pread(fd, value[:], dataOff+int64(u32(desc[8:]))); err != nil || n < len(value) {
			return nil, errors.Join(fmt.Errorf("KVM statistics: no value of %s", name), err)
		}
		s[name] = binary.LittleEndian.Uint64(value[:])
	}
	return s, nil
}
