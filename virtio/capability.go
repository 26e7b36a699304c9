package virtio

import (
	"encoding/binary"
	"math/bits"

	"disco/devices/pci"
)

// Types of the structures that capabilities point to (virtio 1.2 §4.1.4).
const (
	capCommon = 1
	capNotify = 2
	capISR    = 3
	capDevice = 4
	capPCI    = 5
	capShared = 8
)

const (
	vendorID     = 0x1af4
	deviceIDBase = 0x1040
	idVendor     = 0x09 // of a capability
)

// Offsets in a virtio_pci_cap after its first two bytes.
const (
	capLen    = 0
	capType   = 1
	capBAR    = 2
	capID     = 3
	capOffset = 6
	capLength = 10
	capSize   = 14
)

// configure makes the function's config space. Drivers look for a structure
// from the head of the list, and pay an exit or two for each capability on the
// way, so they are in the order in which Linux looks.
func (t *Transport) configure() {
	pba := tableOffset + t.msix.TableSize()
	id := t.dev.ID()
	region, memory := t.sharedMemory()
	t.config = pci.NewConfig(pci.Header{
		Vendor: vendorID, Device: deviceIDBase + uint16(id), Revision: 1,
		SubVendor: vendorID, Subsystem: deviceIDBase + uint16(id),
		Class: id.class(),
		BAR:   1 << bits.Len64(pba+t.msix.PBASize()-1), Memory: uint64(len(memory)),
	})
	structure := func(kind byte, offset, length uint32, more ...byte) {
		body := make([]byte, capSize, capSize+len(more))
		body[capLen], body[capType] = byte(2+capSize+len(more)), kind
		binary.LittleEndian.PutUint32(body[capOffset:], offset)
		binary.LittleEndian.PutUint32(body[capLength:], length)
		t.config.Add(pci.Capability{ID: idVendor, Body: append(body, more...)})
	}
	structure(capCommon, commonOffset, commonSize)
	structure(capISR, isrOffset, isrSize)
	structure(capNotify, notifyOffset, notifyMultiplier*uint32(len(t.queues)), notifyMultiplier, 0, 0, 0)
	structure(capDevice, configOffset, configSize)
	t.config.Add(t.msix.Capability(tableOffset, uint32(pba)))
	t.config.Add(t.window())
	if memory != nil {
		t.config.Add(sharedMemory(region, uint64(len(memory))))
	}
}

// memoryBAR holds the shared memory region.
const memoryBAR = 2

// sharedMemory is the capability of a region that fills its BAR, a
// virtio_pci_cap64 (virtio 1.2 §4.1.4.7).
func sharedMemory(id uint8, length uint64) pci.Capability {
	const upperLength, size = capSize + 4, capSize + 8 // and the upper half of the offset before it
	body := make([]byte, size)
	body[capLen], body[capType], body[capBAR], body[capID] = 2+size, capShared, memoryBAR, id
	binary.LittleEndian.PutUint32(body[capLength:], uint32(length))
	binary.LittleEndian.PutUint32(body[upperLength:], uint32(length>>32))
	return pci.Capability{ID: idVendor, Body: body}
}

// window is the capability by which a guest that cannot map BARs yet reaches
// them through config space (virtio 1.2 §4.1.4.9).
func (t *Transport) window() pci.Capability {
	body, mask := make([]byte, capSize+4), make([]byte, capSize+4)
	body[capLen], body[capType] = 2+capSize+4, capPCI
	mask[capBAR] = 0xff
	for i := capOffset; i < len(mask); i++ {
		mask[i] = 0xff
	}
	through := func(access func(uint64, []byte)) func([]byte, int, int) {
		return func(body []byte, _, to int) {
			offset := binary.LittleEndian.Uint32(body[capOffset:])
			n := binary.LittleEndian.Uint32(body[capLength:])
			if to <= capSize || body[capBAR] != 0 || n != 1 && n != 2 && n != 4 || offset%n != 0 ||
				uint64(offset)+uint64(n) > tableOffset {
				return
			}
			access(uint64(offset), body[capSize:capSize+n])
		}
	}
	return pci.Capability{ID: idVendor, Body: body, Mask: mask, Load: through(t.Read), Store: through(t.Write)}
}
