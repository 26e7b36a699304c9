package lab

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pacePeriod = 250 * time.Microsecond
	// paceSlice is shorter than any thread's of QEMU, so that the pacer is let in
	// at once.
	paceSlice = 100 * time.Microsecond
)

// pace has the threads of a QEMU that is kept to one CPU take short turns, until it
// is gone. A vCPU that waits for another to answer an interrupt spins, and its
// turn would else last for some milliseconds in which the other cannot answer: all
// changes of page tables wait so. The thread here wakes up on that CPU so often
// that none has it for longer than pacePeriod at a time.
//
// Without it a look at a block of a guest on four nodes takes five times as long
// (docs/decisions/004).
func pace(gone <-chan struct{}) {
	runtime.LockOSThread() // never unlocked: the thread ends with what was done to it
	if keepToOneCPU() != nil {
		return // then all is as slow as without
	}
	// Slices are Linux 6.12's; before, they are not changed by this.
	if a, err := unix.SchedGetAttr(0, 0); err == nil {
		a.Runtime = uint64(paceSlice)
		_ = unix.SchedSetAttr(0, a, 0)
	}
	for {
		select {
		case <-gone:
			return
		default:
		}
		turn := unix.NsecToTimespec(int64(pacePeriod))
		_ = unix.Nanosleep(&turn, nil) // woken early is as good
	}
}
