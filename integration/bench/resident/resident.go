// Package resident is how much memory there really is: what the kernel counts of
// files and processes, for benchmarks of memory.
package resident

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memfds is the memory of all memfds that this process has open, in bytes, by the
// kernel's count of each file's blocks, mapped or not.
func Memfds() (uint64, error) {
	const dir = "/proc/self/fd"
	links, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	seen := map[uint64]bool{}
	var total uint64
	for _, l := range links {
		path := filepath.Join(dir, l.Name())
		to, err := os.Readlink(path)
		if errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(to, "/memfd:") {
			continue // closed meanwhile, or another kind
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return 0, fmt.Errorf("%s: %w", to, err)
		}
		if !seen[st.Ino] {
			seen[st.Ino] = true
			total += uint64(st.Blocks) * 512
		}
	}
	return total, nil
}

// Rollup is the memory of a process as /proc/PID/smaps_rollup adds it up: by what
// is counted, as Pss_Anon, in bytes. Pages that several processes have are shared out among them.
func Rollup(pid string) (map[string]uint64, error) {
	b, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	if err != nil {
		return nil, err
	}
	return sizes(string(b))
}

func sizes(text string) (map[string]uint64, error) {
	m := map[string]uint64{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue // the line of the address
		}
		n, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		m[strings.TrimSuffix(f[0], ":")] = n << 10
	}
	for _, key := range []string{"Pss", "Pss_Anon", "Pss_File"} {
		if _, ok := m[key]; !ok {
			return nil, fmt.Errorf("smaps_rollup without %s: it takes Linux 5.9 or later", key)
		}
	}
	return m, nil
}

// Mappings is how many this process has.
func Mappings() (uint64, error) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := uint64(0)
	b := make([]byte, 64<<10)
	for {
		k, err := f.Read(b)
		for _, c := range b[:k] {
			if c == '\n' {
				n++
			}
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// Cached is how many bytes of a file are in the host's page cache, in whole pages.
func Cached(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return 0, err
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("%s: mmap: %w", path, err)
	}
	defer func() { _ = unix.Munmap(p) }()
	page := os.Getpagesize()
	there := make([]byte, (len(p)+page-1)/page)
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(unsafe.Pointer(unsafe.SliceData(there)))); e != 0 {
		return 0, fmt.Errorf("%s: mincore: %w", path, e)
	}
	n := uint64(0)
	for _, b := range there {
		n += uint64(b & 1)
	}
	return n * uint64(page), nil
}
