package vmm

import (
	"io"
	"time"
)

// Config says what guest to build. The zero value of a field means its default
// only where the field says so.
type Config struct {
	Name        string // shown in messages, and as the process's memory name
	Kernel      string // path of a bzImage or an ELF vmlinux
	Initrd      string // path, or empty for none
	Cmdline     string // added to the monitor's own kernel command line
	CmdlineOnly bool   // Cmdline replaces the monitor's own
	KASLR       bool   // run the kernel's decompressor, so that it can randomize
	CPUs        int    // 1 to MaxCPUs
	Memory      uint64 // bytes, a multiple of the page size
	Disks       []Disk
	Nets        []Net
	Console     Console
	Vsock       string        // path of the UNIX socket that reaches the guest's vsock, or empty for none
	Timeout     time.Duration // 0 for none
	Grace       time.Duration // from pressing the power button to killing the guest; 0 for the default of 10 s

	Stdin  io.Reader // the guest's console input; nil for none
	Stdout io.Writer // the guest's console output; nil to drop it
}

// MaxCPUs is the largest number of vCPUs of one guest.
const MaxCPUs = 254

// Disk is one virtio block device.
type Disk struct {
	Path     string
	ReadOnly bool
}

// NetKind says what is at the other end of a network device.
type NetKind int

const (
	// NetUser is the monitor's own user-mode TCP/IP, which needs no rights.
	NetUser NetKind = iota
	// NetTap is a tap interface of the host.
	NetTap
)

// Net is one virtio network device.
type Net struct {
	Kind     NetKind
	Tap      string // NetTap: the interface, made if it does not exist
	Bridge   string // NetTap: the bridge to put it on, or empty
	Forwards []Forward
}

// Forward carries connections to a host port into the guest (NetUser).
type Forward struct {
	Proto     string // "tcp" or "udp"
	HostAddr  string // address to listen on; empty for 127.0.0.1
	HostPort  uint16
	GuestPort uint16
}

// Console says which device is the guest's /dev/console.
type Console int

const (
	// ConsoleVirtio is hvc0, after the 8250 has carried the first lines.
	ConsoleVirtio Console = iota
	// ConsoleSerial is ttyS0, the 8250 alone.
	ConsoleSerial
)
