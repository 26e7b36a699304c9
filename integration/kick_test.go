package integration

import (
	"runtime"
	"testing"
	"time"

	"disco/vcpu"
	"disco/vcpu/kvm"
)

// TestKVMKick shows that no kick is lost, whether it meets the vCPU deep in the
// guest, on its way in or out, or in a handler: each brings it out once.
func TestKVMKick(t *testing.T) {
	const kicks = 5000
	for _, tt := range []struct{ name, guest, cmdline string }{
		{"in the guest", "spin", ""},
		{"between exits", "doorbell", "count=4000000000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, tt.guest, tt.cmdline)
			v := r.vcpus[0]
			r.start()
			lost := 0
			for i := range kicks {
				before := v.Exits(kvm.ExitIntr)
				v.Kick()
				if !spinUntil(func() bool { return v.Exits(kvm.ExitIntr) > before }) {
					lost++
				}
				for range i % 64 { // another moment of the guest's loop each time
					runtime.Gosched()
				}
			}
			v.Stop()
			if e := r.wait(); e.Cause != vcpu.Stopped {
				t.Errorf("ended with %v: %s", e.Cause, e.Text)
			}
			if lost > 0 {
				t.Errorf("%d of %d kicks lost", lost, kicks)
			}
		})
	}
}

// TestKVMStopAnyMoment stops vCPUs before, while and after they come up.
func TestKVMStopAnyMoment(t *testing.T) {
	for i := range 50 {
		r := newRig(t, 1, "spin", "")
		v := r.vcpus[0]
		if i == 0 {
			v.Stop()
		}
		r.start()
		time.Sleep(time.Duration(i) * 20 * time.Microsecond)
		v.Stop()
		if e := r.wait(); e.Cause != vcpu.Stopped {
			t.Fatalf("stopped after %d × 20 µs, it ended with %v: %s", i, e.Cause, e.Text)
		}
		v.Stop() // of an ended vCPU: harmless
	}
}

// spinUntil waits without sleeping, for what takes microseconds where the host
// has a CPU to spare.
func spinUntil(ok func() bool) bool {
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// TestKVMStopAfterClose: whoever comes late with a Stop finds nothing to hurt.
func TestKVMStopAfterClose(t *testing.T) {
	var v *vcpu.VCPU
	t.Cleanup(func() { v.Stop() }) // runs after the rig's own
	r := newRig(t, 1, "triple", "")
	v = r.vcpus[0]
	r.start()
	r.wait()
}
