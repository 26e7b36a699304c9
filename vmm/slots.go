package vmm

import "sync"

// firstDeviceSlot is the first KVM memory slot of devices' memory, behind those of
// RAM and of relays.
const firstDeviceSlot = 64

// slots gives out KVM memory slots to devices' memory, the same in all VMs.
type slots struct {
	mu sync.Mutex
	at []uint64 // the address in each; 0 is free
}

// take gives the slot for the memory at addr, which is not 0.
func (s *slots) take(addr uint64) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, a := range s.at {
		if a == 0 {
			s.at[i] = addr
			return firstDeviceSlot + uint32(i)
		}
	}
	s.at = append(s.at, addr)
	return firstDeviceSlot + uint32(len(s.at)-1)
}

// put takes it back, and says which it was.
func (s *slots) put(addr uint64) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, a := range s.at {
		if a == addr {
			s.at[i] = 0
			return firstDeviceSlot + uint32(i)
		}
	}
	panic("vmm: no memory of a device is there")
}
