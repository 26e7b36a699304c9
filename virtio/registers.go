package virtio

import (
	"encoding/binary"

	"disco/memory"
)

// Where the transport's structures lie in BAR 0. The MSI-X table comes after
// the doorbells, and its pending bits after the table.
const (
	commonOffset = 0x000
	isrOffset    = 0x100
	configOffset = 0x200
	notifyOffset = 0x1000
	tableOffset  = 0x2000

	commonSize = 60
	isrSize    = 1
	configSize = notifyOffset - configOffset
	// A doorbell has an address of its own, so that it can be an ioeventfd.
	notifyMultiplier = 4
	maxQueues        = (tableOffset - notifyOffset) / notifyMultiplier
)

// Registers of the common configuration structure (virtio 1.2 §4.1.4.3).
const (
	regDeviceFeatureSelect = 0
	regDeviceFeature       = 4
	regDriverFeatureSelect = 8
	regDriverFeature       = 12
	regConfigVector        = 16
	regNumQueues           = 18
	regStatus              = 20
	regGeneration          = 21
	regQueueSelect         = 22
	regQueueSize           = 24
	regQueueVector         = 26
	regQueueEnable         = 28
	regQueueNotifyOff      = 30
	regQueueDesc           = 32
	regQueueDriver         = 40
	regQueueDevice         = 48
)

// width is the size of the common register at offset, or 0 if none begins
// there. A 64-bit one may be accessed by halves (virtio 1.2 §4.1.3.1).
func width(offset uint64, n int) int {
	switch {
	case offset < regConfigVector && offset%4 == 0:
		return 4
	case offset == regStatus || offset == regGeneration:
		return 1
	case offset >= regConfigVector && offset < regQueueDesc && offset%2 == 0:
		return 2
	case offset >= regQueueDesc && offset < regQueueDevice+8 && offset%8 == 0 && n == 8:
		return 8
	case offset >= regQueueDesc && offset < regQueueDevice+8 && offset%4 == 0:
		return 4
	}
	return 0
}

// readCommon reads a register; an access of any other size reads zero.
func (t *Transport) readCommon(offset uint64, p []byte) {
	clear(p)
	if width(offset, len(p)) != len(p) {
		return
	}
	var v uint64
	q := t.selected()
	switch offset {
	case regDeviceFeatureSelect:
		v = uint64(t.deviceSelect)
	case regDeviceFeature:
		v = half(t.offered, t.deviceSelect)
	case regDriverFeatureSelect:
		v = uint64(t.driverSelect)
	case regDriverFeature:
		v = half(t.accepted, t.driverSelect)
	case regConfigVector:
		v = uint64(t.vector.Load())
	case regNumQueues:
		v = uint64(len(t.queues))
	case regStatus:
		v = uint64(t.status.Load())
	case regGeneration:
		v = uint64(uint8(t.generation.Load()))
	case regQueueSelect:
		v = uint64(t.queueSelect)
	default:
		// A queue that is not there has size 0 (virtio 1.2 §4.1.4.3.1).
		if q != nil {
			v = q.read(offset)
		}
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(p, b[:])
}

func (q *queueState) read(offset uint64) uint64 {
	switch offset {
	case regQueueSize:
		return uint64(q.size)
	case regQueueVector:
		return uint64(q.vector.Load())
	case regQueueEnable:
		if q.enabled {
			return 1
		}
	case regQueueNotifyOff:
		return uint64(q.index)
	}
	if offset >= regQueueDesc {
		addr := q.address(offset)
		return uint64(*addr) >> (8 * (offset % 8))
	}
	return 0
}

// address is the ring address that a register, or half of one, belongs to.
func (q *queueState) address(offset uint64) *memory.GPA {
	return &q.rings[(offset-regQueueDesc)/8]
}

// writeCommon takes a write to a register; one of any other size is ignored.
func (t *Transport) writeCommon(offset uint64, p []byte) {
	if width(offset, len(p)) != len(p) {
		return
	}
	var b [8]byte
	copy(b[:], p)
	v := binary.LittleEndian.Uint64(b[:])
	q := t.selected()
	switch offset {
	case regDeviceFeatureSelect:
		t.deviceSelect = uint32(v)
	case regDriverFeatureSelect:
		t.driverSelect = uint32(v)
	case regDriverFeature:
		t.accept(uint32(v))
	case regConfigVector:
		t.vector.Store(t.checkVector(v))
	case regStatus:
		t.setStatus(uint32(v))
	case regQueueSelect:
		t.queueSelect = uint16(v)
	case regQueueVector:
		if q != nil {
			q.vector.Store(t.checkVector(v))
		}
	case regQueueSize:
		if q != nil && !q.enabled {
			q.size = uint16(v)
		}
	case regQueueEnable:
		if q != nil && v == 1 {
			t.enable(q)
		}
	}
	if offset < regQueueDesc || q == nil || q.enabled {
		return
	}
	addr := q.address(offset)
	switch {
	case len(p) == 8:
		*addr = memory.GPA(v)
	case offset%8 == 0:
		*addr = *addr&^0xffffffff | memory.GPA(v)
	default:
		*addr = *addr&0xffffffff | memory.GPA(v)<<32
	}
}

// checkVector gives noVector for one that the table does not have, which tells
// the driver so (virtio 1.2 §4.1.5.1.2.1).
func (t *Transport) checkVector(v uint64) uint32 {
	if v >= uint64(t.msix.Vectors()) {
		return noVector
	}
	return uint32(v)
}

func (t *Transport) selected() *queueState {
	if int(t.queueSelect) >= len(t.queues) {
		return nil
	}
	return &t.queues[t.queueSelect]
}

// half is one 32-bit half of feature bits.
func half(features uint64, selected uint32) uint64 {
	if selected > 1 {
		return 0
	}
	return uint64(uint32(features >> (32 * selected)))
}
