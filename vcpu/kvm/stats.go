package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
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

// Gauge is one momentary value of a vCPU's statistics.
type Gauge struct {
	fd  int
	off int64
}

// Blocking tells whether the vCPU is halted in KVM_RUN: the value is 1 while its
// thread waits for an interrupt to the guest, and 0 otherwise. The caller must
// Close it.
func (c *VCPU) Blocking() (*Gauge, error) {
	fd, err := call(c.fd, reqGetStatsFD, 0)
	if err != nil {
		return nil, fmt.Errorf("KVM_GET_STATS_FD: %w", err)
	}
	g := &Gauge{fd: int(fd), off: -1}
	err = eachStat(g.fd, func(name string, kind uint32, off int64) error {
		if name == "blocking" {
			g.off = off
		}
		return nil
	})
	if err == nil && g.off < 0 {
		err = errors.New("KVM statistics: this kernel does not say which vCPUs are halted")
	}
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// Read is the value now. It may be called from any thread.
func (g *Gauge) Read() (uint64, error) {
	var value [8]byte
	if n, err := unix.Pread(g.fd, value[:], g.off); err != nil || n < len(value) {
		return 0, errors.Join(errors.New("KVM statistics: no value"), err)
	}
	return binary.LittleEndian.Uint64(value[:]), nil
}

// Stats are those of the same vCPU, as VCPU.Stats, which KVM refuses to tell while
// the vCPU runs. It may be called from any thread.
func (g *Gauge) Stats() (Stats, error) { return readStats(g.fd) }

// Close frees the Gauge.
func (g *Gauge) Close() error { return unix.Close(g.fd) }

func readStats(fd int) (Stats, error) {
	places := map[string]int64{}
	first, end := int64(math.MaxInt64), int64(0)
	err := eachStat(fd, func(name string, kind uint32, off int64) error {
		const cumulative = 0
		if kind == cumulative {
			places[name] = off
			first, end = min(first, off), max(end, off+8)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s := Stats{}
	if len(places) == 0 {
		return s, nil
	}
	const limit = 1 << 20 // bytes of values
	if first < 0 || end-first > limit {
		return nil, fmt.Errorf("KVM statistics: values from %d to %d", first, end)
	}
	values := make([]byte, end-first)
	if n, err := unix.Pread(fd, values, first); err != nil || n < len(values) {
		return nil, errors.Join(errors.New("KVM statistics: no values"), err)
	}
	for name, off := range places {
		s[name] = binary.LittleEndian.Uint64(values[off-first:])
	}
	return s, nil
}

// eachStat calls f with every value that is a single word: its name, kind and
// place in the file.
func eachStat(fd int, f func(name string, kind uint32, off int64) error) error {
	head := make([]byte, 24)
	if n, err := unix.Pread(fd, head, 0); err != nil || n < len(head) {
		return errors.Join(errors.New("KVM statistics: no header"), err)
	}
	u32 := binary.LittleEndian.Uint32
	nameSize, num, descOff, dataOff := int(u32(head[4:])), int(u32(head[8:])), int64(u32(head[16:])), int64(u32(head[20:]))
	const fixed, limit = 16, 4096
	if nameSize > limit || num > limit {
		return fmt.Errorf("KVM statistics: %d descriptors with names of %d bytes", num, nameSize)
	}
	desc := make([]byte, num*(fixed+nameSize))
	if n, err := unix.Pread(fd, desc, descOff); err != nil || n < len(desc) {
		return errors.Join(errors.New("KVM statistics: short descriptors"), err)
	}
	for ; len(desc) > 0; desc = desc[fixed+nameSize:] {
		const kindMask = 0xf
		if binary.LittleEndian.Uint16(desc[6:]) != 1 {
			continue
		}
		name, _, _ := strings.Cut(string(desc[fixed:fixed+nameSize]), "\x00")
		if err := f(name, u32(desc)&kindMask, dataOff+int64(u32(desc[8:]))); err != nil {
			return err
		}
	}
	return nil
}
