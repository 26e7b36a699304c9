// Package exits counts how often guests of this host come out of guest mode, by
// KVM's tracepoints: the same instrument for every monitor. It needs root, and the
// kernel's tracefs.
package exits

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Exits are how often guests came out.
type Exits struct {
	All       uint64            `json:"all"`       // kvm_exit: out of the guest, most of which stay in the kernel
	Userspace uint64            `json:"userspace"` // kvm_userspace_exit: KVM_RUN returned
	Reasons   map[string]uint64 `json:"reasons"`   // of Userspace
}

// Brief is one line for people; empty for nil.
func (e *Exits) Brief() string {
	if e == nil {
		return ""
	}
	return fmt.Sprintf("  %d exits to user space %v, %d in all", e.Userspace, e.Reasons, e.All)
}

// userspaceReasons are the reasons that are told apart (KVM api §5, exit_reason).
var userspaceReasons = map[string]int{"io": 2, "mmio": 6, "intr": 10}

// Counters count tracepoint hits on all CPUs, so those of all guests of this
// host: nothing else may run one meanwhile. The counters of one CPU are a group,
// which is read at one moment.
type Counters struct {
	names  []string // of the counters of a group
	groups []group  // one for each CPU
}

// group is the counters of one CPU, its leader first.
type group []int

const (
	allEvent       = "kvm_exit"
	userspaceEvent = "kvm_userspace_exit"
)

// Open makes the counters, which do not count yet.
func Open() (*Counters, error) {
	c := &Counters{groups: make([]group, runtime.NumCPU())}
	err := errors.Join(c.open(allEvent, allEvent, ""), c.open(userspaceEvent, userspaceEvent, ""))
	for name, n := range userspaceReasons {
		err = errors.Join(err, c.open(name, userspaceEvent, fmt.Sprintf("reason == %d", n)))
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// open adds a counter of a tracepoint of KVM, of those hits that filter lets through.
func (c *Counters) open(name, tracepoint, filter string) error {
	id, err := tracepointID(tracepoint)
	if err != nil {
		return err
	}
	attr := &unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Read_format: unix.PERF_FORMAT_GROUP}
	attr.Size = uint32(unsafe.Sizeof(*attr))
	c.names = append(c.names, name)
	for cpu, g := range c.groups {
		leader := -1
		if len(g) > 0 {
			leader = g[0]
		} else {
			attr.Bits = unix.PerfBitDisabled // and with the leader all of the group
		}
		fd, err := unix.PerfEventOpen(attr, -1, cpu, leader, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("counter of %s on CPU %d: %w", tracepoint, cpu, err)
		}
		c.groups[cpu] = append(g, fd)
		if filter == "" {
			continue
		}
		text, err := unix.BytePtrFromString(filter)
		if err != nil {
			return err
		}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PERF_EVENT_IOC_SET_FILTER, uintptr(unsafe.Pointer(text))); e != 0 {
			return fmt.Errorf("counter of %s: filter %q: %w", tracepoint, filter, e)
		}
	}
	return nil
}

// tracepointID is the number of a tracepoint of KVM.
func tracepointID(name string) (uint64, error) {
	var errs []error
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		b, err := os.ReadFile(dir + "/events/kvm/" + name + "/id")
		if err == nil {
			return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		}
		errs = append(errs, err)
	}
	return 0, fmt.Errorf("tracepoint kvm:%s: mount tracefs, and load KVM: %w", name, errors.Join(errs...))
}

// Reset sets all to zero and counts from now on.
func (c *Counters) Reset() error {
	for _, g := range c.groups {
		err := unix.IoctlSetInt(g[0], unix.PERF_EVENT_IOC_RESET, unix.PERF_IOC_FLAG_GROUP)
		if err == nil {
			err = unix.IoctlSetInt(g[0], unix.PERF_EVENT_IOC_ENABLE, unix.PERF_IOC_FLAG_GROUP)
		}
		if err != nil {
			return fmt.Errorf("counters: %w", err)
		}
	}
	return nil
}

// Read is what was counted since Reset.
func (c *Counters) Read() (*Exits, error) {
	sum := map[string]uint64{}
	// A group reads as the number of counters and their values.
	b := make([]byte, 8*(1+len(c.names)))
	for _, g := range c.groups {
		if n, err := unix.Read(g[0], b); err != nil || n < len(b) {
			return nil, errors.Join(fmt.Errorf("counters: read %d of %d bytes", n, len(b)), err)
		}
		for i, name := range c.names {
			sum[name] += binary.NativeEndian.Uint64(b[8*(1+i):])
		}
	}
	e := &Exits{All: sum[allEvent], Userspace: sum[userspaceEvent], Reasons: map[string]uint64{}}
	other := e.Userspace
	for name := range userspaceReasons {
		if sum[name] > 0 {
			e.Reasons[name] = sum[name]
		}
		other -= sum[name]
	}
	if other > 0 {
		e.Reasons["other"] = other
	}
	return e, nil
}

// Close frees the counters.
func (c *Counters) Close() {
	for _, g := range c.groups {
		for _, fd := range g {
			unix.Close(fd)
		}
	}
	c.groups = nil
}
