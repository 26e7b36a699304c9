package vcpu

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

// Used is the CPU time that the vCPU's threads have had, relays among them, by
// their own clocks, which are exact also while they run. It is 0 after they have
// ended. It may be called from any thread, and does not allocate.
func (v *VCPU) Used() time.Duration {
	var sum int64
	for _, b := range v.bodies {
		tid := b.tid.Load()
		if tid <= 0 {
			continue
		}
		// The clock's id is made of the thread's as in the kernel's
		// include/linux/posix-timers_types.h.
		const perThread, scheduled = 4, 2
		var t unix.Timespec
		if unix.ClockGettime(int32(^tid<<3|perThread|scheduled), &t) == nil {
			sum += t.Nano()
		}
	}
	return time.Duration(sum)
}

// Delayed is how long the vCPU's threads were ready to run and the kernel ran
// others. KVM tells the guest as steal time what it is of the live one. It is 0
// where the kernel does not count it, and after the threads have ended. It may be
// called from any thread.
func (v *VCPU) Delayed() time.Duration {
	var sum int64
	for _, b := range v.bodies {
		// Time on a CPU and time in its queue, in ns, and how often
		// (Documentation/scheduler/sched-stats.rst).
		if f := bytes.Fields(b.proc("schedstat")); len(f) == 3 {
			n, _ := strconv.ParseInt(string(f[1]), 10, 64)
			sum += n
		}
	}
	return time.Duration(sum)
}

// Asleep says whether the thread that runs the guest waits for something: as a rule
// for an interrupt to a guest that has halted. It may be called from any thread.
func (v *VCPU) Asleep() bool {
	// The state comes after the name, which may hold anything.
	_, state, ok := bytes.Cut(v.body().proc("stat"), []byte(") "))
	return ok && len(state) > 0 && state[0] != 'R'
}

// KVMStats are KVM's own counters, also while the vCPU runs; nil without
// WatchHalts. It may be called from any thread until Close.
func (v *VCPU) KVMStats() kvm.Stats {
	var sum kvm.Stats
	for _, b := range v.bodies {
		if b.halted == nil {
			continue
		}
		s, err := b.halted.Stats()
		if err != nil {
			continue // a kernel that has the gauge has the others, too
		}
		if sum == nil {
			sum = s
			continue
		}
		for name, n := range s {
			sum[name] += n
		}
	}
	return sum
}

// proc is the kernel's account of the thread, or nothing.
func (b *incarnation) proc(name string) []byte {
	tid := b.tid.Load()
	if tid <= 0 {
		return nil
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/%s", tid, name)) // it may just have ended
	return text
}
