package vmm

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"disco/net/segment"
)

// TestSeater: a thread goes to the CPUs of a seat that the process may use, and back.
func TestSeater(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with its affinity
	cpus := func() (set unix.CPUSet) {
		t.Helper()
		if err := unix.SchedGetaffinity(0, &set); err != nil {
			t.Fatal(err)
		}
		return set
	}
	all := cpus()
	first := 0
	for !all.IsSet(first) {
		first++
	}
	run := seater()
	if err := run(&segment.Seat{CPUs: []int{first, 1023}}); err != nil {
		t.Fatal(err)
	}
	if now := cpus(); now.Count() != 1 || !now.IsSet(first) {
		t.Errorf("the thread runs on %d CPUs, not on CPU %d", now.Count(), first)
	}
	if err := run(&segment.Seat{CPUs: []int{1023}}); err == nil {
		t.Error("a thread was bound to a CPU that is not there")
	}
	if err := run(nil); err != nil {
		t.Fatal(err)
	}
	if now := cpus(); now != all {
		t.Errorf("the thread runs on %d CPUs, not on %d as before", now.Count(), all.Count())
	}
}
