package vcpu

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

// spin is `jmp .`
var spin = []byte{0xeb, 0xfe}

// cpuTime is what a vCPU's thread has had.
func cpuTime(t *testing.T, v *VCPU) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^v.TID()<<3|6), &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// stands says whether the vCPU's thread has no CPU time for a while.
func stands(t *testing.T, v *VCPU) bool {
	before := cpuTime(t, v)
	time.Sleep(20 * time.Millisecond)
	return cpuTime(t, v) == before
}

// TestKVMHold: a vCPU that is held runs nothing until it is released, and can be
// stopped.
func TestKVMHold(t *testing.T) {
	v := start(t, deaf{}, spin...)
	eventually(t, "the guest runs", func() bool { return v.TID() != 0 && !stands(t, v) })
	for range 20 {
		v.Hold()
		eventually(t, "it stands still", func() bool { return stands(t, v) })
		v.Kick() // changes nothing
		eventually(t, "it stands still, kicked or not", func() bool { return stands(t, v) })
		v.Release()
		eventually(t, "it goes on", func() bool { return !stands(t, v) })
	}
	for range 200 { // whoever comes first
		v.Hold()
		v.Release()
	}
	eventually(t, "it goes on", func() bool { return !stands(t, v) })
	v.Hold()
	v.Stop()
	if e := wait(t, v); e.Cause != Stopped {
		t.Errorf("ended with %v: %s", e.Cause, e.Text)
	}
	v.Hold() // of one that has ended: harmless
	v.Release()
}

// TestKVMStopWhileHeld stops and holds a vCPU at the same time.
func TestKVMStopWhileHeld(t *testing.T) {
	for i := range 50 {
		v := start(t, deaf{}, spin...)
		go v.Stop()
		time.Sleep(time.Duration(i) * 10 * time.Microsecond)
		v.Hold()
		wait(t, v)
	}
}

// TestKVMLow: a vCPU that is low gives way to one that computes on its CPU, and
// still is kicked, raised and stopped at once.
func TestKVMLow(t *testing.T) {
	low, hog := start(t, deaf{}, spin...), start(t, deaf{}, spin...)
	eventually(t, "both run", func() bool { return low.TID() != 0 && hog.TID() != 0 })
	var set unix.CPUSet
	set.Set(0)
	for _, v := range []*VCPU{low, hog} {
		if err := unix.SchedSetaffinity(v.TID(), &set); err != nil {
			t.Fatal(err)
		}
	}
	policy := func(want uint32) func() bool {
		return func() bool {
			a, err := unix.SchedGetAttr(low.TID(), 0)
			if err != nil {
				t.Fatal(err)
			}
			return a.Policy == want
		}
	}
	for range 20 {
		low.Lower()
		eventually(t, "it is low", policy(unix.SCHED_IDLE))
		before := low.exits[kvm.ExitIntr].Load()
		low.Kick()
		eventually(t, "a kick brings it out", func() bool { return low.exits[kvm.ExitIntr].Load() > before })
		if err := low.Raise(); err != nil {
			t.Fatal(err)
		}
		if err := low.Raise(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is raised", policy(unix.SCHED_NORMAL))
	}
	low.Lower()
	had, other := cpuTime(t, low), cpuTime(t, hog)
	eventually(t, "the other computes", func() bool { return cpuTime(t, hog)-other > 200*time.Millisecond })
	if had = cpuTime(t, low) - had; had > 100*time.Millisecond {
		t.Errorf("who is low had %v while another had 200 ms", had)
	}
	low.Stop()
	wait(t, low)
	hog.Stop()
	wait(t, hog)
	low.Lower() // of one that has ended: harmless
	if err := low.Raise(); err != nil {
		t.Error(err)
	}
}

// TestKVMHalted: a vCPU that waits in hlt is halted, one that runs is not.
func TestKVMHalted(t *testing.T) {
	for _, tt := range []struct {
		code []byte
		want bool
	}{
		{spin, false},
		{[]byte{0xf4, 0xeb, 0xfd}, true}, // hlt; jmp to it
	} {
		v := ready(t, deaf{}, tt.code...)
		if v.Halted() {
			t.Error("a vCPU that is not watched is halted")
		}
		for range 2 {
			if err := v.WatchHalts(); err != nil {
				t.Fatal(err)
			}
		}
		v.Start()
		eventually(t, "the vCPU is halted, or runs", func() bool { return v.TID() != 0 && v.Halted() == tt.want })
		v.Stop()
		wait(t, v)
	}
}
