package boot

import (
	"slices"
	"testing"

	"disco/memory"
)

const gib = 1 << 30

func TestRAM(t *testing.T) {
	for _, c := range []struct {
		size     uint64
		ram      []memory.Range
		window64 memory.GPA
	}{
		{0, nil, 4 * gib},
		{64 << 20, []memory.Range{{Start: 0, Size: 64 << 20}}, 4 * gib},
		{3 * gib, []memory.Range{{Start: 0, Size: 3 * gib}}, 4 * gib},
		{3*gib + 4096, []memory.Range{{Start: 0, Size: 3 * gib}, {Start: 4 * gib, Size: 4096}}, 5 * gib},
		{8 * gib, []memory.Range{{Start: 0, Size: 3 * gib}, {Start: 4 * gib, Size: 5 * gib}}, 9 * gib},
	} {
		ram := RAM(c.size)
		if !slices.Equal(ram, c.ram) {
			t.Errorf("RAM(%#x) = %v, want %v", c.size, ram, c.ram)
		}
		if w := Window64(ram); w.Start != c.window64 || w.Size != Window64Size {
			t.Errorf("Window64 of %#x bytes = %v, want it at %#x", c.size, w, c.window64)
		}
	}
}

func TestMemoryMap(t *testing.T) {
	want := []mapEntry{
		{0, 0xA0000, e820RAM},
		{0xA0000, 0x60000, e820Reserved},
		{0x100000, 3*gib - 0x100000, e820RAM},
		{ECAM, ECAMSize, e820Reserved},
		{4 * gib, gib, e820RAM},
	}
	if got := memoryMap(RAM(4 * gib)); !slices.Equal(got, want) {
		t.Errorf("map of 4 GiB:\n got %x\nwant %x", got, want)
	}
	want = []mapEntry{{0, 0x8000, e820RAM}, {ECAM, ECAMSize, e820Reserved}}
	if got := memoryMap(RAM(0x8000)); !slices.Equal(got, want) {
		t.Errorf("map of 32 KiB:\n got %x\nwant %x", got, want)
	}
}
