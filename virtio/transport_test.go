package virtio_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"disco/devices"
	"disco/devices/pci"
	"disco/memory"
	"disco/virtio"
)

// host is a machine without KVM: doorbells are a table that guest writes are
// looked up in first, and interrupts are counted by message.
type host struct {
	mmio devices.Bus
	root *pci.Root

	mu      sync.Mutex
	bells   map[uint64]int
	raised  map[pci.Message]int
	vectors int // open
	refuse  error
	memory  []string // what was mapped and unmapped
}

type vector struct {
	h      *host
	m      pci.Message
	closed bool
}

const (
	windowStart = 0xc0000000
	ecam        = 0xe0000000
)

func newHost(t testing.TB) *host {
	h := &host{bells: map[uint64]int{}, raised: map[pci.Message]int{}}
	h.root = pci.NewRoot(&h.mmio, windowStart, 0x20000000)
	if err := h.mmio.Add(ecam, pci.ECAMSize, h.root); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) NewVector() (pci.Vector, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse != nil {
		return nil, h.refuse
	}
	h.vectors++
	return &vector{h: h}, nil
}

func (v *vector) Route(m pci.Message) error {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	v.m = m
	return nil
}

func (v *vector) Signal() {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	if v.closed {
		panic("signal of a closed vector")
	}
	v.h.raised[v.m]++
}

func (v *vector) Close() error {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	v.closed = true
	v.h.vectors--
	return nil
}

func (h *host) BindDoorbell(addr uint64, fd int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse != nil {
		return h.refuse
	}
	if _, ok := h.bells[addr]; ok {
		panic(fmt.Sprintf("%#x is bound already", addr))
	}
	h.bells[addr] = fd
	return nil
}

func (h *host) MapMemory(addr uint64, memory []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse != nil {
		return h.refuse
	}
	h.memory = append(h.memory, fmt.Sprintf("%#x+%#x", addr, len(memory)))
	return nil
}

func (h *host) UnmapMemory(addr uint64, memory []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.memory = append(h.memory, fmt.Sprintf("not %#x+%#x", addr, len(memory)))
	return nil
}

func (h *host) UnbindDoorbell(addr uint64, fd int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bells[addr] != fd {
		panic(fmt.Sprintf("%#x is not bound", addr))
	}
	delete(h.bells, addr)
	return nil
}

// write is a guest's: it says whether it exited to the monitor.
func (h *host) write(addr uint64, p []byte) bool {
	h.mu.Lock()
	if fd, ok := h.bells[addr]; ok {
		defer h.mu.Unlock()
		if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			panic(err)
		}
		return false
	}
	h.mu.Unlock()
	h.mmio.Write(addr, p)
	return true
}

func (h *host) count(data uint32) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for m, k := range h.raised {
		if m.Data == data {
			n += k
		}
	}
	return n
}

// echo is a device whose every queue copies what is readable to what is
// writable, with eight bytes of config space.
type echo struct {
	queues   []uint16
	startErr error

	mu      sync.Mutex
	config  [8]byte
	running atomic.Int32
	starts  atomic.Int32
	workers sync.WaitGroup
}

func (d *echo) ID() virtio.DeviceID  { return virtio.IDConsole }
func (d *echo) Features() uint64     { return 1<<3 | 1<<7 }
func (d *echo) QueueSizes() []uint16 { return d.queues }

func (d *echo) ReadConfig(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(p)
	if offset < 8 {
		copy(p, d.config[offset:])
	}
}

func (d *echo) WriteConfig(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if offset < 8 {
		copy(d.config[offset:], p)
	}
}

func (d *echo) Start(_ uint64, queues []*virtio.Queue) error {
	if d.startErr != nil {
		return d.startErr
	}
	if d.running.Add(1) != 1 {
		panic("started twice")
	}
	d.starts.Add(1)
	for _, q := range queues {
		if q == nil {
			continue
		}
		d.workers.Go(func() {
			buf := make([]byte, 4096)
			q.Serve(func(c *virtio.Chain) uint32 {
				n := c.Read(buf)
				return uint32(c.Write(buf[:n]))
			})
		})
	}
	return nil
}

func (d *echo) Stop() {
	d.workers.Wait()
	if d.running.Add(-1) != 0 {
		panic("stopped twice")
	}
}

// driver is a guest's kernel, as far as one virtio-pci function goes. It finds
// everything through config space and the capabilities, as Linux does.
type driver struct {
	t      testing.TB
	h      *host
	space  *memory.Space
	config uint64 // ECAM address of the function

	bar                          uint64
	common, isr, notify, dev     uint64
	multiplier                   uint64
	msixCap, msixTable, msixSize uint64
	windowCap                    uint64
	rings                        []ring
}

// ring lies in three pages of guest memory.
type ring struct {
	size               uint16
	desc, avail, used  memory.GPA
	added, seen        uint16
	doorbell           uint64
	readable, writable memory.GPA
}

func (d *driver) get(addr uint64, n int) uint64 {
	var p [8]byte
	d.h.mmio.Read(addr, p[:n])
	return binary.LittleEndian.Uint64(p[:])
}

func (d *driver) put(addr uint64, n int, v uint64) bool {
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], v)
	return d.h.write(addr, p[:n])
}

func (d *driver) fatalf(format string, args ...any) {
	d.t.Helper()
	d.t.Fatalf(format, args...)
}

// newDriver enumerates function device of bus 0.
func newDriver(t testing.TB, h *host, space *memory.Space, device int) *driver {
	d := &driver{t: t, h: h, space: space, config: ecam + uint64(device)<<15}
	if id := d.get(d.config, 4); id != 0x1043_1af4 {
		d.fatalf("id %#x", id)
	}
	if d.get(d.config+0x0e, 1) != 0 {
		d.fatalf("header type %#x", d.get(d.config+0x0e, 1))
	}
	// Size the BAR.
	bar := d.get(d.config+0x10, 4)
	d.put(d.config+0x10, 4, 0xffffffff)
	if mask := d.get(d.config+0x10, 4); mask != 0xffffc000 {
		d.fatalf("BAR 0 sizes as %#x", mask)
	}
	d.put(d.config+0x10, 4, bar)
	for i := uint64(0x14); i < 0x28; i += 4 {
		d.put(d.config+i, 4, 0xffffffff)
		if d.get(d.config+i, 4) != 0 {
			d.fatalf("there is a BAR at %#x", i)
		}
	}
	d.put(d.config+0x04, 2, 0x406)
	d.bar = bar
	for at := d.get(d.config+0x34, 1); at != 0; at = d.get(d.config+at+1, 1) {
		c := d.config + at
		switch d.get(c, 1) {
		case 0x11:
			d.msixCap = c
			d.msixSize = d.get(c+2, 2)&0x7ff + 1
			d.msixTable = d.bar + d.get(c+4, 4)&^7
		case 0x09:
			addr := d.bar + d.get(c+8, 4)
			switch d.get(c+3, 1) {
			case 1:
				d.common = addr
			case 2:
				d.notify, d.multiplier = addr, d.get(c+16, 4)
			case 3:
				d.isr = addr
			case 4:
				d.dev = addr
			case 5:
				d.windowCap = c
			}
		}
	}
	if d.common == 0 || d.notify == 0 || d.isr == 0 || d.dev == 0 || d.msixCap == 0 || d.windowCap == 0 {
		d.fatalf("capabilities are missing: %+v", d)
	}
	return d
}

func (d *driver) status() uint64 { return d.get(d.common+20, 1) }

func (d *driver) reset() {
	d.put(d.common+20, 1, 0)
	if d.status() != 0 {
		d.fatalf("status %#x after a reset", d.status())
	}
}

func (d *driver) features(want uint64) uint64 {
	var offered uint64
	for i := range uint64(2) {
		d.put(d.common, 4, i)
		offered |= d.get(d.common+4, 4) << (32 * i)
	}
	want &= offered
	for i := range uint64(2) {
		d.put(d.common+8, 4, i)
		d.put(d.common+12, 4, want>>(32*i)&0xffffffff)
	}
	return offered
}

// vectors turns MSI-X on, with message data 0x40+i for vector i.
func (d *driver) vectors() {
	d.put(d.msixCap+2, 2, 0xc000)
	for i := range d.msixSize {
		e := d.msixTable + 16*i
		d.put(e+12, 4, 1)
		d.put(e, 4, 0xfee00000)
		d.put(e+4, 4, 0)
		d.put(e+8, 4, 0x40+i)
		d.put(e+12, 4, 0)
	}
	d.put(d.msixCap+2, 2, 0x8000)
}

func (d *driver) selectQueue(i int) {
	d.put(d.common+22, 2, uint64(i))
}

// setQueue lays out queue i in memory from page 16*(i+1), and enables it.
func (d *driver) setQueue(i int) {
	d.selectQueue(i)
	size := uint16(d.get(d.common+24, 2))
	base := memory.GPA(16*(i+1)) * 4096
	r := ring{size: size, desc: base, avail: base + 0x3000, used: base + 0x5000, readable: base + 0x8000, writable: base + 0x9000}
	r.doorbell = d.notify + d.get(d.common+30, 2)*d.multiplier
	if err := d.space.WriteAt(make([]byte, 0x8000), base); err != nil {
		d.fatalf("%v", err)
	}
	d.put(d.common+26, 2, uint64(i+1))
	if v := d.get(d.common+26, 2); v != uint64(i+1) {
		d.fatalf("queue %d: vector %#x", i, v)
	}
	for j, a := range []memory.GPA{r.desc, r.avail, r.used} {
		d.put(d.common+32+8*uint64(j), 4, uint64(a)&0xffffffff)
		d.put(d.common+36+8*uint64(j), 4, uint64(a)>>32)
	}
	d.put(d.common+28, 2, 1)
	if d.get(d.common+28, 2) != 1 {
		d.fatalf("queue %d is not enabled; status %#x", i, d.status())
	}
	for len(d.rings) <= i {
		d.rings = append(d.rings, ring{})
	}
	d.rings[i] = r
}

// probe is what Linux does from reset to DRIVER_OK.
func (d *driver) probe(want uint64) {
	d.reset()
	d.put(d.common+20, 1, 1)
	d.put(d.common+20, 1, 3)
	d.features(want)
	d.put(d.common+20, 1, 11)
	if d.status() != 11 {
		d.fatalf("status %#x: FEATURES_OK refused", d.status())
	}
	d.vectors()
	d.put(d.common+16, 2, 0)
	for i := range int(d.get(d.common+18, 2)) {
		d.setQueue(i)
	}
	d.put(d.common+20, 1, 15)
	if d.status() != 15 {
		d.fatalf("status %#x", d.status())
	}
}

// send makes a message available on queue i, and says whether the kick exited.
func (d *driver) send(i int, s string) bool {
	r := &d.rings[i]
	write := func(p []byte, a memory.GPA) {
		if err := d.space.WriteAt(p, a); err != nil {
			d.fatalf("%v", err)
		}
	}
	le := binary.LittleEndian
	write([]byte(s), r.readable)
	var ds [32]byte
	le.PutUint64(ds[0:], uint64(r.readable))
	le.PutUint32(ds[8:], uint32(len(s)))
	le.PutUint16(ds[12:], 1)
	le.PutUint16(ds[14:], 1)
	le.PutUint64(ds[16:], uint64(r.writable))
	le.PutUint32(ds[24:], 4096)
	le.PutUint16(ds[28:], 2)
	write(ds[:], r.desc)
	write([]byte{0, 0}, r.avail+4+2*memory.GPA(r.added%r.size))
	// An interrupt, please, at the next one used.
	write(le.AppendUint16(nil, r.seen), r.avail+4+2*memory.GPA(r.size))
	r.added++
	write(le.AppendUint16(nil, r.added), r.avail+2)
	return d.put(r.doorbell, 2, uint64(i))
}

func (d *driver) receive(i int) string {
	d.t.Helper()
	r := &d.rings[i]
	var index [2]byte
	for late := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Microsecond) {
		if err := d.space.ReadAt(index[:], r.used+2); err != nil {
			d.fatalf("%v", err)
		}
		if binary.LittleEndian.Uint16(index[:]) != r.seen {
			break
		}
		if time.Now().After(late) {
			d.fatalf("queue %d: nothing came back; status %#x", i, d.status())
		}
	}
	var e [8]byte
	if err := d.space.ReadAt(e[:], r.used+4+8*memory.GPA(r.seen%r.size)); err != nil {
		d.fatalf("%v", err)
	}
	r.seen++
	p := make([]byte, binary.LittleEndian.Uint32(e[4:]))
	if err := d.space.ReadAt(p, r.writable); err != nil {
		d.fatalf("%v", err)
	}
	return string(p)
}

func (d *driver) echo(i int, s string) (exited bool) {
	d.t.Helper()
	exited = d.send(i, s)
	if got := d.receive(i); got != s {
		d.fatalf("queue %d: sent %q, received %q", i, s, got)
	}
	return exited
}

// logs collects log lines.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(strings.Split(l.b.String(), "\n"), func(s string) bool { return s == "" })
}

type machine struct {
	*host
	space     *memory.Space
	dev       *echo
	transport *virtio.Transport
	logs      *logs
}

func newMachine(t testing.TB, dev *echo) *machine {
	t.Helper()
	space, err := memory.New("virtio-test", []memory.Range{{Start: 0, Size: 4 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{space: space, dev: dev, logs: &logs{}}
	m.build(t)
	t.Cleanup(func() {
		m.end(t)
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *machine) build(t testing.TB) {
	t.Helper()
	var err error
	m.host = newHost(t)
	m.transport, err = virtio.NewTransport(m.dev, m.space, m.host, slog.New(slog.NewTextHandler(m.logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.root.Add(m.transport); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) end(t testing.TB) {
	t.Helper()
	if err := m.transport.Close(); err != nil {
		t.Error(err)
	}
	if n := m.space.Pins(); n != 0 {
		t.Errorf("%d pins are left", n)
	}
	if len(m.bells) != 0 || m.vectors != 0 {
		t.Errorf("%d doorbells and %d vectors are left", len(m.bells), m.vectors)
	}
	if n := m.dev.running.Load(); n != 0 {
		t.Errorf("the device is still running")
	}
}

const everything = ^uint64(0)

func TestProbe(t *testing.T) {
	for name, refuse := range map[string]uint64{
		"all features": 0, "no event index": virtio.FeatureEventIndex, "version 1 alone": everything &^ virtio.FeatureVersion1,
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, &echo{queues: []uint16{256, 8, 64}})
			d := newDriver(t, m.host, m.space, 1)
			d.probe(everything &^ refuse)
			before := m.transport.Stats()
			for n := range 100 {
				for i := range d.rings {
					if d.echo(i, fmt.Sprintf("message %d", n)) {
						t.Fatal("a kick exited")
					}
				}
			}
			for i := range d.rings {
				wait(t, func() bool { return m.count(0x41+uint32(i)) == 100 })
			}
			if s := m.transport.Stats(); s.Kicks != before.Kicks || s.Interrupts != 300 {
				t.Errorf("counts %+v", s)
			}
			if lines := m.logs.lines(); len(lines) != 0 {
				t.Errorf("logged: %q", lines)
			}
		})
	}
}

func wait(t testing.TB, ok func() bool) {
	t.Helper()
	for late := time.Now().Add(10 * time.Second); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(late) {
			t.Fatal("waited in vain")
		}
	}
}

func TestIdentity(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8}})
	d := newDriver(t, m.host, m.space, 1)
	for _, c := range []struct {
		at   uint64
		n    int
		want uint64
	}{
		{0x08, 1, 1}, {0x09, 1, 0}, {0x0a, 2, 0x0780}, {0x2c, 4, 0x10431af4}, {0x3d, 1, 0}, {0x100, 4, 0xffffffff},
	} {
		if got := d.get(d.config+c.at, c.n); got != c.want {
			t.Errorf("config %#x: %#x, not %#x", c.at, got, c.want)
		}
	}
	for i := 2; i < 32; i++ {
		if got := d.get(ecam+uint64(i)<<15, 4); got != 0xffffffff {
			t.Errorf("device %d: %#x", i, got)
		}
	}
	if got := d.get(d.config+1<<12, 4); got != 0xffffffff {
		t.Errorf("function 1: %#x", got)
	}
	if got := d.get(ecam+0x0a, 2); got != 0x0600 {
		t.Errorf("host bridge of class %#x", got)
	}
}

func TestFeatures(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8}})
	d := newDriver(t, m.host, m.space, 1)
	if got, want := d.features(0), m.dev.Features()|virtio.TransportFeatures; got != want {
		t.Fatalf("offered %#x, not %#x", got, want)
	}
	d.put(d.common, 4, 2)
	if got := d.get(d.common+4, 4); got != 0 {
		t.Errorf("features 64 and up: %#x", got)
	}
	for name, c := range map[string]struct {
		lo, hi uint64
		ok     bool
	}{
		"version 1":   {0, 1, true},
		"none":        {0, 0, false},
		"own":         {1 << 3, 1, true},
		"not offered": {1 << 4, 1, false},
		"packed":      {0, 1 | 1<<2, false},
	} {
		d.reset()
		d.put(d.common+20, 1, 3)
		d.put(d.common+8, 4, 0)
		d.put(d.common+12, 4, c.lo)
		d.put(d.common+8, 4, 1)
		d.put(d.common+12, 4, c.hi)
		d.put(d.common+20, 1, 11)
		if ok := d.status()&8 != 0; ok != c.ok {
			t.Errorf("%s: FEATURES_OK %v", name, ok)
		}
		if c.ok {
			d.put(d.common+12, 4, 0)
			if got := d.get(d.common+12, 4); got != c.hi {
				t.Errorf("%s: features changed after FEATURES_OK", name)
			}
		}
	}
}

func TestDriverMisbehaves(t *testing.T) {
	negotiate := func(d *driver) {
		d.put(d.common+20, 1, 3)
		d.features(everything)
		d.put(d.common+20, 1, 11)
	}
	enable := func(d *driver, size, desc, avail, used uint64) {
		negotiate(d)
		d.selectQueue(0)
		d.put(d.common+24, 2, size)
		d.put(d.common+32, 8, desc)
		d.put(d.common+40, 8, avail)
		d.put(d.common+48, 8, used)
		d.put(d.common+28, 2, 1)
	}
	for name, do := range map[string]func(d *driver){
		"DRIVER_OK at once":     func(d *driver) { d.put(d.common+20, 1, 7) },
		"queue before features": func(d *driver) { d.put(d.common+20, 1, 3); d.put(d.common+28, 2, 1) },
		"size 0":                func(d *driver) { enable(d, 0, 0x1000, 0x2000, 0x3000) },
		"size 3":                func(d *driver) { enable(d, 3, 0x1000, 0x2000, 0x3000) },
		"size too large":        func(d *driver) { enable(d, 16, 0x1000, 0x2000, 0x3000) },
		"table unaligned":       func(d *driver) { enable(d, 8, 0x1008, 0x2000, 0x3000) },
		"available unaligned":   func(d *driver) { enable(d, 8, 0x1000, 0x2001, 0x3000) },
		"used unaligned":        func(d *driver) { enable(d, 8, 0x1000, 0x2000, 0x3002) },
		"table outside RAM":     func(d *driver) { enable(d, 8, 0x400000, 0x2000, 0x3000) },
		"available at the end":  func(d *driver) { enable(d, 8, 0x1000, 0x3ffffe, 0x3000) },
		"used wraps":            func(d *driver) { enable(d, 8, 0x1000, 0x2000, 0xfffffffffffffffc) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, &echo{queues: []uint16{8}})
			d := newDriver(t, m.host, m.space, 1)
			do(d)
			if d.status()&64 == 0 {
				t.Errorf("status %#x: no NEEDS_RESET", d.status())
			}
			wait(t, func() bool { return m.space.Pins() == 0 })
			if lines := m.logs.lines(); len(lines) != 1 {
				t.Errorf("logged %q", lines)
			}
			if m.dev.starts.Load() != 0 {
				t.Error("the device was started")
			}
			d.probe(everything)
			d.echo(0, "well again")
		})
	}
}

func TestBrokenRing(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8, 8}})
	d := newDriver(t, m.host, m.space, 1)
	for round := range 20 {
		d.probe(everything)
		d.echo(1, "hello")
		before := m.count(0x40)
		if err := m.space.WriteAt([]byte{99, 0}, d.rings[0].avail+2); err != nil {
			t.Fatal(err)
		}
		d.put(d.rings[0].doorbell, 2, 0)
		wait(t, func() bool { return d.status() == 15|64 })
		wait(t, func() bool { return m.count(0x40) == before+1 && m.dev.running.Load() == 0 && m.space.Pins() == 0 })
		if d.get(d.isr, 1) != 2 || d.get(d.isr, 1) != 0 {
			t.Error("ISR status is wrong")
		}
		d.put(d.rings[1].doorbell, 2, 1) // nobody is there
		if n := len(m.logs.lines()); n != min(round+1, 8) {
			t.Fatalf("%d lines logged in round %d", n, round)
		}
	}
	if n := m.transport.Stats().Failures; n != 20 {
		t.Errorf("%d failures counted", n)
	}
}

func TestStartFails(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8}, startErr: errors.New("no such luck")})
	d := newDriver(t, m.host, m.space, 1)
	d.reset()
	d.put(d.common+20, 1, 3)
	d.features(everything)
	d.put(d.common+20, 1, 11)
	d.setQueue(0)
	d.put(d.common+20, 1, 15)
	wait(t, func() bool { return d.status()&64 != 0 && m.space.Pins() == 0 })
	if lines := m.logs.lines(); len(lines) != 1 || !strings.Contains(lines[0], "no such luck") {
		t.Errorf("logged %q", lines)
	}
	m.dev.startErr = nil
	d.probe(everything)
	d.echo(0, "luck")
}

func TestMoveBAR(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8, 8}})
	d := newDriver(t, m.host, m.space, 1)
	d.probe(everything)
	d.echo(0, "before")
	d.put(d.config+0x04, 2, 0)
	if d.get(d.common+18, 2) != 0xffff || len(m.bells) != 0 {
		t.Fatal("BAR 0 answers while decoding is off")
	}
	d.put(d.config+0x04, 2, 6)
	d.echo(0, "again")

	const to = windowStart + 0x100000
	d.put(d.config+0x10, 4, to)
	if d.get(d.common+18, 2) != 0xffff {
		t.Fatal("BAR 0 answers at its old place")
	}
	move := func(to uint64) {
		for _, p := range []*uint64{&d.common, &d.isr, &d.notify, &d.dev, &d.msixTable, &d.rings[0].doorbell, &d.rings[1].doorbell} {
			*p = *p - d.bar + to
		}
		d.bar = to
	}
	move(to)
	if d.echo(0, "after") || d.echo(1, "after") {
		t.Error("a kick exited")
	}
	// RAM, the config space, outside the window, over its end.
	for _, bad := range []uint64{0, 0x100000, ecam, 0xfee00000, windowStart - 0x4000, 0xffffc000} {
		d.put(d.config+0x10, 4, bad)
		if len(m.bells) != 0 {
			t.Errorf("a doorbell is bound with BAR 0 at %#x", bad)
		}
		if got := d.get(d.config, 2); got != 0x1af4 {
			t.Fatalf("config space reads %#x with BAR 0 at %#x", got, bad)
		}
	}
	d.put(d.config+0x10, 4, to)
	d.echo(0, "home")
}

func TestKicksWithoutDoorbells(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8}})
	m.refuse = errors.New("no doorbells here")
	d := newDriver(t, m.host, m.space, 1)
	d.probe(everything)
	if !d.echo(0, "by an exit") {
		t.Error("the kick did not exit")
	}
	if n := m.transport.Stats().Kicks; n != 1 {
		t.Errorf("%d kicks counted", n)
	}
}

func TestWindow(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8}})
	d := newDriver(t, m.host, m.space, 1)
	d.probe(everything)
	set := func(offset, n uint64) {
		d.put(d.windowCap+4, 1, 0)
		d.put(d.windowCap+8, 4, offset)
		d.put(d.windowCap+12, 4, n)
	}
	set(20, 1)
	if got := d.get(d.windowCap+16, 1); got != 15 {
		t.Errorf("status %#x through the window", got)
	}
	set(d.rings[0].doorbell-d.bar, 2)
	d.rings[0].doorbell = d.windowCap + 16
	d.echo(0, "through the window")
	if n := m.transport.Stats().Kicks; n != 1 {
		t.Errorf("%d kicks counted", n)
	}
	for _, bad := range [][2]uint64{{1, 2}, {2, 4}, {0, 3}, {0, 0}, {0, 8}, {0x2000, 4}, {0xffffffff, 1}, {0xfffffffc, 4}} {
		set(bad[0], bad[1])
		d.put(d.windowCap+16, 4, 0)
		d.get(d.windowCap+16, 4)
	}
	set(20, 1)
	d.put(d.windowCap+16, 1, 0)
	if d.status() != 0 {
		t.Error("no reset through the window")
	}
}

func TestConfigChanged(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8}})
	d := newDriver(t, m.host, m.space, 1)
	m.transport.ConfigChanged() // nobody listens
	d.probe(everything)
	d.put(d.dev, 8, 0x1122334455667788)
	if got := d.get(d.dev+2, 2); got != 0x5566 {
		t.Errorf("config reads %#x", got)
	}
	if got := d.get(d.dev+0xdf8, 8); got != 0 {
		t.Errorf("beyond config: %#x", got)
	}
	before := d.get(d.common+21, 1)
	m.transport.ConfigChanged()
	if d.get(d.common+21, 1) == before || m.count(0x40) != 1 || d.get(d.isr, 1) != 2 {
		t.Error("the driver was not told")
	}
	d.put(d.common+16, 2, 99)
	if got := d.get(d.common+16, 2); got != 0xffff {
		t.Errorf("vector 99 reads back as %#x", got)
	}
}

func TestPolledWithoutMSIX(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8}})
	d := newDriver(t, m.host, m.space, 1)
	d.probe(everything)
	d.put(d.msixCap+2, 2, 0)
	d.echo(0, "poll")
	wait(t, func() bool { return d.get(d.isr, 1) == 1 })
	if m.vectors == 0 || m.count(0x41) != 0 {
		t.Error("an interrupt was raised with MSI-X off")
	}
}

func TestRebuild(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8}})
	for range 5 {
		d := newDriver(t, m.host, m.space, 1)
		d.probe(everything)
		d.echo(0, "hello")
		m.end(t)
		d.put(d.rings[0].doorbell, 2, 0)
		d.put(d.common+20, 1, 3)
		m.transport.ConfigChanged()
		m.build(t)
	}
}

func TestAbsurdDevice(t *testing.T) {
	for _, sizes := range [][]uint16{nil, {0}, {8, 3}, make([]uint16, 1025)} {
		if _, err := virtio.NewTransport(&echo{queues: sizes}, nil, nil, slog.Default()); err == nil {
			t.Errorf("%d queues: no error", len(sizes))
		}
	}
}

// TestResetWhileBusy has vCPUs that kick, read registers and change the console
// size while another resets and probes the device.
func TestResetWhileBusy(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{64, 64}})
	d := newDriver(t, m.host, m.space, 1)
	d.probe(everything)
	stop := make(chan struct{})
	var vcpus sync.WaitGroup
	for range 2 {
		vcpus.Go(func() {
			r := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case <-stop:
					return
				default:
				}
				at := uint64(r.IntN(0x4000))
				if at == 20 {
					continue
				}
				d.get(d.bar+at, 1+r.IntN(8))
				d.put(d.notify+4*uint64(r.IntN(3)), 2, 0)
				m.transport.ConfigChanged()
				// Masking and unmasking.
				d.put(d.msixTable+16*uint64(r.IntN(3))+12, 4, uint64(r.IntN(2)))
			}
		})
	}
	for range 30 {
		for i := range 2 {
			d.echo(i, "busy")
			d.send(i, "not answered, perhaps")
		}
		if m.dev.starts.Load()%3 == 0 {
			_ = m.space.WriteAt([]byte{99, 99}, d.rings[1].avail+2)
			d.put(d.rings[1].doorbell, 2, 1)
		}
		d.probe(everything)
	}
	close(stop)
	vcpus.Wait()
}

func TestTransportAllocs(t *testing.T) {
	m := newMachine(t, &echo{queues: []uint16{8}})
	d := newDriver(t, m.host, m.space, 1)
	d.probe(everything)
	p := make([]byte, 4)
	for name, f := range map[string]func(){
		"read of a register":   func() { m.transport.Read(20, p[:1]) },
		"write of a register":  func() { m.transport.Write(0, p) },
		"read of config":       func() { m.transport.Read(0x200, p) },
		"kick by an exit":      func() { m.transport.Write(0x1000, p[:2]) },
		"configuration change": func() { m.transport.ConfigChanged() },
		"ECAM":                 func() { m.root.Read(1<<15, p) },
	} {
		if n := testing.AllocsPerRun(100, f); n >= 1 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzTransport has a guest that writes anything anywhere in BAR 0 and resets
// in between. What it may not do is crash the monitor, leave pins, or break the
// device for the driver after it.
func FuzzTransport(f *testing.F) {
	f.Add([]byte{20, 0, 1, 11, 28, 0, 2, 1, 20, 0, 1, 15})
	f.Add([]byte{12, 0, 4, 0xff, 20, 0, 1, 8, 32, 0, 8, 0, 28, 0, 2, 1, 0, 0x10, 2, 0})
	f.Add([]byte{0xc, 0x20, 4, 1, 0xf, 0x20, 8, 0xff})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := newMachine(t, &echo{queues: []uint16{8, 4}})
		d := newDriver(t, m.host, m.space, 1)
		d.probe(everything)
		for ; len(script) >= 4; script = script[4:] {
			at := uint64(binary.LittleEndian.Uint16(script)) & 0x3fff
			n := 1 + int(script[2]&7)
			if at+uint64(n) > 0x4000 {
				continue
			}
			v := uint64(script[3])
			if script[2]&8 != 0 {
				v |= v<<8 | v<<24 | v<<56
			}
			if script[2]&16 != 0 {
				d.get(d.bar+at, n)
			} else {
				d.put(d.bar+at, n, v)
			}
			if script[2]&0xe0 == 0xe0 {
				d.probe(everything)
			}
		}
		d.probe(everything)
		d.echo(0, "well again")
	})
}
