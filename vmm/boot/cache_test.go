package boot

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// elfKernel is an ELF kernel of one segment at 16 MiB, half of it zeros.
func elfKernel() []byte {
	data := make([]byte, 256<<10)
	copy(data, "code")
	copy(data[200<<10:], "data")
	return makeELF(16<<20, 0, seg{phys: 16 << 20, data: data, memSize: 1 << 20})
}

// bzImageOf is a bzImage whose payload is image, by gzip.
func bzImageOf(t *testing.T, image []byte) []byte {
	t.Helper()
	return makeBzImage(pack(t, image, packGzip))
}

// kernelFile writes a kernel to a fresh folder.
func kernelFile(t *testing.T, image []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// cacheFolder points the cache at a fresh folder.
func cacheFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", dir)
	return filepath.Join(dir, "disco", "kernels")
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var n []string
	for _, f := range files {
		n = append(n, f.Name())
	}
	return n
}

// openAndLoad opens the kernel at path and checks that it is elfKernel.
func openAndLoad(t *testing.T, path string) {
	t.Helper()
	k, f, err := OpenUnpacked(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if k.Packed() {
		t.Fatal("the kernel is still packed")
	}
	m, e := load(t, &Params{Kernel: k, RAM: RAM(32 << 20), CPUs: 1})
	if e.RIP != 16<<20 || string(m.at(16<<20, 4)) != "code" || string(m.at(16<<20+200<<10, 4)) != "data" {
		t.Error("what was loaded is not the kernel")
	}
}

func TestOpenKernelAsItIs(t *testing.T) {
	dir := cacheFolder(t)
	for _, c := range []struct {
		name   string
		image  []byte
		open   func(string) (*Kernel, *os.File, error)
		packed bool
	}{
		{"ELF to unpack", elfKernel(), OpenUnpacked, false},
		{"ELF", elfKernel(), OpenKernel, false},
		{"bzImage", bzImageOf(t, elfKernel()), OpenKernel, true},
	} {
		k, f, err := c.open(kernelFile(t, c.image))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if k.Packed() != c.packed {
			t.Errorf("%s: packed is %v", c.name, k.Packed())
		}
		if err := f.Close(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if n := names(t, dir); n != nil {
		t.Errorf("the cache has %v, and nothing was unpacked", n)
	}
}

func TestHostKernelCache(t *testing.T) {
	dir := cacheFolder(t)
	path := kernelFile(t, bzImageOf(t, elfKernel()))
	openAndLoad(t, path)
	n := names(t, dir)
	if len(n) != 1 {
		t.Fatalf("the cache has %v, want one entry", n)
	}
	entry := filepath.Join(dir, n[0])
	first, err := os.Stat(entry)
	if err != nil {
		t.Fatal(err)
	}
	if first.Size() > int64(len(elfKernel()))/2 {
		t.Errorf("the entry has %d bytes: the zeros are in it", first.Size())
	}

	openAndLoad(t, path)
	if again, err := os.Stat(entry); err != nil || !os.SameFile(first, again) {
		t.Errorf("the entry was made again (%v)", err)
	}

	for _, c := range []struct {
		name   string
		damage func() error
	}{
		{"truncated", func() error { return os.Truncate(entry, first.Size()-1) }},
		{"empty", func() error { return os.Truncate(entry, 0) }},
		{"zeros", func() error { return os.WriteFile(entry, make([]byte, first.Size()), 0o600) }},
		{"a packed kernel", func() error { return os.WriteFile(entry, bzImageOf(t, elfKernel()), 0o600) }},
	} {
		if err := c.damage(); err != nil {
			t.Fatal(err)
		}
		openAndLoad(t, path)
		if st, err := os.Stat(entry); err != nil || st.Size() != first.Size() {
			t.Errorf("%s: the entry was not made again (%v)", c.name, err)
		}
	}

	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	openAndLoad(t, path)
	if n := names(t, dir); len(n) != 2 {
		t.Errorf("the cache has %v after the kernel changed, want two entries", n)
	}
}

func TestHostKernelWithoutCache(t *testing.T) {
	path := kernelFile(t, bzImageOf(t, elfKernel()))
	t.Run("no home", func(t *testing.T) {
		t.Setenv("XDG_CACHE_HOME", "")
		t.Setenv("HOME", "")
		openAndLoad(t, path)
	})
	t.Run("not a folder", func(t *testing.T) {
		t.Setenv("XDG_CACHE_HOME", path)
		openAndLoad(t, path)
	})
}

func TestHostKernelCacheStaysSmall(t *testing.T) {
	dir := cacheFolder(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	age := func(name string, by time.Duration) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-by)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6 {
		age(string(rune('a'+i))+cacheSuffix, time.Duration(i+1)*time.Minute)
	}
	age("old"+tempSuffix, 2*cacheStale)
	age("new"+tempSuffix, 0)
	age("README", 1000*time.Hour)
	openAndLoad(t, kernelFile(t, bzImageOf(t, elfKernel())))
	got := strings.Join(names(t, dir), " ")
	for _, name := range []string{"a.vmlinux", "b.vmlinux", "c.vmlinux", "new.tmp", "README"} {
		if !strings.Contains(got, name) {
			t.Errorf("%s is gone", name)
		}
	}
	if n := strings.Count(got, cacheSuffix); n != cacheKeep || strings.Contains(got, "old") {
		t.Errorf("the cache has %s, want %d entries and no stale file", got, cacheKeep)
	}
}

func TestHostOpenKernelRefuses(t *testing.T) {
	dir := cacheFolder(t)
	damaged := bzImageOf(t, elfKernel())
	copy(damaged[len(damaged)-60:], bytes.Repeat([]byte{0xFF}, 30))
	for _, c := range []struct {
		name string
		path string
		want string
	}{
		{"absent", "/nowhere/vmlinuz", "kernel /nowhere/vmlinuz: no such file or directory"},
		{"folder", t.TempDir(), "is a directory"},
		{"text", kernelFile(t, []byte("hello")), "is not a kernel; give an x86-64 bzImage or vmlinux"},
		{"damaged", kernelFile(t, damaged), "cannot be unpacked: gzip: "},
		{"no ELF inside", kernelFile(t, bzImageOf(t, []byte("hello"))), "is not a kernel"},
		{"bzImage inside", kernelFile(t, bzImageOf(t, bzImageOf(t, elfKernel()))), "is not an ELF"},
	} {
		before := len(names(t, "/proc/self/fd"))
		k, f, err := OpenUnpacked(c.path)
		if err == nil || k != nil || f != nil {
			t.Errorf("%s: opened", c.name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q, want %q in it and one line", c.name, err, c.want)
		}
		if after := len(names(t, "/proc/self/fd")); after != before {
			t.Errorf("%s: %d open files became %d", c.name, before, after)
		}
	}
	if n := names(t, dir); n != nil {
		t.Errorf("the cache has %v after failures", n)
	}
}

// TestOpenUnpackedAt opens a kernel that lies in something larger, and finds it
// unpacked under whichever name it comes again.
func TestOpenUnpackedAt(t *testing.T) {
	dir := cacheFolder(t)
	packed := bzImageOf(t, elfKernel())
	for _, c := range []struct {
		name  string
		image []byte
		file  bool
		want  int // entries in the cache
	}{
		{"one", packed, true, 1},
		{"another", packed, true, 1},
		{"an ELF", elfKernel(), false, 1},
		{"a newer one", append(bytes.Clone(packed), make([]byte, 512)...), true, 2},
	} {
		k, f, err := OpenUnpackedAt(c.name, bytes.NewReader(c.image), int64(len(c.image)))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if (f != nil) != c.file || k.Packed() || len(names(t, dir)) != c.want {
			t.Errorf("%s: a file %v, packed %v, cache %v", c.name, f != nil, k.Packed(), names(t, dir))
		}
		if _, e := load(t, &Params{Kernel: k, RAM: RAM(32 << 20), CPUs: 1}); e.RIP != 16<<20 {
			t.Errorf("%s: it is another kernel", c.name)
		}
		if f != nil {
			f.Close()
		}
	}
	if _, _, err := OpenUnpackedAt("initrd", strings.NewReader("070701"), 6); err == nil || !strings.Contains(err.Error(), "kernel initrd: is a cpio archive") {
		t.Errorf("an initrd: %v", err)
	}
}
