package memory

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the run if the tests left a goroutine, an open file or a
// mapping of guest memory behind.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		beKilled()
	}
	os.Exit(checked(m))
}

func checked(m *testing.M) int {
	r, w, err := os.Pipe() // has the runtime open what it keeps
	if err == nil {
		r.Close()
		w.Close()
	}
	before := left()
	code := m.Run()
	var after [3]int
	for range 100 {
		if after = left(); after[0] <= before[0] && after[1] <= before[1] && after[2] == 0 {
			return code
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "the tests left behind: %d goroutines, %d files, %d mappings\n", after[0]-before[0], after[1]-before[1], after[2])
	return max(code, 1)
}

// left counts goroutines, open files, and mappings of memfds.
func left() (n [3]int) {
	n[0] = runtime.NumGoroutine()
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		n[1] = len(files)
	}
	if maps, err := os.ReadFile("/proc/self/maps"); err == nil {
		n[2] = strings.Count(string(maps), "/memfd:")
	}
	return n
}
