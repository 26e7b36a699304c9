package vmm

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/devices/pci"
	"disco/vcpu/kvm"
)

// firstGSI is the first GSI that the I/O APIC does not own.
const firstGSI = kvm.IOAPICPins

// interrupts gives out GSIs as message-signalled interrupts: an eventfd, an irqfd
// and a route each, so that raising one costs a write and no ioctl. In a guest on
// several nodes a vector is bound in the KVM VM in which the vCPU that it names is
// live; any other would have to relay it. A GSI table is written whole, so one
// lock guards it all; Signal takes none.
type interrupts struct {
	vms []*kvm.VM
	// home is the index of the VM that a message should go to.
	home func(address uint64) int

	mu      sync.Mutex
	routes  [][]kvm.MSIRoute // of each VM, those in use, in no order
	vectors []*vector
	free    []uint32
	next    uint32
}

func newInterrupts(vms []*kvm.VM, home func(address uint64) int) *interrupts {
	return &interrupts{vms: vms, home: home, routes: make([][]kvm.MSIRoute, len(vms)), next: firstGSI}
}

// vector is a pci.Vector.
type vector struct {
	owner *interrupts
	gsi   uint32
	fd    int

	// Under owner.mu.
	route kvm.MSIRoute
	vm    int // where it is bound, or unbound
}

const unbound = -1

func (i *interrupts) newVector() (*vector, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("interrupt: eventfd: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	v := &vector{owner: i, fd: fd, vm: unbound}
	if n := len(i.free); n > 0 {
		v.gsi, i.free = i.free[n-1], i.free[:n-1]
	} else {
		v.gsi = i.next
		i.next++
	}
	i.vectors = append(i.vectors, v)
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
	return v.bind(kvm.MSIRoute{GSI: v.gsi, Address: m.Address, Data: m.Data})
}

// bind routes a vector in the VM where its message belongs. The lock is held.
func (v *vector) bind(r kvm.MSIRoute) error {
	i := v.owner
	home := i.home(r.Address)
	if v.vm == home && v.route == r {
		return nil
	}
	if v.vm != home {
		if err := v.unbind(); err != nil {
			return err
		}
	}
	v.route = r
	if at := i.find(home, v.gsi); at >= 0 {
		i.routes[home][at] = r
	} else {
		i.routes[home] = append(i.routes[home], r)
	}
	if err := i.vms[home].SetRoutes(i.routes[home]); err != nil {
		return err
	}
	if v.vm == home {
		return nil
	}
	if err := i.vms[home].BindIRQFD(v.fd, v.gsi); err != nil {
		return err
	}
	v.vm = home
	return nil
}

func (i *interrupts) find(vm int, gsi uint32) int {
	return slices.IndexFunc(i.routes[vm], func(r kvm.MSIRoute) bool { return r.GSI == gsi })
}

// unbind is called with the lock held.
func (v *vector) unbind() error {
	if v.vm == unbound {
		return nil
	}
	i, vm := v.owner, v.vm
	v.vm = unbound
	errs := []error{i.vms[vm].UnbindIRQFD(v.fd, v.gsi)}
	if at := i.find(vm, v.gsi); at >= 0 {
		i.routes[vm] = slices.Delete(i.routes[vm], at, at+1)
		errs = append(errs, i.vms[vm].SetRoutes(i.routes[vm]))
	}
	return errors.Join(errs...)
}

// moved binds anew the vectors of a vCPU that changed its VM, and raises each once:
// an interrupt that fell into the change may be lost, and one too many is harmless.
func (i *interrupts) moved() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	var errs []error
	for _, v := range i.vectors {
		if v.vm != unbound && i.home(v.route.Address) != v.vm {
			errs = append(errs, v.bind(v.route))
			v.Signal()
		}
	}
	return errors.Join(errs...)
}

var one = [8]byte{1}

// Signal raises the interrupt. A full eventfd already holds one. It never blocks, so
// Go's runtime is not told of it, as a doorbell's (package virtio) is not.
func (v *vector) Signal() {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(v.fd), uintptr(unsafe.Pointer(&one)), uintptr(len(one)))
}

// Close gives the GSI back.
func (v *vector) Close() error {
	i := v.owner
	i.mu.Lock()
	defer i.mu.Unlock()
	err := v.unbind()
	i.vectors = slices.DeleteFunc(i.vectors, func(x *vector) bool { return x == v })
	i.free = append(i.free, v.gsi)
	return errors.Join(err, unix.Close(v.fd))
}

// plug is the pci.Host of one machine.
type plug struct {
	vms    []*kvm.VM
	irq    *interrupts
	memory *slots
}

func (p plug) NewVector() (pci.Vector, error) { return p.irq.newVector() }

// BindDoorbell binds the doorbell in every VM: a vCPU rings it in the one it runs
// in.
func (p plug) BindDoorbell(addr uint64, fd int) error {
	for i, vm := range p.vms {
		if err := vm.BindIOEventFD(fd, addr); err != nil {
			for _, bound := range p.vms[:i] {
				err = errors.Join(err, bound.UnbindIOEventFD(fd, addr))
			}
			return err
		}
	}
	return nil
}

// MapMemory is done in every VM: the slots are of the devices' memory from here on.
func (p plug) MapMemory(addr uint64, memory []byte) error {
	slot := p.memory.take(addr)
	for i, vm := range p.vms {
		if err := vm.SetMemory(slot, addr, memory); err != nil {
			for _, done := range p.vms[:i] {
				err = errors.Join(err, done.SetMemory(slot, addr, nil))
			}
			p.memory.put(addr)
			return err
		}
	}
	return nil
}

// UnmapMemory takes the slot away.
func (p plug) UnmapMemory(addr uint64, _ []byte) error {
	slot := p.memory.put(addr)
	var errs []error
	for _, vm := range p.vms {
		errs = append(errs, vm.SetMemory(slot, addr, nil))
	}
	return errors.Join(errs...)
}

func (p plug) UnbindDoorbell(addr uint64, fd int) error {
	var errs []error
	for _, vm := range p.vms {
		errs = append(errs, vm.UnbindIOEventFD(fd, addr))
	}
	return errors.Join(errs...)
}
