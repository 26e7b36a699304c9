package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"disco/integration/guest"
)

// testDisk makes a disk image that holds PatternHost.
func testDisk(t testing.TB, name string, size int) string {
	t.Helper()
	p := make([]byte, size)
	guest.Pattern(p, guest.PatternHost, 0)
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// holds checks that an image holds a pattern, and nothing else.
func holds(t testing.TB, path string, size int, seed uint32) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	guest.Pattern(want, seed, 0)
	if !bytes.Equal(got, want) {
		t.Errorf("%s does not hold the pattern %#x", filepath.Base(path), seed)
	}
}

// TestLabDisks has a guest read and write disks, and looks at the images.
func TestLabDisks(t *testing.T) {
	// A size that is no round number, and one below a page.
	const size, small = 12<<20 + 5*guest.SectorSize, 3 * guest.SectorSize
	written, readOnly := testDisk(t, "written", size), testDisk(t, "read-only", size)
	zeroed, tiny := testDisk(t, "zeroed", size), testDisk(t, "tiny", small)
	l := bootGuest(t, "hello,disk=vda,disk-readonly=vdb,disk-zero=vdc,disk=vdd",
		"--cpus", "2", "--memory", "256M", "--net", "none",
		"--disk", written, "--disk", readOnly+",ro", "--disk", zeroed, "--disk", tiny)
	l.ends(0)
	l.did("hello", "disk", "disk-readonly", "disk-zero")
	if got := l.number("cpus"); got != 2 {
		t.Errorf("%d CPUs, want 2", got)
	}
	holds(t, written, size, guest.PatternGuest)
	holds(t, readOnly, size, guest.PatternHost)
	holds(t, tiny, small, guest.PatternGuest)
	got, err := os.ReadFile(zeroed)
	if err != nil {
		t.Fatal(err)
	}
	// What was discarded may hold anything.
	half := size / 2 &^ (guest.SectorSize - 1)
	if len(got) != size || !bytes.Equal(got[:half], make([]byte, half)) {
		t.Errorf("of %d bytes, the first %d are not all zeroes", len(got), half)
	}
}
