package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
)

// MaxVectors is the largest number of entries of an MSI-X table.
const MaxVectors = 2048

const (
	entrySize = 16

	idMSIX           = 0x11
	controlEnable    = 1 << 15
	controlMask      = 1 << 14
	entryControl     = 12 // offset of the vector control
	entryControlMask = 1
)

// MSIX is a function's MSI-X table and pending bits (PCI 3.0 §6.8.2). A vector
// is asked of the Host when a guest first unmasks its entry.
//
// Signal may be called from any goroutine and waits for nobody: register
// accesses, which may take as long as an ioctl, hold another lock.
type MSIX struct {
	host Host
	log  *slog.Logger
	on   atomic.Bool // enabled

	mu      sync.Mutex // of what follows, but not of Signal
	masked  bool       // all of them
	closed  bool
	entries []entry
}

type entry struct {
	raw     [entrySize]byte
	vector  Vector
	routed  bool // vector sends message
	message Message
	failed  bool // the host would not, and said so once

	// live says that vector is there, routed and unmasked. Signal's check of it
	// and its use of vector are inside gate, for Close to wait for.
	gate    sync.RWMutex
	live    atomic.Bool
	pending atomic.Bool
}

// NewMSIX makes a table of n entries, 1 to MaxVectors, all masked. What the
// host refuses is logged once per entry, which is silent until the host agrees.
func NewMSIX(host Host, n int, log *slog.Logger) *MSIX {
	if n < 1 || n > MaxVectors {
		panic(fmt.Sprintf("pci: an MSI-X table of %d entries", n))
	}
	m := &MSIX{host: host, log: log, entries: make([]entry, n)}
	for i := range m.entries {
		m.entries[i].raw[entryControl] = entryControlMask
	}
	return m
}

// Capability is the table's entry in config space, for a table at the offset
// table and pending bits at the offset pba of BAR 0, both multiples of 8.
func (m *MSIX) Capability(table, pba uint32) Capability {
	body, mask := make([]byte, 10), make([]byte, 10)
	binary.LittleEndian.PutUint16(body, uint16(len(m.entries)-1))
	binary.LittleEndian.PutUint32(body[2:], table)
	binary.LittleEndian.PutUint32(body[6:], pba)
	binary.LittleEndian.PutUint16(mask, controlEnable|controlMask)
	return Capability{ID: idMSIX, Body: body, Mask: mask, Store: func(body []byte, from, _ int) {
		if from < 2 {
			m.setControl(binary.LittleEndian.Uint16(body))
		}
	}}
}

// TableSize is the size of the table in bytes.
func (m *MSIX) TableSize() uint64 { return entrySize * uint64(len(m.entries)) }

// PBASize is the size of the pending bits in bytes.
func (m *MSIX) PBASize() uint64 { return uint64(len(m.entries)+63) / 64 * 8 }

// Vectors is the number of entries.
func (m *MSIX) Vectors() int { return len(m.entries) }

// Enabled says whether the guest uses MSI-X.
func (m *MSIX) Enabled() bool { return m.on.Load() }

// Signal raises interrupt i, or keeps it pending while it is masked. While
// MSI-X is off, and for an i that is none, it does nothing. It does not
// allocate.
func (m *MSIX) Signal(i int) {
	if i < 0 || i >= len(m.entries) || !m.on.Load() {
		return
	}
	e := &m.entries[i]
	e.gate.RLock()
	defer e.gate.RUnlock()
	if e.live.Load() {
		e.vector.Signal()
		return
	}
	e.pending.Store(true)
	// It may have been unmasked, and found nothing pending, just before.
	e.deliver()
}

// deliver signals what is pending if it may be. The caller holds gate or mu.
func (e *entry) deliver() {
	if e.live.Load() && e.pending.Swap(false) {
		e.vector.Signal()
	}
}

func (m *MSIX) setControl(v uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.on.Store(v&controlEnable != 0)
	m.masked = v&controlMask != 0
	for i := range m.entries {
		m.update(i)
	}
}

// update makes entry i live or not, as its mask, the function's and the enable
// bit say. The caller holds mu.
func (m *MSIX) update(i int) {
	e := &m.entries[i]
	if m.closed || !m.on.Load() || m.masked || e.raw[entryControl]&entryControlMask != 0 {
		e.live.Store(false)
		return
	}
	message := Message{
		Address: binary.LittleEndian.Uint64(e.raw[0:]),
		Data:    binary.LittleEndian.Uint32(e.raw[8:]),
	}
	if err := m.route(e, message); err != nil {
		e.live.Store(false)
		if !e.failed {
			e.failed = true
			m.log.Error("interrupt is lost", "vector", i, "err", err)
		}
		return
	}
	e.live.Store(true)
	e.deliver()
}

func (m *MSIX) route(e *entry, message Message) error {
	if e.routed && e.message == message {
		return nil
	}
	if e.vector == nil {
		v, err := m.host.NewVector()
		if err != nil {
			return err
		}
		e.vector = v
	}
	e.message = message
	err := e.vector.Route(message)
	e.routed = err == nil
	return err
}

// ReadTable fills p from the table; beyond it there are zeros.
func (m *MSIX) ReadTable(offset uint64, p []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range p {
		p[i] = 0
		if at := offset + uint64(i); at < m.TableSize() {
			p[i] = m.entries[at/entrySize].raw[at%entrySize]
		}
	}
}

// WriteTable takes a guest's write of p to the table.
func (m *MSIX) WriteTable(offset uint64, p []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first, last := offset/entrySize, (offset+uint64(len(p))-1)/entrySize
	for i, v := range p {
		at := offset + uint64(i)
		if at >= m.TableSize() {
			break
		}
		switch e := &m.entries[at/entrySize]; {
		case at%entrySize < entryControl:
			e.raw[at%entrySize] = v
		case at%entrySize == entryControl:
			e.raw[entryControl] = v & entryControlMask
		}
	}
	for i := first; i <= last && i < uint64(len(m.entries)); i++ {
		m.update(int(i))
	}
}

// ReadPBA fills p from the pending bits; beyond them there are zeros.
func (m *MSIX) ReadPBA(offset uint64, p []byte) {
	for i := range p {
		p[i] = 0
		for bit := range 8 {
			if n := (offset+uint64(i))*8 + uint64(bit); n < uint64(len(m.entries)) && m.entries[n].pending.Load() {
				p[i] |= 1 << bit
			}
		}
	}
}

// Close ends every vector. Signal may still be called, and does nothing.
func (m *MSIX) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.on.Store(false)
	var errs []error
	for i := range m.entries {
		e := &m.entries[i]
		e.live.Store(false)
		e.gate.Lock() // no Signal is under way any more
		v := e.vector
		e.vector = nil
		e.gate.Unlock()
		if v != nil {
			errs = append(errs, v.Close())
		}
	}
	return errors.Join(errs...)
}
