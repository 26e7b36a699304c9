package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"disco/scheduler"
)

// ConfigError holds everything that is wrong with a Config, one problem each,
// in the order of the fields. A problem that is the host's and not the
// Config's is a *HostError.
type ConfigError struct{ Problems []error }

// Error is one line for each problem.
func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the problems to errors.Is and errors.As.
func (e *ConfigError) Unwrap() []error { return e.Problems }

// ErrNoKernel is the problem of a Config without a Kernel.
var ErrNoKernel = errors.New("kernel: none is named; give the path of a bzImage or an ELF vmlinux")

// HostError is something that this host lacks or forbids.
type HostError struct{ Err error }

func (e *HostError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *HostError) Unwrap() error { return e.Err }

// maxSocketPath is the length of sun_path in a sockaddr_un, less its final NUL
// (unix(7)), less what the sockets of the guest's connections to the host add.
const maxSocketPath = 107 - len("_4294967295")

var nameForm = regexp.MustCompile(`^[A-Za-z0-9._-]{0,64}$`)

// Validate looks at everything in c that can be judged without building the
// guest, files' presence and rights included, and opens nothing. It returns
// nil or a *ConfigError with all the problems. What it cannot see is found by
// New: whether a kernel is one, ports that are taken, rights to /dev/kvm or taps.
func (c *Config) Validate() error {
	v := validator{}
	if !nameForm.MatchString(c.Name) {
		v.add("name %q: use at most 64 letters, digits, '.', '_' and '-'", c.Name)
	}
	v.kernel(c)
	if strings.ContainsAny(c.Cmdline, "\n\x00") {
		v.add("kernel command line: it must be one line, without NUL bytes")
	}
	switch {
	case c.CPUs < 1:
		v.add("cpus %d: a guest has at least 1", c.CPUs)
	case c.CPUs > MaxCPUs:
		v.add("cpus %d: a guest has at most %d", c.CPUs, MaxCPUs)
	}
	v.memory(c.Memory)
	v.share(c)
	v.disks(c.Disks)
	v.nets(c.Nets)
	v.folders(c)
	n := len(c.Disks) + len(c.Nets) + len(c.Folders)
	if c.CloudInit != "" {
		v.cloudInit(c.CloudInit)
		n++
	}
	if n > MaxDevices {
		v.add("%d disks, network devices and shared folders: a guest has at most %d together", n, MaxDevices)
	}
	if c.Console != ConsoleVirtio && c.Console != ConsoleSerial {
		v.add("console %d: there is no such kind", int(c.Console))
	}
	v.vsock(c.Vsock)
	if c.Timeout < 0 {
		v.add("timeout %v: it must not be negative; 0 is none", c.Timeout)
	}
	if c.Grace < 0 {
		v.add("grace %v: it must not be negative", c.Grace)
	}
	if v.problems != nil {
		return &ConfigError{v.problems}
	}
	return nil
}

// validator collects problems.
type validator struct{ problems []error }

func (v *validator) add(format string, args ...any) {
	v.problems = append(v.problems, fmt.Errorf(format, args...))
}

func (v *validator) share(c *Config) {
	if c.Tickets != 0 {
		if err := scheduler.CheckTickets(c.Tickets); err != nil {
			v.problems = append(v.problems, err)
		}
	}
	if !nameForm.MatchString(c.Group) {
		v.add("group %q: use at most 64 letters, digits, '.', '_' and '-'", c.Group)
	}
	if c.CPULimit < 0 {
		v.add("CPU limit %d: it must not be negative", c.CPULimit)
	}
}

func (v *validator) kernel(c *Config) {
	if c.FromDisk {
		if c.Kernel != "" || c.Initrd != "" {
			v.add("a kernel or an initrd is named, and the image of the first disk is to be booted; give one or the other")
		}
		if len(c.Disks) == 0 {
			v.add("the image of the first disk is to be booted, but there is no disk")
		}
		return
	}
	if c.Kernel == "" {
		v.problems = append(v.problems, ErrNoKernel)
	} else if st := v.file("kernel", c.Kernel); st != nil && st.Size() == 0 {
		v.add("kernel %s: the file is empty", c.Kernel)
	}
	if c.Initrd == "" {
		return
	}
	if st := v.file("initrd", c.Initrd); st != nil && c.Memory >= MinMemory && uint64(st.Size()) >= c.Memory {
		v.add("initrd %s: its %s do not fit in a memory of %s; give the guest more",
			c.Initrd, FormatSize(uint64(st.Size())), FormatSize(c.Memory))
	}
}

// file checks that a regular file can be read; nil if not.
func (v *validator) file(noun, path string) os.FileInfo {
	st := v.stat(noun, path)
	if st == nil {
		return nil
	}
	if !st.Mode().IsRegular() {
		v.add("%s %s: it is not a regular file", noun, path)
		return nil
	}
	return v.access(noun, path, st, unix.R_OK, "read")
}

func (v *validator) stat(noun, path string) os.FileInfo {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		v.add("%s %s: there is no such file", noun, path)
	case err != nil:
		v.add("%s %s: %w", noun, path, reason(err))
	case st.IsDir():
		v.add("%s %s: it is a directory; name a file", noun, path)
	default:
		return st
	}
	return nil
}

func (v *validator) access(noun, path string, st os.FileInfo, mode uint32, verb string) os.FileInfo {
	if err := unix.Access(path, mode); err != nil {
		mend := ""
		if mode&unix.W_OK != 0 {
			mend = "; change its rights or give it read-only"
		}
		v.add("%s %s: this user cannot %s it (%w)%s", noun, path, verb, err, mend)
		return nil
	}
	return st
}

// reason is the bare cause of a file operation that failed: the path and the
// operation are already in our message.
func reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

func (v *validator) memory(size uint64) {
	switch {
	case size < MinMemory:
		v.add("memory %s: a guest has at least %s; write a size like 512M or 2G", FormatSize(size), FormatSize(MinMemory))
		return
	case size%4096 != 0:
		v.add("memory %s: it must be whole pages of 4 KiB; write a size like 512M or 2G", FormatSize(size))
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		v.problems = append(v.problems, &HostError{fmt.Errorf("memory: cannot ask how much this host has: %w", err)})
		return
	}
	total := uint64(si.Totalram) * uint64(si.Unit) &^ (1<<20 - 1)
	if size > total {
		v.problems = append(v.problems, &HostError{fmt.Errorf(
			"memory %s: this host has %s; give the guest less", FormatSize(size), FormatSize(total))})
	}
}

func (v *validator) cloudInit(path string) {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		v.add("cloud-init %s: %w", path, reason(err))
	case !st.IsDir() && !st.Mode().IsRegular():
		v.add("cloud-init %s: it is neither a folder nor a file", path)
	}
}

func (v *validator) nets(nets []Net) {
	taps := map[string]bool{}
	var forwards []Forward
	for i, n := range nets {
		switch n.Kind {
		case NetUser:
			if n.Tap != "" || n.Bridge != "" {
				v.add("net: a user-mode network has no tap and no bridge")
			}
			for _, f := range n.Forwards {
				v.forward(f, forwards)
				forwards = append(forwards, f)
			}
		case NetTap:
			v.ifname("tap", n.Tap)
			if n.Bridge != "" {
				v.ifname("bridge", n.Bridge)
			}
			if len(n.Forwards) > 0 {
				v.add("net tap %s: only a user-mode network forwards ports", n.Tap)
			}
			if taps[n.Tap] {
				v.add("net tap %s: it is given twice", n.Tap)
			}
			taps[n.Tap] = true
		case NetSegment:
			v.netSegment(&n, nets[:i])
		default:
			v.add("net %d: there is no such kind", int(n.Kind))
		}
	}
}

// ifname holds an interface's name to what the kernel takes (dev_valid_name),
// and refuses '%', which it would replace by a number.
func (v *validator) ifname(noun, name string) {
	switch {
	case name == "":
		v.add("net %s: it has no name", noun)
	case len(name) > unix.IFNAMSIZ-1:
		v.add("net %s %s: the name has more than %d bytes", noun, name, unix.IFNAMSIZ-1)
	case name == "." || name == ".." || strings.ContainsAny(name, "/:%\x00 \t\n\v\f\r"):
		v.add("net %s %q: no interface can have this name", noun, name)
	}
}

func (v *validator) forward(f Forward, others []Forward) {
	if f.Proto != "tcp" && f.Proto != "udp" {
		v.add("net forward %s: %q is neither tcp nor udp", f, f.Proto)
	}
	if f.HostPort == 0 || f.GuestPort == 0 {
		v.add("net forward %s: ports are 1 to 65535", f)
	}
	if f.HostAddr != "" {
		if _, err := netip.ParseAddr(f.HostAddr); err != nil {
			v.add("net forward %s: %q is not an IP address", f, f.HostAddr)
		}
	}
	for _, o := range others {
		if o.Proto == f.Proto && o.HostPort == f.HostPort && o.listen() == f.listen() {
			v.add("net forward %s: host port %d is given twice", f, f.HostPort)
			return
		}
	}
}

func (f Forward) listen() string {
	if f.HostAddr == "" {
		return "127.0.0.1"
	}
	return f.HostAddr
}

// String is the form of the command line: proto:[address:]port:port.
func (f Forward) String() string {
	addr := f.HostAddr
	if strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
	}
	if addr != "" {
		addr += ":"
	}
	return fmt.Sprintf("%s:%s%d:%d", f.Proto, addr, f.HostPort, f.GuestPort)
}

func (v *validator) vsock(path string) {
	if path == "" {
		return
	}
	if len(path) > maxSocketPath {
		v.add("vsock %s: its path can have at most %d bytes, and this has %d", path, maxSocketPath, len(path))
		return
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
		v.add("vsock %s: its folder does not exist", path)
	}
}

// FormatSize writes bytes as the command line takes them, in the largest unit
// that says them exactly: 512M, 1536M, 2G.
func FormatSize(n uint64) string {
	for i, unit := range []string{"T", "G", "M", "K"} {
		if size := uint64(1) << (40 - 10*i); n >= size && n%size == 0 {
			return fmt.Sprintf("%d%s", n/size, unit)
		}
	}
	if n == 1 {
		return "1 byte"
	}
	return fmt.Sprintf("%d bytes", n)
}
