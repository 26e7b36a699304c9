package pci_test

import (
	"slices"
	"testing"

	"disco/devices/pci"
)

// region is a function with a BAR 2 and nothing else.
type region struct {
	config *pci.Config
	at     []uint64 // where it was mapped; 0 is nowhere
}

func newRegion(size uint64) *region {
	return &region{config: pci.NewConfig(pci.Header{Vendor: 0x1234, Memory: size})}
}

func (r *region) Config() *pci.Config { return r.config }
func (*region) Moved(uint64, bool)    {}
func (*region) Read(uint64, []byte)   {}
func (*region) Write(uint64, []byte)  {}
func (r *region) last() uint64        { return r.at[len(r.at)-1] }
func (r *region) MovedMemory(base uint64, mapped bool) {
	if !mapped {
		base = 0
	}
	r.at = append(r.at, base)
}

const (
	high     = 8 << 30
	highSize = 4 << 30
)

func TestMemoryBAR(t *testing.T) {
	const mib = 1 << 20
	g := &guest{}
	root := pci.NewRoot(&g.Bus, start, size)
	root.SetHigh(high, highSize)
	if err := g.Add(ecam, pci.ECAMSize, root); err != nil {
		t.Fatal(err)
	}
	a, b, huge := newRegion(2*mib), newRegion(1<<30), newRegion(8<<30)
	for _, r := range []*region{a, b} {
		if err := root.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.Add(huge); err == nil {
		t.Error("a region larger than the window was placed")
	}
	const bar2, command = 0x18, 4
	bar := func(device int) uint64 { return g.get(config(device)+bar2, 8) }
	// 64 bits, prefetchable, each aligned to its size.
	if bar(1) != high|0xc || bar(2) != high+1<<30|0xc {
		t.Errorf("BARs 2 are %#x and %#x", bar(1), bar(2))
	}
	g.put(config(2)+bar2, 4, 0xffffffff)
	g.put(config(2)+bar2+4, 4, 0xffffffff)
	if got := bar(2); got != ^uint64(1<<30-1)|0xc {
		t.Errorf("its size reads as %#x", got)
	}
	g.put(config(2)+bar2, 8, high)
	if a.at != nil || b.at != nil {
		t.Errorf("mapped before decoding is on: %v, %v", a.at, b.at)
	}
	g.put(config(1)+command, 2, 2)
	if a.last() != high {
		t.Errorf("mapped at %#x", a.last())
	}
	// Over another, outside and out of the address space it is nowhere.
	g.put(config(2)+command, 2, 2)
	if b.at != nil {
		t.Errorf("mapped over another: %#x", b.at)
	}
	for _, base := range []uint64{0, 1 << 30, high - 1<<30, high + highSize, ^uint64(0) &^ (1<<30 - 1)} {
		g.put(config(2)+bar2, 8, base)
		if b.at != nil {
			t.Errorf("mapped at %#x", b.at)
		}
	}
	g.put(config(2)+bar2, 8, high)
	g.put(config(1)+bar2, 8, high+2<<30) // makes way
	if a.last() != high+2<<30 || b.last() != high {
		t.Errorf("mapped at %#x and %#x", a.last(), b.last())
	}
	g.put(config(1)+command, 2, 0)
	if !slices.Equal(a.at, []uint64{high, 0, high + 2<<30, 0}) {
		t.Errorf("it was mapped at %#x", a.at)
	}
}
