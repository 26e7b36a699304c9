package vmm

import (
	"io"
	"log/slog"
	"time"

	"disco/memory"
	"disco/net/segment"
	"disco/numa"
	"disco/numa/balance"
)

// Config says what guest to build. The zero value of a field means its default
// only where the field says so. [Config.Validate] finds what is wrong with one.
type Config struct {
	Name        string // shown in messages, and as the name of the guest's memory; letters, digits and ".-_", at most 64, or empty
	Kernel      string // path of a bzImage or an ELF vmlinux
	Initrd      string // path, or empty for none
	Cmdline     string // added to the monitor's own kernel command line; one line
	CmdlineOnly bool   // Cmdline replaces the monitor's own
	KASLR       bool   // run the kernel's decompressor, so that it can randomize
	CPUs        int    // 1 to MaxCPUs; more than the host has is allowed, and slow
	Memory      uint64 // bytes, a multiple of the page size, from MinMemory to what the host has
	Disks       []Disk // vda, vdb, … in order
	FromDisk    bool   // kernel, initrd and the words for the root are those in the image of Disks[0], at every restart; then Kernel and Initrd are empty
	CloudInit   string // path of user-data for cloud-init, or of a folder with user-data and what else it takes; they are on a last disk; or empty for none
	Nets        []Net  // eth0, eth1, … in order
	Folders     []Folder
	NUMA        NUMA // on which nodes it runs, and what becomes of its pages
	Console     Console
	Vsock       string        // path of the UNIX socket that reaches the guest's vsock, made by New; or empty for none
	Tickets     int64         // its part of the host's CPUs, of those that want to run; 1 to scheduler.MaxTickets, 0 for DefaultTickets
	Group       string        // the group of guests in which its tickets count, named like a guest; empty for none
	CPULimit    int           // thousandths of a CPU that its vCPUs may use together, whatever is free; 0 for no limit
	Gang        bool          // its vCPUs run at the same time or not at all
	Timeout     time.Duration // from starting the guest to killing it; 0 for none
	Grace       time.Duration // from pressing the power button to killing the guest; 0 for DefaultGrace

	Stdin  io.Reader    // the guest's console input; nil for none
	Stdout io.Writer    // the guest's console output, as the guest wrote it; nil to drop it
	Log    *slog.Logger // what the monitor has to say; nil to drop it
}

const (
	// MaxCPUs is the largest number of vCPUs of one guest.
	MaxCPUs = 254
	// MinMemory is the least memory of a guest, in bytes.
	MinMemory = 16 << 20
	// MaxDevices is the largest number of disks, network devices and folders together:
	// the slots of one PCI bus less the bridge, console, entropy and vsock.
	MaxDevices = 28
	// DefaultGrace is the time from the power button to the kill.
	DefaultGrace = 10 * time.Second
)

// NetKind says what is at the other end of a network device.
type NetKind int

const (
	// NetUser is the monitor's own user-mode TCP/IP, which needs no rights.
	NetUser NetKind = iota
	// NetTap is a tap interface of the host.
	NetTap
	// NetSegment is a network of guests of the same Monitor.
	NetSegment
)

// Net is one virtio network device.
type Net struct {
	Kind     NetKind
	Tap      string    // NetTap: the interface, made if it does not exist
	Bridge   string    // NetTap: the bridge to put it on, or empty
	Forwards []Forward // NetUser only

	Segment   string       // NetSegment: its name, as in Segment.Name; it is made if it does not exist
	MAC       [6]byte      // NetSegment: zero for one by the guest's name, the same at every start
	MTU       int          // NetSegment: of the segment, for all on it the same; 0 for what it has
	Map       segment.Mode // NetSegment: whether pages of frames are mapped into the guest
	Rate      uint64       // NetSegment: bytes a second that the guest may send; 0 for no limit
	Unguarded bool         // NetSegment: the guest may send from any address, as one with guests or a bridge of its own must
}

// Forward carries connections to a host port into the guest (NetUser).
type Forward struct {
	Proto     string // "tcp" or "udp"
	HostAddr  string // IP address to listen on; empty for 127.0.0.1
	HostPort  uint16 // 1 to 65535
	GuestPort uint16 // 1 to 65535
}

// Console says which device is the guest's /dev/console.
type Console int

const (
	// ConsoleVirtio is hvc0, after the 8250 has carried the first lines.
	ConsoleVirtio Console = iota
	// ConsoleSerial is ttyS0, the 8250 alone.
	ConsoleSerial
)

// PlacementKind is a way to choose a guest's nodes.
type PlacementKind int

const (
	// PlaceAuto puts a guest on the one node that it fits on, the one with the
	// most free memory if there are several, and spreads one that fits on none.
	PlaceAuto PlacementKind = iota
	// PlaceNodes uses the nodes of Placement.Nodes.
	PlaceNodes
	// PlaceInterleave spreads vCPUs over all nodes, and memory page by page.
	PlaceInterleave
)

// Placement says on which nodes a guest runs and where its memory begins.
type Placement struct {
	Kind  PlacementKind
	Nodes []numa.Node // PlaceNodes: one or more
}

// NUMA says where a guest runs and what becomes of its pages. The zero value is a
// guest that is placed by itself and whose pages stay where they are.
type NUMA struct {
	Topology  *numa.Topology // the host's nodes; nil to read this host's
	FakeNodes int            // split one node of it into so many; 0 for none
	Placement Placement
	Balance   balance.Config // what moves the pages of a guest on several nodes
	Late      bool           // it does so from Guest.StartBalance on, and not from the start
	Huge      memory.Huge

	// Lenient has a guest on several nodes do with what the host can, with a
	// warning, where it cannot have a KVM VM on each or its pages cannot move.
	// Otherwise such a host is an error.
	Lenient bool

	// Plain makes one KVM VM for all nodes, as other monitors do, and
	// HostBalancing leaves its pages to the kernel's numa_balancing. Both are
	// there to be measured against.
	Plain         bool
	HostBalancing bool
}
