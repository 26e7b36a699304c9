package pci

import (
	"encoding/binary"
	"fmt"
)

// ConfigSize is the size in bytes of a function's config space. Functions here
// are conventional ones without extended space, which guests then leave alone.
const ConfigSize = 256

// Registers of the header (PCI 3.0 §6.1).
const (
	regVendor       = 0x00
	regDevice       = 0x02
	regCommand      = 0x04
	regStatus       = 0x06
	regRevision     = 0x08
	regClass        = 0x09
	regCacheLine    = 0x0c
	regBAR0         = 0x10
	regBAR2         = 0x18 // and its upper half
	regSubVendor    = 0x2c
	regSubsystem    = 0x2e
	regCapabilities = 0x34
	regLine         = 0x3c
	headerSize      = 0x40
)

const (
	commandMemory = 1 << 1
	commandMaster = 1 << 2
	commandNoINTx = 1 << 10

	statusCapabilities = 1 << 4

	// Of a memory BAR: it is of 64 bits, and reads have no effect.
	bar64           = 2 << 1
	barPrefetchable = 1 << 3
)

// Header identifies a function.
type Header struct {
	Vendor, Device       uint16
	SubVendor, Subsystem uint16
	Revision             uint8
	Class                uint32 // class, subclass and interface: 24 bits
	BAR                  uint32 // bytes of BAR 0, a 32-bit memory BAR: a power of two from 16, or 0 for none
	Memory               uint64 // bytes of BAR 2, a 64-bit prefetchable memory BAR: a power of two from 4096, or 0 for none
}

// Capability is an entry of a function's capability list.
type Capability struct {
	ID byte
	// Body is what follows the ID and the link; it becomes the Config's.
	Body []byte
	// Mask has the bits of Body that a guest may write; nil for none.
	Mask []byte
	// Load, if not nil, may refresh body before a guest reads bytes of
	// body[from:to]; Store hears that a guest wrote them. Both are called under
	// the Root's lock.
	Load, Store func(body []byte, from, to int)
}

type capability struct {
	Capability
	at int // of Body
}

// Config is the config space of one function: bytes, of which a guest may write
// the bits that a mask allows. It has no lock; the Root's guards it.
type Config struct {
	data, mask [ConfigSize]byte
	bar        uint32
	memory     uint64 // size of BAR 2
	top        int    // first byte free for capabilities
	link       int    // where the next capability's address goes
	caps       []capability
}

// NewConfig makes the config space of a function with memory decoding off.
func NewConfig(h Header) *Config {
	if h.BAR != 0 && (h.BAR < 16 || h.BAR&(h.BAR-1) != 0) {
		panic(fmt.Sprintf("pci: a BAR of %d bytes", h.BAR))
	}
	if h.Memory != 0 && (h.Memory < 4096 || h.Memory&(h.Memory-1) != 0) {
		panic(fmt.Sprintf("pci: memory of %d bytes", h.Memory))
	}
	c := &Config{bar: h.BAR, memory: h.Memory, top: headerSize, link: regCapabilities}
	le := binary.LittleEndian
	le.PutUint16(c.data[regVendor:], h.Vendor)
	le.PutUint16(c.data[regDevice:], h.Device)
	le.PutUint32(c.data[regRevision:], h.Class<<8|uint32(h.Revision))
	le.PutUint16(c.data[regSubVendor:], h.SubVendor)
	le.PutUint16(c.data[regSubsystem:], h.Subsystem)
	command := uint16(commandMaster | commandNoINTx)
	if h.BAR != 0 {
		command |= commandMemory
		le.PutUint32(c.mask[regBAR0:], -h.BAR)
	}
	if h.Memory != 0 {
		command |= commandMemory
		le.PutUint64(c.mask[regBAR2:], -h.Memory)
		c.data[regBAR2] = bar64 | barPrefetchable
	}
	le.PutUint16(c.mask[regCommand:], command)
	c.mask[regCacheLine] = 0xff
	c.mask[regLine] = 0xff
	return c
}

// Add appends a capability to the list. It panics when config space is full.
func (c *Config) Add(k Capability) {
	at := c.top + 2
	c.top = (at + len(k.Body) + 3) &^ 3
	if c.top > ConfigSize {
		panic("pci: config space is full")
	}
	c.data[c.link] = byte(at - 2)
	c.link = at - 1
	c.data[at-2] = k.ID
	copy(c.data[at:], k.Body)
	copy(c.mask[at:at+len(k.Body)], k.Mask)
	k.Body = c.data[at : at+len(k.Body) : at+len(k.Body)]
	c.data[regStatus] |= statusCapabilities
	c.caps = append(c.caps, capability{k, at})
}

// Read fills p; bytes beyond config space read as ones.
func (c *Config) Read(offset uint64, p []byte) {
	for _, k := range c.caps {
		if from, to := overlap(k, offset, len(p)); from < to && k.Load != nil {
			k.Load(k.Body, from, to)
		}
	}
	for i := range p {
		p[i] = 0xff
		if at := offset + uint64(i); at < ConfigSize {
			p[i] = c.data[at]
		}
	}
}

// Write changes the bits that may be written.
func (c *Config) Write(offset uint64, p []byte) {
	for i, v := range p {
		if at := offset + uint64(i); at < ConfigSize {
			c.data[at] = c.data[at]&^c.mask[at] | v&c.mask[at]
		}
	}
	for _, k := range c.caps {
		if from, to := overlap(k, offset, len(p)); from < to && k.Store != nil {
			k.Store(k.Body, from, to)
		}
	}
}

// overlap is the part of k.Body that an access of n bytes at offset touches.
func overlap(k capability, offset uint64, n int) (from, to int) {
	if offset >= ConfigSize {
		return 0, 0
	}
	at := int(offset) - k.at
	return max(at, 0), min(at+n, len(k.Body))
}

// decodes says where a guest wants BAR 0, and whether it wants it at all.
func (c *Config) decodes() (base uint64, on bool) {
	command := binary.LittleEndian.Uint16(c.data[regCommand:])
	return uint64(binary.LittleEndian.Uint32(c.data[regBAR0:])), c.bar != 0 && command&commandMemory != 0
}

// decodesMemory says so of BAR 2.
func (c *Config) decodesMemory() (base uint64, on bool) {
	command := binary.LittleEndian.Uint16(c.data[regCommand:])
	return binary.LittleEndian.Uint64(c.data[regBAR2:]) &^ 0xf, c.memory != 0 && command&commandMemory != 0
}
