package share

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// memfds is the memory of all memfds that this process has open, in bytes, by the
// kernel's count of each file's blocks, mapped or not.
func memfds() (uint64, error) {
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

// rollup is the memory of a process as /proc/PID/smaps_rollup adds it up: by what
// is counted, in bytes. Pages that several processes have are shared out among them.
func rollup(pid string) (map[string]uint64, error) {
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

// mappings is how many this process has.
func mappings() (uint64, error) {
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
