package vmm

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// sysmonSlack is how much later than it asks for Go's sysmon may be woken.
const sysmonSlack = time.Millisecond

// slackenSysmon has sysmon, the thread by which Go's runtime watches its others, be
// woken at most once in sysmonSlack. While a thread is in system calls for long, as
// those of workers are, it wants to look after 20 µs, again and again, and where a CPU
// is full of guests each look takes it from one of them. For what it does a
// millisecond is soon enough: there are processors to spare (see processors).
//
// Only a process that may raise its priority (CAP_SYS_NICE) may change a thread's
// slack. What sysmon starts inherits it.
var slackenSysmon = sync.OnceValue(func() error {
	tid, err := sysmon()
	if err != nil {
		return err
	}
	// Not below task: there is no such file for a thread that is not the first.
	return os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid), strconv.AppendInt(nil, sysmonSlack.Nanoseconds(), 10), 0)
})

// sysmon is the thread that the runtime starts before all others, but for the one that
// the process began with (runtime.main). Thread numbers grow, and begin again.
func sysmon() (tid int, err error) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, err
	}
	first := os.Getpid()
	var later, again []int
	for _, e := range entries {
		switch tid, err := strconv.Atoi(e.Name()); {
		case err != nil || tid == first:
		case tid > first:
			later = append(later, tid)
		default:
			again = append(again, tid)
		}
	}
	slices.Sort(later)
	slices.Sort(again)
	if all := append(later, again...); len(all) > 0 {
		return all[0], nil
	}
	return 0, fmt.Errorf("the process has no second thread")
}
