package virtio_test

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"disco/memory"
	"disco/virtio"
)

// sharing is a device with a shared memory region.
type sharing struct {
	echo
	memory []byte
}

func (d *sharing) SharedMemory() (uint8, []byte) { return 7, d.memory }

// TestSharedMemory: the capability says where the region is, and it is mapped where
// the driver puts the BAR (virtio 1.2 §4.1.4.7).
func TestSharedMemory(t *testing.T) {
	const high = 8 << 30
	h := newHost(t)
	h.root.SetHigh(high, 1<<30)
	space, err := memory.New("virtio-test", []memory.Range{{Size: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	dev := &sharing{echo: echo{queues: []uint16{8}}, memory: make([]byte, 1<<20)}
	tr, err := virtio.NewTransport(dev, space, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.root.Add(tr); err != nil {
		t.Fatal(err)
	}
	config := make([]byte, 256)
	for i := range config {
		h.mmio.Read(ecam+1<<15+uint64(i), config[i:i+1])
	}
	le := binary.LittleEndian
	found := false
	for at := config[0x34]; at != 0; at = config[at+1] {
		if c := config[at:]; c[0] == 9 && c[3] == 8 {
			found = true
			if c[2] != 24 || c[4] != 2 || c[5] != 7 || le.Uint32(c[8:]) != 0 || le.Uint32(c[12:]) != 1<<20 || le.Uint64(c[16:]) != 0 {
				t.Errorf("capability %x", c[:24])
			}
		}
	}
	if !found {
		t.Error("no capability of a shared memory region")
	}
	if bar := le.Uint64(config[0x18:]); bar != high|0xc {
		t.Errorf("BAR 2 is %#x", bar)
	}
	command := func(v byte) { h.mmio.Write(ecam+1<<15+4, []byte{v, 0}) }
	command(2)
	command(0)
	h.refuse = errors.New("no")
	command(2) // it is nowhere, and that is told in the log
	command(0)
	h.refuse = nil
	command(2)
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	want := []string{"0x200000000+0x100000", "not 0x200000000+0x100000", "0x200000000+0x100000", "not 0x200000000+0x100000"}
	if !slices.Equal(h.memory, want) {
		t.Errorf("%q", h.memory)
	}
}
