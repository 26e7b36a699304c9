package vmm

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHostSysmon: the thread whose timers are slackened is the one that sleeps for 20 µs
// again and again while others are busy.
func TestHostSysmon(t *testing.T) {
	tid, err := sysmon()
	if err != nil {
		t.Fatal(err)
	}
	if err := slackenSysmon(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid))
	if err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(sysmonSlack.Nanoseconds()) {
		t.Fatalf("thread %d: a slack of %q, %v", tid, b, err)
	}
	sleeps := fmt.Sprintf("%d ", unix.SYS_NANOSLEEP)
	for range 1000 {
		for begun := time.Now(); time.Since(begun) < time.Millisecond; { // a goroutine that does not rest
		}
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", tid)); strings.HasPrefix(string(b), sleeps) {
			return
		}
	}
	t.Fatalf("thread %d does not sleep", tid)
}
