package pci

// Message is what an MSI-X vector writes to raise its interrupt (PCI 3.0 §6.8.2).
type Message struct {
	Address uint64
	Data    uint32
}

// Vector is one interrupt's way into the guest: on KVM an eventfd, an irqfd and
// an MSI route.
type Vector interface {
	// Route says which message Signal sends from now on. A guest may point it
	// anywhere: a message that names no interrupt is dropped.
	Route(m Message) error
	// Signal raises the interrupt. It never blocks and does not allocate.
	Signal()
	// Close ends the vector; Signal must not be called afterwards.
	Close() error
}

// Host is what PCI functions need from the machine they are plugged into.
type Host interface {
	// NewVector makes a vector that is not yet routed.
	NewVector() (Vector, error)
	// BindDoorbell makes guest writes of any size at the guest-physical
	// address addr signal the eventfd fd without an exit to the monitor.
	BindDoorbell(addr uint64, fd int) error
	// UnbindDoorbell ends what BindDoorbell with the same arguments began.
	UnbindDoorbell(addr uint64, fd int) error
	// MapMemory shows the guest memory at the guest-physical address addr, as if
	// it were RAM. memory must stay mapped, though what is mapped there may change.
	MapMemory(addr uint64, memory []byte) error
	// UnmapMemory ends what MapMemory with the same arguments began.
	UnmapMemory(addr uint64, memory []byte) error
}
