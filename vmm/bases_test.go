package vmm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/disk"
)

// cachedPages is how many pages of a file the host's page cache has.
func cachedPages(t *testing.T, path string, size int) (n int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	there := make([]byte, size/4096)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(size), uintptr(unsafe.Pointer(&there[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, x := range there {
		n += int(x & 1)
	}
	return n
}

// TestHostBaseIsInMemoryOnce reads an image through the cache, and looks whether
// the host's page cache has it, too: past it, and where that can not be done.
func TestHostBaseIsInMemoryOnce(t *testing.T) {
	const size = 4 << 20
	path := filepath.Join(t.TempDir(), "image")
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := errors.Join(file.Sync(), unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
	if n := cachedPages(t, path, size); n != 0 {
		t.Fatalf("%d pages are cached at first", n)
	}
	s := &bases{size: 64 << 20}
	b, err := s.get(Disk{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.get(Disk{Path: filepath.Join(filepath.Dir(path), ".", "image"), ReadOnly: true})
	if err != nil || again != b {
		t.Fatalf("the same image is opened twice (%v)", err)
	}
	got := make([]byte, size)
	if err := b.ReadV([][]byte{got}, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read other bytes (%v)", err)
	}
	if n := cachedPages(t, path, size); n > 64 { // what was around its first bytes, when it was found out what it is
		t.Errorf("the host's page cache has %d pages of the image, too", n)
	}
	if err := errors.Join(b.WriteV(nil, 0), b.Discard(0, 512), b.WriteZeroes(0, 512, true)); !errors.Is(err, unix.EROFS) {
		t.Errorf("written to: %v", err)
	}

	img, err := disk.Open(path, disk.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	f := &forgotten{disk.NewBase(img), file, true}
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Error(err)
	}
	if cachedPages(t, path, size) == 0 {
		t.Error("nothing to be forgotten")
	}
	f.Forget(0, size)
	if n := cachedPages(t, path, size); n != 0 {
		t.Errorf("%d pages were not forgotten", n)
	}

	if err := s.put(again); err != nil {
		t.Error(err)
	}
	if s.close() == nil {
		t.Error("closed while an image is open")
	}
	if err := errors.Join(s.put(b), s.close(), s.close()); err != nil {
		t.Error(err)
	}
}

// TestHostBaseOutlivesItsDisk: an image whose pages a guest still has, which another
// sent it, stays until it has none, and is found again by who opens it meanwhile.
func TestHostBaseOutlivesItsDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, bytes.Repeat([]byte("page"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &bases{size: 64 << 20}
	b, err := s.get(Disk{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	run, _ := b.Lend(0, 1<<16)
	arena := run.Arena
	arena.Hold(run.Page, run.N)
	b.Return(run, run.N)
	if err := s.put(b); err != nil || len(s.open) != 1 {
		t.Fatalf("%d images are open while a guest maps pages, %v", len(s.open), err)
	}
	if s.close() == nil {
		t.Error("the cache was closed under a guest")
	}
	again, err := s.get(Disk{Path: path})
	if err != nil || again != b {
		t.Errorf("an image that is there is opened once more (%v)", err)
	}
	if err := s.put(again); err != nil || !bytes.HasPrefix(arena.Bytes()[run.Page<<12:], []byte("page")) {
		t.Errorf("the pages are others (%v)", err)
	}
	arena.Release(run.Page, run.N)
	if err := errors.Join(s.sweep(), s.close()); err != nil || len(s.open) != 0 {
		t.Errorf("%d images are open, %v", len(s.open), err)
	}
}

// TestHostBasesAtOnce: guests come and go at the same time, with the disk and without.
func TestHostBasesAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &bases{size: 64 << 20}
	var guests sync.WaitGroup
	for range 4 {
		guests.Go(func() {
			for range 50 {
				b, err := s.get(Disk{Path: path})
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.put(b); err != nil {
					t.Error(err)
				}
			}
		})
		guests.Go(func() {
			for range 50 {
				if err := s.sweep(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	guests.Wait()
	if err := s.close(); err != nil || len(s.open) != 0 {
		t.Errorf("%d images are open, %v", len(s.open), err)
	}
}
