package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"disco/vmm"
)

// TestKVMSharedBlocks has guests of one monitor read the same blocks of an image:
// all of them map the same pages, and who writes to one has it for itself.
func TestKVMSharedBlocks(t *testing.T) {
	const pages, stored = 16, 3
	data := make([]byte, 1<<20)
	var sum uint64
	for i := 0; i < len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], uint64(i)*0x9e3779b97f4a7c15+1)
		if i < pages*pageSize && i%pageSize == 0 {
			sum += binary.LittleEndian.Uint64(data[i:])
		}
	}
	path := filepath.Join(t.TempDir(), "base.img")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMonitor(t)
	boot := func(overlay vmm.Overlay, share vmm.ShareMode, store int) (*running, *screen) {
		cfg, s := config(t, "disk", fmt.Sprintf("pages=%d store=%d", pages, store))
		cfg.Disks = []vmm.Disk{{Path: path, ReadOnly: overlay == vmm.OverlayNone, Overlay: overlay, Share: share}}
		cfg.CPUs = 2 // so two queues
		return launchIn(t, m, cfg), s
	}
	read := fmt.Sprintf("disk: read %x\n", sum)
	first := binary.LittleEndian.Uint64(data[stored*pageSize:])
	wrote := read + fmt.Sprintf("disk: stored %x\n", sum-first+1)
	for i, c := range []struct {
		overlay vmm.Overlay
		share   vmm.ShareMode
		store   int
		says    string
		shared  uint64
	}{
		{vmm.OverlayNone, vmm.ShareAlways, pages, read, pages},
		{vmm.OverlayMemory, vmm.ShareAlways, stored, wrote, pages - 1},
		{vmm.OverlayMemory, vmm.ShareAuto, pages, read, pages},
		{vmm.OverlayMemory, vmm.ShareNever, stored, wrote, 0},
	} {
		g, s := boot(c.overlay, c.share, c.store)
		eventually(t, func() bool { return len(s.String()) >= len(c.says) })
		if s.String() != c.says {
			t.Errorf("guest %d says %q, want %q", i, s, c.says)
		}
		if st := g.guest.Space().Stats(); st.SharedPages != c.shared {
			t.Errorf("guest %d: %+v", i, st)
		}
	}
	// The others are as they were.
	for i, g := range m.Guests() {
		if st := g.Space().Stats(); st.Unshared > 1 || i != 1 && st.Unshared != 0 {
			t.Errorf("guest %d: %+v", i, st)
		}
	}
	if s := m.CacheStats(); s.BytesMapped != 3*pages*pageSize || s.BytesCopied != pages*pageSize || s.Misses > pages {
		t.Errorf("%+v", s)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, data) {
		t.Errorf("the image was changed (%v)", err)
	}
}

// TestKVMSharedRounds has several guests read the same blocks and write to what
// they read, over and over, side by side: each finds what it should.
func TestKVMSharedRounds(t *testing.T) {
	const pages, rounds, guests = 40, 60, 3
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * 31 >> 3)
	}
	path := filepath.Join(t.TempDir(), "base.img")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMonitor(t)
	var running []*screen
	for i := range guests {
		cfg, s := config(t, "disk", fmt.Sprintf("pages=%d rounds=%d", pages, rounds))
		cfg.Disks = []vmm.Disk{{Path: path, Overlay: vmm.OverlayMemory, Share: []vmm.ShareMode{vmm.ShareAlways, vmm.ShareAuto}[i%2]}}
		running = append(running, s)
		launchIn(t, m, cfg)
	}
	const last = "disk: all rounds\n"
	for i, s := range running {
		eventually(t, func() bool { return strings.Count(s.String(), "\n") == 2 })
		if !strings.HasSuffix(s.String(), last) {
			t.Errorf("guest %d says %q", i, s)
		}
	}
	for i, g := range m.Guests() {
		if st := g.Space().Stats(); i == 0 && st.Unshared < rounds {
			t.Errorf("guest %d: %+v", i, st)
		}
	}
}

// TestKVMSharedKernel has guests of one kernel map the pages of its constants: who
// writes to one has it for itself, and a guest that shares nothing has all of them.
func TestKVMSharedKernel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "base.img")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMonitor(t)
	for i, c := range []struct {
		share  vmm.ShareMode
		words  string
		says   string
		shared uint64
	}{
		{vmm.ShareAlways, "", "constants: 1234\n", 3},
		{vmm.ShareAuto, "store=0x4321", "constants: 1234\nconstants: stored 5321\n", 2},
		{vmm.ShareAlways, "", "constants: 1234\n", 3},
		{vmm.ShareNever, "store=1", "constants: 1234\nconstants: stored 1001\n", 0},
	} {
		cfg, s := config(t, "constants", c.words)
		cfg.Disks = []vmm.Disk{{Path: path, Overlay: vmm.OverlayMemory, Share: c.share}}
		g := launchIn(t, m, cfg)
		eventually(t, func() bool { return len(s.String()) >= len(c.says) })
		if s.String() != c.says {
			t.Errorf("guest %d says %q, want %q", i, s, c.says)
		}
		if st := g.guest.Space().Stats(); st.SharedPages != c.shared {
			t.Errorf("guest %d: %+v, want %d pages shared", i, st, c.shared)
		}
	}
	if s := m.CacheStats(); s.BytesMapped != 3*3*pageSize {
		t.Errorf("%+v", s)
	}
}
