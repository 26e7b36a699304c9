package kvm

import (
	"fmt"
	"unsafe"
)

type irqfd struct {
	fd, gsi, flags, resamplefd uint32
	_                          [16]uint8
}

const irqfdDeassign = 1

// BindIRQFD makes a write to the eventfd fd raise the interrupt that gsi is
// routed to (KVM api §4.75).
func (m *VM) BindIRQFD(fd int, gsi uint32) error { return m.irqfd(fd, gsi, 0) }

// UnbindIRQFD ends what BindIRQFD with the same arguments began.
func (m *VM) UnbindIRQFD(fd int, gsi uint32) error { return m.irqfd(fd, gsi, irqfdDeassign) }

func (m *VM) irqfd(fd int, gsi, flags uint32) error {
	a := &irqfd{fd: uint32(fd), gsi: gsi, flags: flags}
	if _, err := callPtr(m.fd, reqIRQFD, unsafe.Pointer(a)); err != nil {
		return fmt.Errorf("KVM_IRQFD gsi %d: %w", gsi, err)
	}
	return nil
}

type ioeventfd struct {
	datamatch uint64
	addr      uint64
	len       uint32
	fd        int32
	flags     uint32
	_         [36]uint8
}

const ioeventfdDeassign = 1 << 2

// BindIOEventFD makes guest writes at the guest-physical address addr signal the
// eventfd fd without leaving the kernel (KVM api §4.59). Writes of any length
// count where the kernel has KVM_CAP_IOEVENTFD_ANY_LENGTH (which is also the
// faster path), else those of two bytes, a virtio notification's.
func (m *VM) BindIOEventFD(fd int, addr uint64) error { return m.ioeventfd(fd, addr, 0) }

// UnbindIOEventFD ends what BindIOEventFD with the same arguments began.
func (m *VM) UnbindIOEventFD(fd int, addr uint64) error {
	return m.ioeventfd(fd, addr, ioeventfdDeassign)
}

func (m *VM) ioeventfd(fd int, addr uint64, flags uint32) error {
	a := &ioeventfd{addr: addr, fd: int32(fd), flags: flags}
	if !m.anyLen {
		a.len = 2
	}
	if _, err := callPtr(m.fd, reqIOEventFD, unsafe.Pointer(a)); err != nil {
		return fmt.Errorf("KVM_IOEVENTFD at %#x: %w", addr, err)
	}
	return nil
}

// MSIRoute says which message a GSI raises.
type MSIRoute struct {
	GSI     uint32
	Address uint64
	Data    uint32
}

const (
	routeMSI  = 2 // KVM_IRQ_ROUTING_MSI
	maxRoutes = 4096
)

// routeEntry is struct kvm_irq_routing_entry: 48 bytes in the kernel.
type routeEntry struct {
	gsi, kind, flags, _  uint32
	addressLo, addressHi uint32
	data, _              uint32
	_                    [16]uint8
}

// SetRoutes replaces the VM's whole GSI table (KVM api §4.52). It waits for
// interrupts under way in the kernel, so it can take milliseconds.
func (m *VM) SetRoutes(routes []MSIRoute) error {
	if len(routes) > maxRoutes {
		return fmt.Errorf("KVM_SET_GSI_ROUTING: %d routes, at most %d", len(routes), maxRoutes)
	}
	// The kernel's header is two words right before the first entry: they are
	// the end of a whole entry that is set aside, so that one slice holds all.
	buf := make([]routeEntry, 1+len(routes))
	head := (*[2]uint32)(unsafe.Add(unsafe.Pointer(&buf[0]), unsafe.Sizeof(buf[0])-8))
	head[0] = uint32(len(routes))
	for i, r := range routes {
		buf[1+i] = routeEntry{gsi: r.GSI, kind: routeMSI, addressLo: uint32(r.Address), addressHi: uint32(r.Address >> 32), data: r.Data}
	}
	if _, err := callPtr(m.fd, reqSetGSIRouting, unsafe.Pointer(head)); err != nil {
		return fmt.Errorf("KVM_SET_GSI_ROUTING, %d routes: %w", len(routes), err)
	}
	return nil
}

// Message is a message-signalled interrupt that is sent more than once. It must
// not be on a stack that moves: keep it in a larger structure.
type Message struct {
	addressLo, addressHi, data, flags, devid uint32
	_                                        [12]uint8
}

// Set makes the message address and data.
func (a *Message) Set(address uint64, data uint32) {
	a.addressLo, a.addressHi, a.data = uint32(address), uint32(address>>32), data
}

// SignalMSI raises an interrupt by its message (KVM api §4.70). delivered is
// false where the message names no vCPU that takes it.
func (m *VM) SignalMSI(address uint64, data uint32) (delivered bool, err error) {
	a := &Message{}
	a.Set(address, data)
	return m.Signal(a)
}

// Signal is SignalMSI of a message made before. It does not allocate.
func (m *VM) Signal(a *Message) (delivered bool, err error) {
	n, err := callPtr(m.fd, reqSignalMSI, unsafe.Pointer(a))
	if err != nil {
		return false, fmt.Errorf("KVM_SIGNAL_MSI %#x:%#x %#x: %w", a.addressHi, a.addressLo, a.data, err)
	}
	return n > 0, nil
}
