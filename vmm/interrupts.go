package vmm

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"disco/devices/pci"
	"disco/vcpu/kvm"
)

// firstGSI is the first GSI that the I/O APIC does not own.
const firstGSI = kvm.IOAPICPins

// interrupts gives out the GSIs of one KVM VM as message-signalled interrupts:
// an eventfd, an irqfd and a route each, so that raising one costs a write and
// no ioctl. The GSI table is written whole, so one lock guards it all; Signal
// takes none.
type interrupts struct {
	vm *kvm.VM

	mu     sync.Mutex
	routes []kvm.MSIRoute // in use, in no order
	free   []uint32
	next   uint32
}

func newInterrupts(vm *kvm.VM) *interrupts { return &interrupts{vm: vm, next: firstGSI} }

// vector is a pci.Vector.
type vector struct {
	owner *interrupts
	gsi   uint32
	fd    int
	bound bool // under owner.mu
}

func (i *interrupts) newVector() (*vector, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("interrupt: eventfd: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	v := &vector{owner: i, fd: fd}
	if n := len(i.free); n > 0 {
		v.gsi, i.free = i.free[n-1], i.free[:n-1]
	} else {
		v.gsi = i.next
		i.next++
	}
	return v, nil
}

// Bounds of an x86 interrupt message (Intel SDM vol. 3A §10.11.1). With x2APIC
// ids KVM takes bits 63:40 as the high destination bits and refuses others.
const (
	messageBase = 0xfee00000
	messageMask = 0xfff00000
	messageHigh = 0xff << 32
)

// Route says which message Signal sends. A message that a guest pointed
// anywhere but at a local APIC is nobody's interrupt: the vector goes silent.
func (v *vector) Route(m pci.Message) error {
	i := v.owner
	i.mu.Lock()
	defer i.mu.Unlock()
	if m.Address&messageMask != messageBase || m.Address&messageHigh != 0 {
		return v.unbind()
	}
	r := kvm.MSIRoute{GSI: v.gsi, Address: m.Address, Data: m.Data}
	at := i.find(v.gsi)
	if at >= 0 && i.routes[at] == r {
		return nil
	}
	if at < 0 {
		i.routes = append(i.routes, r)
	} else {
		i.routes[at] = r
	}
	if err := i.vm.SetRoutes(i.routes); err != nil {
		return err
	}
	if v.bound {
		return nil
	}
	if err := i.vm.BindIRQFD(v.fd, v.gsi); err != nil {
		return err
	}
	v.bound = true
	return nil
}

func (i *interrupts) find(gsi uint32) int {
	for at := range i.routes {
		if i.routes[at].GSI == gsi {
			return at
		}
	}
	return -1
}

// unbind is called with the lock held.
func (v *vector) unbind() error {
	i := v.owner
	var errs []error
	if v.bound {
		errs = append(errs, i.vm.UnbindIRQFD(v.fd, v.gsi))
		v.bound = false
	}
	if at := i.find(v.gsi); at >= 0 {
		i.routes[at] = i.routes[len(i.routes)-1]
		i.routes = i.routes[:len(i.routes)-1]
		errs = append(errs, i.vm.SetRoutes(i.routes))
	}
	return errors.Join(errs...)
}

var one = [8]byte{1}

// Signal raises the interrupt. A full eventfd already holds one.
func (v *vector) Signal() { _, _ = unix.Write(v.fd, one[:]) }

// Close gives the GSI back.
func (v *vector) Close() error {
	v.owner.mu.Lock()
	defer v.owner.mu.Unlock()
	err := v.unbind()
	v.owner.free = append(v.owner.free, v.gsi)
	return errors.Join(err, unix.Close(v.fd))
}

// plug is the pci.Host of one machine.
type plug struct {
	vm  *kvm.VM
	irq *interrupts
}

func (p plug) NewVector() (pci.Vector, error) { return p.irq.newVector() }

func (p plug) BindDoorbell(addr uint64, fd int) error { return p.vm.BindIOEventFD(fd, addr) }

func (p plug) UnbindDoorbell(addr uint64, fd int) error { return p.vm.UnbindIOEventFD(fd, addr) }
