package pci_test

import (
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"disco/devices"
	"disco/devices/pci"
)

const (
	start = 0xc0000000
	size  = 0x100000
	ecam  = 0xe0000000
)

// host counts what it was asked, and refuses when told to.
type host struct {
	mu      sync.Mutex
	vectors []*vector
	refuse  error
}

type vector struct {
	h       *host
	routes  []pci.Message
	signals atomic.Int64
	closed  atomic.Bool
	refuse  error
}

func (h *host) NewVector() (pci.Vector, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse != nil {
		return nil, h.refuse
	}
	v := &vector{h: h}
	h.vectors = append(h.vectors, v)
	return v, nil
}

func (h *host) BindDoorbell(uint64, int) error   { return nil }
func (h *host) MapMemory(uint64, []byte) error   { return nil }
func (h *host) UnmapMemory(uint64, []byte) error { return nil }

func (h *host) UnbindDoorbell(uint64, int) error { return nil }

func (v *vector) Route(m pci.Message) error {
	v.routes = append(v.routes, m)
	return v.refuse
}

func (v *vector) Signal() {
	if v.closed.Load() {
		panic("signal of a closed vector")
	}
	v.signals.Add(1)
}

func (v *vector) Close() error {
	v.closed.Store(true)
	return nil
}

// function is a function whose BAR holds its number, an MSI-X table from
// 0x1000 and its pending bits.
type function struct {
	config *pci.Config
	msix   *pci.MSIX
	number byte
	bar    uint64
	mapped bool
	moves  int
}

const pba = 0x1800

func newFunction(h pci.Host, number byte, bar uint32) *function {
	f := &function{number: number, msix: pci.NewMSIX(h, 70, quiet)}
	f.config = pci.NewConfig(pci.Header{Vendor: 0x1234, Device: uint16(number), Class: 0x123456, Revision: 7, SubVendor: 0x5678, Subsystem: 0x9abc, BAR: bar})
	if bar != 0 {
		f.config.Add(f.msix.Capability(0x1000, pba))
	}
	return f
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func (f *function) Config() *pci.Config { return f.config }

func (f *function) Moved(base uint64, mapped bool) {
	f.bar, f.mapped = base, mapped
	f.moves++
}

func (f *function) Read(offset uint64, p []byte) {
	switch {
	case offset >= pba:
		f.msix.ReadPBA(offset-pba, p)
	case offset >= 0x1000:
		f.msix.ReadTable(offset-0x1000, p)
	default:
		for i := range p {
			p[i] = f.number
		}
	}
}

func (f *function) Write(offset uint64, p []byte) {
	if offset >= 0x1000 && offset < pba {
		f.msix.WriteTable(offset-0x1000, p)
	}
}

// guest is what a vCPU can do.
type guest struct{ devices.Bus }

func (g *guest) get(addr uint64, n int) uint64 {
	var p [8]byte
	g.Read(addr, p[:n])
	return binary.LittleEndian.Uint64(p[:])
}

func (g *guest) put(addr uint64, n int, v uint64) {
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], v)
	g.Write(addr, p[:n])
}

func config(device int) uint64 { return ecam + uint64(device)<<15 }

func newGuest(t testing.TB, fns ...*function) *guest {
	t.Helper()
	g := &guest{}
	root := pci.NewRoot(&g.Bus, start, size)
	if err := g.Add(ecam, pci.ECAMSize, root); err != nil {
		t.Fatal(err)
	}
	for _, f := range fns {
		if err := root.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func TestConfigSpace(t *testing.T) {
	h := &host{}
	g := newGuest(t, newFunction(h, 1, 0x2000))
	const ones = 0xffffffff
	for _, c := range []struct {
		name  string
		at    uint64
		n     int
		want  uint64
		write uint64
		then  uint64
	}{
		{name: "ids", at: 0, n: 4, want: 0x00011234, write: ones, then: 0x00011234},
		{name: "command", at: 4, n: 2, want: 0, write: 0xffff, then: 0x0406},
		{name: "command off", at: 4, n: 2, want: 0x0406, write: 0, then: 0},
		{name: "status", at: 6, n: 2, want: 0x0010, write: 0xffff, then: 0x0010},
		{name: "class", at: 8, n: 4, want: 0x12345607, write: ones, then: 0x12345607},
		{name: "header", at: 0xc, n: 4, want: 0, write: ones, then: 0xff},
		{name: "BAR 0", at: 0x10, n: 4, want: start, write: ones, then: 0xffffe000},
		{name: "BAR 0, a byte", at: 0x13, n: 1, want: 0xff, write: 0xd0, then: 0xd0},
		{name: "BAR 1", at: 0x14, n: 4, want: 0, write: ones, then: 0},
		{name: "BAR 5", at: 0x24, n: 4, want: 0, write: ones, then: 0},
		{name: "subsystem", at: 0x2c, n: 4, want: 0x9abc5678, write: ones, then: 0x9abc5678},
		{name: "ROM", at: 0x30, n: 4, want: 0, write: ones, then: 0},
		{name: "capabilities", at: 0x34, n: 4, want: 0x40, write: ones, then: 0x40},
		{name: "line and pin", at: 0x3c, n: 2, want: 0, write: 0xffff, then: 0x00ff},
		{name: "MSI-X", at: 0x40, n: 4, want: 0x00450011, write: ones, then: 0xc0450011},
		{name: "MSI-X table", at: 0x44, n: 4, want: 0x1000, write: ones, then: 0x1000},
		{name: "MSI-X pending", at: 0x48, n: 4, want: 0x1800, write: ones, then: 0x1800},
		{name: "eight bytes", at: 0x40, n: 8, want: 0x1000_c0450011, write: 0, then: 0x1000_00450011},
		{name: "past the end", at: 0xfc, n: 8, want: ones << 32, write: 0, then: ones << 32},
		{name: "extended", at: 0x100, n: 4, want: ones, write: 0, then: ones},
		{name: "function 1", at: 0x1000, n: 4, want: ones, write: 0, then: ones},
		{name: "into function 1", at: 0xffe, n: 4, want: ones, write: 0, then: ones},
		{name: "device 2", at: 1 << 15, n: 4, want: ones, write: 0, then: ones},
	} {
		if got := g.get(config(1)+c.at, c.n); got != c.want {
			t.Errorf("%s: %#x, not %#x", c.name, got, c.want)
		}
		g.put(config(1)+c.at, c.n, c.write)
		if got := g.get(config(1)+c.at, c.n); got != c.then {
			t.Errorf("%s: %#x after a write, not %#x", c.name, got, c.then)
		}
	}
	if got := g.get(config(0), 4); got != 0x00081b36 {
		t.Errorf("host bridge %#x", got)
	}
	g.put(config(0)+4, 4, ones)
	if got := g.get(config(0)+4, 4); got != 0x0404 {
		t.Errorf("host bridge's command %#x", got)
	}
}

func TestBARs(t *testing.T) {
	h := &host{}
	a, b := newFunction(h, 1, 0x2000), newFunction(h, 2, 0x4000)
	g := newGuest(t, a, b)
	bar := func(device int) uint64 { return config(device) + 0x10 }
	at := func(addr uint64) uint64 { return g.get(addr, 1) }
	if g.get(bar(1), 4) != start || g.get(bar(2), 4) != start+0x4000 {
		t.Fatalf("BARs at %#x and %#x", g.get(bar(1), 4), g.get(bar(2), 4))
	}
	if at(start) != 0xff {
		t.Error("a BAR answers before decoding is on")
	}
	g.put(config(1)+4, 2, 2)
	g.put(config(2)+4, 2, 2)
	if at(start) != 1 || at(start+0x4000) != 2 || a.bar != start || !a.mapped {
		t.Error("BARs do not answer")
	}
	moves := a.moves
	g.put(config(1)+4, 2, 6)
	if a.moves != moves {
		t.Error("the bus-master bit moved a BAR")
	}
	// On top of each other: who was there first stays.
	g.put(bar(1), 4, start+0x4000)
	if at(start) != 0xff || at(start+0x4000) != 2 || a.mapped {
		t.Error("an overlap is mapped")
	}
	// When it goes, the other one comes.
	g.put(bar(2), 4, start+0x10000)
	if at(start+0x4000) != 1 || at(start+0x10000) != 2 || !a.mapped || !b.mapped {
		t.Error("a freed place is not mapped")
	}
	for _, bad := range []uint64{0, 0x1000000, start - 0x2000, start + size, ecam, 0xffffe000} {
		g.put(bar(1), 4, bad)
		if a.mapped {
			t.Errorf("mapped at %#x", bad)
		}
		if g.get(config(1), 2) != 0x1234 {
			t.Fatalf("config space is gone with a BAR at %#x", bad)
		}
	}
	g.put(bar(1), 4, start+size-0x2000)
	if at(start+size-1-0x1000) != 1 {
		t.Error("the window's end does not answer")
	}
	g.put(config(1)+4, 2, 0)
	if at(start+size-0x2000) != 0xff || a.mapped {
		t.Error("a BAR answers with decoding off")
	}
}

func TestFull(t *testing.T) {
	var g guest
	root := pci.NewRoot(&g.Bus, start, 0x4000)
	if err := root.Add(newFunction(&host{}, 1, 0x8000)); err == nil {
		t.Error("a BAR larger than the window")
	}
	for i := range 31 {
		if err := root.Add(newFunction(&host{}, byte(i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.Add(newFunction(&host{}, 32, 0)); err == nil {
		t.Error("a 33rd device")
	}
}

func entry(i int) uint64 { return start + 0x1000 + 16*uint64(i) }

func program(g *guest, i int, m pci.Message) {
	g.put(entry(i), 4, m.Address&0xffffffff)
	g.put(entry(i)+4, 4, m.Address>>32)
	g.put(entry(i)+8, 4, uint64(m.Data))
}

func TestMSIX(t *testing.T) {
	h := &host{}
	f := newFunction(h, 1, 0x2000)
	g := newGuest(t, f)
	g.put(config(1)+4, 2, 6)
	control := func(v uint64) { g.put(config(1)+0x42, 2, v) }
	pending := func(i int) bool { return g.get(start+pba+uint64(i/8), 1)>>(i%8)&1 != 0 }
	mask := func(i int, v uint64) { g.put(entry(i)+12, 4, v) }
	signals := func(i int) int64 { return h.vectors[i].signals.Load() }

	if got := g.get(entry(69)+12, 4); got != 1 {
		t.Errorf("vector control is %#x after a reset", got)
	}
	f.msix.Signal(3)
	if pending(3) || f.msix.Enabled() {
		t.Error("MSI-X is on")
	}
	control(0xc000)
	m := pci.Message{Address: 0xfee01000, Data: 0x4041}
	program(g, 3, m)
	mask(3, 0)
	if len(h.vectors) != 0 {
		t.Error("a vector was made while the function was masked")
	}
	f.msix.Signal(3)
	if !pending(3) || pending(4) {
		t.Error("not pending")
	}
	control(0x8000)
	if len(h.vectors) != 1 || signals(0) != 1 || pending(3) {
		t.Fatal("what was pending is not delivered")
	}
	if r := h.vectors[0].routes; len(r) != 1 || r[0] != m {
		t.Errorf("routes %v", r)
	}
	f.msix.Signal(3)
	if signals(0) != 2 {
		t.Error("not delivered")
	}
	mask(3, 1)
	f.msix.Signal(3)
	f.msix.Signal(3)
	if signals(0) != 2 || !pending(3) {
		t.Error("delivered though masked")
	}
	mask(3, 0)
	if signals(0) != 3 || pending(3) || len(h.vectors[0].routes) != 1 {
		t.Error("two while masked are one, by the same route")
	}
	// Linux moves an interrupt to another CPU.
	mask(3, 1)
	m.Address = 0xfee02000
	program(g, 3, m)
	mask(3, 0)
	if r := h.vectors[0].routes; len(r) != 2 || r[1] != m {
		t.Errorf("routes %v", r)
	}
	// Beyond 64, and anywhere.
	program(g, 69, pci.Message{Address: ^uint64(0), Data: 0xffffffff})
	f.msix.Signal(69)
	if !pending(69) || g.get(start+pba, 8) != 0 {
		t.Error("vector 69 is not pending")
	}
	mask(69, 0xfffffffe)
	if signals(1) != 1 || g.get(entry(69)+12, 4) != 0 {
		t.Error("vector 69 is not delivered")
	}
	f.msix.Signal(-1)
	f.msix.Signal(70)
	g.put(entry(70), 8, ^uint64(0))
	if got := g.get(entry(70), 8); got != 0 {
		t.Errorf("beyond the table: %#x", got)
	}
	// One access over two entries, and two words at once.
	g.put(entry(4)+8, 8, 0x00000000_00000042)
	g.put(entry(4), 8, 0xfee00000)
	f.msix.Signal(4)
	if signals(2) != 1 {
		t.Error("64-bit writes")
	}

	if err := f.msix.Close(); err != nil {
		t.Fatal(err)
	}
	for i, v := range h.vectors {
		if !v.closed.Load() {
			t.Errorf("vector %d is left open", i)
		}
	}
	f.msix.Signal(3)
	control(0x8000)
	mask(3, 0)
	f.msix.Signal(3)
}

func TestMSIXHostRefuses(t *testing.T) {
	h := &host{refuse: errors.New("no vectors")}
	f := newFunction(h, 1, 0x2000)
	g := newGuest(t, f)
	g.put(config(1)+4, 2, 6)
	g.put(config(1)+0x42, 2, 0x8000)
	unmask := func() {
		g.put(entry(0)+12, 4, 1)
		g.put(entry(0)+12, 4, 0)
	}
	unmask()
	f.msix.Signal(0)
	h.refuse = nil
	unmask()
	if len(h.vectors) != 1 || h.vectors[0].signals.Load() != 1 {
		t.Error("the host agrees, and nothing comes")
	}
	h.vectors[0].refuse = errors.New("no route")
	program(g, 0, pci.Message{Address: 0xfee00000})
	f.msix.Signal(0)
	if h.vectors[0].signals.Load() != 1 {
		t.Error("signalled by a route that was refused")
	}
	if err := f.msix.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestMSIXRace has workers that signal while a guest masks, unmasks and moves:
// nothing is lost, and nothing comes after Close.
func TestMSIXRace(t *testing.T) {
	h := &host{}
	f := newFunction(h, 1, 0x2000)
	g := newGuest(t, f)
	g.put(config(1)+4, 2, 6)
	g.put(config(1)+0x42, 2, 0x8000)
	var workers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		workers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f.msix.Signal(0)
				}
			}
		})
	}
	for i := range 1000 {
		g.put(entry(0)+12, 4, 1)
		program(g, 0, pci.Message{Data: uint32(i)})
		g.put(entry(0)+12, 4, 0)
	}
	// A signal that was masked comes when it no longer is.
	close(stop)
	workers.Wait()
	for range 1000 {
		before := h.vectors[0].signals.Load()
		g.put(entry(0)+12, 4, 1)
		var one sync.WaitGroup
		one.Go(func() { f.msix.Signal(0) })
		g.put(entry(0)+12, 4, 0)
		one.Wait()
		if h.vectors[0].signals.Load() != before+1 {
			t.Fatal("an interrupt was lost, or came twice")
		}
	}
	workers.Go(func() {
		for range 10000 {
			f.msix.Signal(0)
		}
	})
	if err := f.msix.Close(); err != nil {
		t.Fatal(err)
	}
	workers.Wait()
}

func TestAllocs(t *testing.T) {
	h := &host{}
	f := newFunction(h, 1, 0x2000)
	g := newGuest(t, f)
	g.put(config(1)+4, 2, 6)
	g.put(config(1)+0x42, 2, 0x8000)
	g.put(entry(0)+12, 4, 0)
	p := make([]byte, 4)
	for name, do := range map[string]func(){
		"signal":       func() { f.msix.Signal(0) },
		"masked":       func() { f.msix.Signal(1) },
		"config read":  func() { g.Read(config(1), p) },
		"config write": func() { g.Write(config(1)+0x3c, p) },
		"table read":   func() { g.Read(entry(0), p) },
		"mask":         func() { g.Write(entry(2)+8, p) },
	} {
		if n := testing.AllocsPerRun(100, do); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzConfigSpace is random traffic to config space and to wherever the BARs
// then are. Two functions never answer at one address, none outside the window,
// and config space stays reachable.
func FuzzConfigSpace(f *testing.F) {
	f.Add([]byte{0x80, 0x04, 2, 6, 0x80, 0x10, 4, 0xff})
	f.Add([]byte{0x80, 0x04, 2, 6, 0x01, 0x04, 2, 6, 0x01, 0x12, 1, 0})
	f.Add([]byte{0x80, 0x42, 2, 0xff, 0x80, 0x40, 8, 0xff, 0x80, 0xfd, 8, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		h := &host{}
		fns := []*function{newFunction(h, 1, 0x2000), newFunction(h, 2, 0x4000), newFunction(h, 3, 0)}
		g := newGuest(t, fns...)
		for ; len(script) >= 4; script = script[4:] {
			device, at := int(script[0]>>6), uint64(script[1])|uint64(script[0]&0x3f)<<8
			n := 1 + int(script[2]&7)
			v := uint64(script[3]) * 0x0101010101010101
			if script[2]&8 != 0 {
				v = uint64(script[3]) << (8 * (script[2] >> 4 & 7))
			}
			g.put(config(device)+at, n, v)
			g.get(config(device)+at, n)
			for _, fn := range fns {
				if !fn.mapped {
					continue
				}
				if fn.bar < start || fn.bar >= start+size {
					t.Fatalf("function %d answers at %#x", fn.number, fn.bar)
				}
				if got := g.get(fn.bar, 1); got != uint64(fn.number) {
					t.Fatalf("function %d answers in place of %d", got, fn.number)
				}
				g.put(fn.bar+0x1000+at%0x7f8, n, v)
				fn.msix.Signal(int(script[3]))
			}
			if g.get(config(1), 4) != 0x00011234 {
				t.Fatal("config space is gone")
			}
		}
		for _, fn := range fns {
			if err := fn.msix.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for _, v := range h.vectors {
			if !v.closed.Load() {
				t.Fatal("a vector is left")
			}
		}
	})
}
