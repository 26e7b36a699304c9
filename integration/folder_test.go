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

// folderFile makes a folder with a file f whose pages begin with different words,
// and gives their sum.
func folderFile(t testing.TB, size, pages int) (dir string, sum uint64) {
	t.Helper()
	dir = t.TempDir()
	data := make([]byte, size)
	for i := range size / pageSize {
		v := uint64(i)*0x9e3779b97f4a7c15 + 1
		binary.LittleEndian.PutUint64(data[i*pageSize:], v)
		if i < pages {
			sum += v
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, sum
}

// TestKVMFolder has several guests of one monitor map the same file: each reads it
// and stores to it, without a copy by the monitor. When the file shrinks, the one
// that looks behind its end goes on, and so do the others.
func TestKVMFolder(t *testing.T) {
	const pages, guests = 16, 3
	dir, sum := folderFile(t, 2<<20, pages)
	m := newMonitor(t)
	var running []*running
	var screens []*screen
	says := fmt.Sprintf("folder: read %x\n", sum)
	for i := range guests {
		text := fmt.Sprintf("pages=%d", pages)
		if i == 0 {
			text += " gone=300 hole=1"
		}
		cfg, s := config(t, "folder", text)
		cfg.Folders = []vmm.Folder{{Path: dir, Tag: "t", Window: 4 << 20}}
		g := launchIn(t, m, cfg)
		eventually(t, func() bool { return len(s.String()) >= len(says) })
		if s.String() != says {
			t.Fatalf("guest %d says %q, want %q", i, s, says)
		}
		running, screens = append(running, g), append(screens, s)
	}
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	if err != nil || binary.LittleEndian.Uint64(got[8:]) != sum || !bytes.Equal(got[16:pageSize], make([]byte, pageSize-16)) {
		t.Errorf("the file has %x, %v", got[:24], err)
	}
	for i, g := range running {
		if s := g.guest.FolderStats(); len(s) != 1 || s[0].Mapped != 2<<20 || s[0].Read != 0 || s[0].BadRequests != 0 {
			t.Errorf("guest %d: %+v", i, s)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "f"), 100*pageSize); err != nil {
		t.Fatal(err)
	}
	// What it sees: zeros where KVM could not reach the page, ones where it took
	// the access for one to a device. A hole ends it, or gives ones.
	first := running[0]
	eventually(t, func() bool {
		select {
		case <-first.done:
			return true
		default:
			return strings.Contains(screens[0].String(), "in a hole is ffffffffffffffff\n")
		}
	})
	if text := screens[0].String(); !strings.Contains(text, "folder: changed to 0\n") && !strings.Contains(text, "folder: changed to ffffffffffffffff\n") {
		t.Errorf("the first guest says %q", text)
	}
	for i, g := range running[1:] {
		select {
		case <-g.done:
			t.Errorf("guest %d is gone", i+1)
		default:
		}
	}
}
