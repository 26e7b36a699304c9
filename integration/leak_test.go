package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"disco/vmm"
)

// TestMain fails the run if the tests left a file open, a goroutine, a child
// process or a temporary file behind.
func TestMain(m *testing.M) {
	os.Exit(checked(m))
}

func checked(m *testing.M) int {
	warmUp()
	before := takeInventory()
	code := m.Run()
	var left []string
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if left = takeInventory().beyond(before); len(left) == 0 {
			return code
		}
		if time.Now().After(end) {
			break
		}
	}
	fmt.Fprintf(os.Stderr, "the tests left behind:\n\t%s\n", strings.Join(left, "\n\t"))
	if code == 0 {
		code = 1
	}
	return code
}

// warmUp has the Go runtime open what it opens once and keeps.
func warmUp() {
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	r.Close()
	w.Close()
}

// inventory is what a process holds that a test could leave behind.
type inventory struct {
	files      map[string]int // what open descriptors point at
	temporary  []string
	children   []string
	goroutines int
}

func takeInventory() inventory {
	v := inventory{files: map[string]int{}, goroutines: runtime.NumGoroutine()}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			v.files[kindOf(to)]++
		}
	}
	v.temporary, _ = filepath.Glob(filepath.Join(os.TempDir(), "*disco*"))
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		v.children = append(v.children, strings.Fields(string(b))...)
	}
	return v
}

// kindOf takes the number off "socket:[123]".
func kindOf(target string) string {
	if kind, _, ok := strings.Cut(target, ":["); ok && kind != "anon_inode" {
		return kind
	}
	return target
}

// beyond lists what v has and before had not.
func (v inventory) beyond(before inventory) []string {
	var left []string
	for what, n := range v.files {
		if n > before.files[what] && !strings.HasPrefix(what, "/proc/") {
			left = append(left, fmt.Sprintf("%d open: %s", n-before.files[what], what))
		}
	}
	for _, f := range v.temporary {
		if !slices.Contains(before.temporary, f) {
			left = append(left, "file: "+f)
		}
	}
	for _, pid := range v.children {
		if !slices.Contains(before.children, pid) {
			left = append(left, "process: "+pid)
		}
	}
	if v.goroutines > before.goroutines {
		var b bytes.Buffer
		_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
		left = append(left, fmt.Sprintf("%d goroutines of\n%s", v.goroutines-before.goroutines, b.String()))
	}
	return left
}

// TestKVMLeaks builds, runs and closes 50 guests with every device, and finds
// no more descriptors, goroutines and mappings than after the first few, and
// hardly more memory.
func TestKVMLeaks(t *testing.T) {
	cfg, _ := config(t, "rng", "count=3")
	equip(t, &cfg)
	cycle := func() {
		if o, _ := runs(t, cfg); o.Kind != vmm.PoweredOff {
			t.Fatalf("outcome %v: %s", o.Kind, o.Reason)
		}
	}
	for range 5 {
		cycle()
	}
	before, maps, rss := takeInventory(), mappings(t), resident(t)
	for range 50 {
		cycle()
	}
	eventually(t, func() bool { return len(takeInventory().beyond(before)) == 0 })
	// The Go heap may map a few arenas more.
	if n := mappings(t); n > maps+20 {
		t.Errorf("%d mappings after 50 guests, %d before", n, maps)
	}
	if n := resident(t); n > rss+16<<20 {
		t.Errorf("%d KiB resident after 50 guests, %d KiB before", n>>10, rss>>10)
	}
}

// equip gives a guest one of each device.
func equip(t testing.TB, cfg *vmm.Config) {
	t.Helper()
	dir := t.TempDir()
	for i, readOnly := range []bool{false, true} {
		d := vmm.Disk{Path: filepath.Join(dir, fmt.Sprintf("disk%d", i)), ReadOnly: readOnly}
		if err := os.WriteFile(d.Path, bytes.Repeat([]byte("disco!?\n"), 1<<17), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.Disks = append(cfg.Disks, d)
	}
	cfg.Nets = []vmm.Net{{Kind: vmm.NetUser}, {Kind: vmm.NetSegment, Segment: "lan0"}}
	cfg.Folders = []vmm.Folder{{Path: dir, Tag: "shared", Window: 16 << 20}}
	cfg.Vsock = filepath.Join(dir, "vsock")
	cfg.Console = vmm.ConsoleVirtio
}

func mappings(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}

// resident is the process's resident memory in bytes.
func resident(t *testing.T) uint64 {
	t.Helper()
	runtime.GC()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseUint(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * uint64(os.Getpagesize())
}
