// Package virtio is the device's side of virtio 1.2: split queues in guest
// memory, and the PCI transport that negotiates with a driver and connects its
// kicks and interrupts. What the queues carry is the business of a [Device]:
// see the packages below this one.
//
// Drivers are not trusted. Every address, length, index and flag of theirs is
// checked, and copied before it is checked; one that breaks the rules finds its
// device stopped (NEEDS_RESET) until it resets it, and costs one log line.
//
// Not done here: packed queues, legacy and transitional devices, INTx, the MMIO
// and channel transports, resets of single queues, notification data, and more
// than one shared memory region of a device.
package virtio

import "strconv"

// DeviceID is a virtio device type (virtio 1.2 §5).
type DeviceID uint16

// The device types served here.
const (
	IDNet     DeviceID = 1
	IDBlock   DeviceID = 2
	IDConsole DeviceID = 3
	IDEntropy DeviceID = 4
	IDVsock   DeviceID = 19
	IDFS      DeviceID = 26
)

func (id DeviceID) String() string {
	switch id {
	case IDNet:
		return "net"
	case IDBlock:
		return "blk"
	case IDConsole:
		return "console"
	case IDEntropy:
		return "rng"
	case IDVsock:
		return "vsock"
	case IDFS:
		return "fs"
	}
	return strconv.Itoa(int(id))
}

// class is the PCI class code of a device type: class, subclass and interface.
func (id DeviceID) class() uint32 {
	switch id {
	case IDNet:
		return 0x020000 // Ethernet controller
	case IDBlock, IDFS:
		return 0x018000 // other mass storage
	case IDConsole, IDVsock:
		return 0x078000 // other communication
	}
	return 0x00ff00
}

// Device is one device type behind the PCI transport. The transport owns
// feature negotiation, queue set-up and interrupts; a Device owns its config
// space and what its queues carry.
type Device interface {
	// ID is the device type.
	ID() DeviceID
	// Features are the device's own feature bits (virtio 1.2 §6: 0 to 23 and
	// 50 and up); the transport adds those of rings and transport.
	Features() uint64
	// QueueSizes gives the largest size of each queue, powers of two. Its
	// length is the number of queues.
	QueueSizes() []uint16
	// ReadConfig fills p from the device's config space. Any offset and any
	// length up to 8 may come; bytes beyond the config space read as zero.
	ReadConfig(offset uint64, p []byte)
	// WriteConfig takes a guest's write to config space; what is not writable
	// is ignored.
	WriteConfig(offset uint64, p []byte)
	// Start begins service: the driver has set DRIVER_OK with these features.
	// queues has one entry for each of QueueSizes, nil where the driver has
	// not enabled it. Start must not block; workers run until Stop.
	Start(features uint64, queues []*Queue) error
	// Stop ends service and returns when no worker of the device will touch
	// a queue or guest memory again. It is called after every Start that
	// succeeded, once, on reset, on a broken queue, or when the guest ends;
	// Start may follow.
	Stop()
}

// SharedMemory is a Device with a shared memory region (virtio 1.2 §2.10): memory
// of the host that the guest's driver uses like RAM.
type SharedMemory interface {
	// SharedMemory is the region's id and its memory, of a power of two of bytes
	// from a page; none if it is nil. It is the same at every call, is mapped while
	// a Transport of the Device is open, and what it holds is between Device and
	// driver.
	SharedMemory() (id uint8, memory []byte)
}
