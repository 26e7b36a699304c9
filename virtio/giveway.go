package virtio

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// GiveWay has the goroutine that calls it, and Heard, give way to others or no longer
// do so. One that does has a thread to itself, of the policy SCHED_BATCH: when it is
// woken it takes no CPU from who runs there, which is the vCPU that kicked, if no other
// is free. It is next when that halts, or has used up its slice. The guest makes more
// chains available meanwhile, without a kick.
//
// It fails where the thread has another policy than SCHED_NORMAL already, or may not
// change it; then nothing has changed. A goroutine may end while it gives way.
func (q *Queue) GiveWay(on bool) error {
	if on == q.givesWay {
		return nil
	}
	if on {
		runtime.LockOSThread()
	}
	from, to := uint32(unix.SCHED_NORMAL), uint32(unix.SCHED_BATCH)
	if !on {
		from, to = to, from
	}
	err := repolicy(from, to)
	if err == nil {
		q.givesWay = on
	}
	if !q.givesWay {
		runtime.UnlockOSThread()
	}
	return err
}

// repolicy changes the policy of the calling thread.
func repolicy(from, to uint32) error {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return fmt.Errorf("a thread's policy: %w", err)
	}
	if a.Policy != from {
		return fmt.Errorf("a thread's policy is %d, not %d", a.Policy, from)
	}
	a.Policy = to
	if err := unix.SchedSetAttr(0, a, 0); err != nil {
		return fmt.Errorf("a thread's policy: %w", err)
	}
	return nil
}
