package vmm

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"disco/disk"
)

// TestSectors reads every range near the sectors' ends.
func TestSectors(t *testing.T) {
	const size = 4 * 512
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i * 7)
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	raw, err := disk.OpenRaw(path, true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	s := &sectors{raw}
	edges := []int{0, 1, 511, 512, 513, 1023, 1024, 1025, 1536, size - 1, size}
	for _, from := range edges {
		for _, to := range edges {
			if from > to {
				continue
			}
			p := make([]byte, to-from)
			n, err := s.ReadAt(p, int64(from))
			if from == size {
				if n != 0 || err != io.EOF {
					t.Errorf("at the end: %d, %v", n, err)
				}
				continue
			}
			if n != len(p) || err != nil || !bytes.Equal(p, want[from:to]) {
				t.Errorf("%d to %d: %d, %v, or other bytes", from, to, n, err)
			}
		}
	}
	p := make([]byte, 100)
	if n, err := s.ReadAt(p, size-10); n != 10 || err != io.EOF || !bytes.Equal(p[:10], want[size-10:]) {
		t.Errorf("past the end: %d, %v", n, err)
	}
	if _, err := s.ReadAt(p, -1); err == nil {
		t.Error("a negative offset is read")
	}
}

func TestOpenRootFindsNothing(t *testing.T) {
	path := file(t, "empty.img", 1<<20)
	raw, err := disk.OpenRaw(path, true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_, err = openRoot(&Config{Disks: []Disk{{Path: path}}}, raw)
	if err == nil || !strings.Contains(err.Error(), "root "+path+": no kernel found in it") || !strings.Contains(err.Error(), "give --kernel") {
		t.Errorf("%v", err)
	}
}
