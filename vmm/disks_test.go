package vmm

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"disco/memory/arena"
	"disco/virtio/blk"
)

// TestHostKeptOverlay: an overlay that is kept reads the same lent or copied, is
// there when it is opened again, and leaves its base alone. Needs memfd.
func TestHostKeptOverlay(t *testing.T) {
	const size = 3<<20 + 512
	dir := t.TempDir()
	was := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range was {
		was[i] = byte(rng.Uint32())
	}
	d := Disk{Path: filepath.Join(dir, "base"), Overlay: OverlayPersist, Persist: filepath.Join(dir, "over"), IOPS: 1 << 30, BPS: 1 << 50}
	if err := os.WriteFile(d.Path, was, 0o600); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(was)
	for round := range 3 {
		shared := &bases{size: 4 << 20}
		b := &backends{bases: shared}
		img, err := b.layers(d)
		if err != nil {
			t.Fatal(err)
		}
		lender, ok := img.(blk.Lender)
		if !ok {
			t.Fatalf("a %T lends nothing", img)
		}
		lent := 0
		for off := int64(0); off < size&^4095; {
			r, skip := lender.Lend(off, size&^4095-off)
			if r.N > 0 {
				if got := r.Arena.Bytes()[r.Page*arena.PageSize:][:r.N*arena.PageSize]; !bytes.Equal(got, want[off:][:len(got)]) {
					t.Fatalf("round %d: what is lent at %d differs", round, off)
				}
				lender.Return(r, 0)
				lent += r.N
				skip = int64(r.N) * arena.PageSize
			}
			if off += skip; skip <= 0 || off > size {
				t.Fatalf("round %d: it skips %d to %d", round, skip, off)
			}
		}
		if lent == 0 {
			t.Errorf("round %d: nothing was lent", round)
		}
		got := make([]byte, size)
		if err := img.ReadV([][]byte{got}, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("round %d: it reads as something else (%v)", round, err)
		}
		part := want[round<<20|512:][:70000&^511]
		for i := range part {
			part[i] = byte(rng.Uint32())
		}
		if err := errors.Join(img.WriteV([][]byte{part}, int64(round)<<20|512), img.Flush(), b.close(), shared.close()); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(d.Path); err != nil || !bytes.Equal(got, was) {
		t.Errorf("the base has changed (%v)", err)
	}
	if err := os.WriteFile(d.Path, was[:size-512], 0o600); err != nil {
		t.Fatal(err)
	}
	shared := &bases{size: 4 << 20}
	b := &backends{bases: shared}
	if _, err := b.layers(d); err == nil || !strings.Contains(err.Error(), "has changed since the overlay was made") {
		t.Errorf("on a base that has changed: %v", err)
	}
	if err := errors.Join(b.close(), shared.close()); err != nil {
		t.Error(err)
	}
}
