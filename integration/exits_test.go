package integration

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"disco/vcpu"
	"disco/vcpu/kvm"
)

func TestKVMHello(t *testing.T) {
	r := newRig(t, 1, "hello", "")
	r.powerOff()
	r.expect("hello from a tiny guest\n")
}

// TestKVMPVH enters a guest in 32-bit mode, with its start info.
func TestKVMPVH(t *testing.T) {
	r := newRig(t, 1, "pvh", "so it goes")
	r.powerOff()
	r.expect("pvh: so it goes\n")
}

// TestKVMExits shows that each size and kind of access arrives as what it is,
// once, in order, and that what a read is answered with reaches the guest.
func TestKVMExits(t *testing.T) {
	r := newRig(t, 1, "exits", "")
	var got []string
	memory := map[uint64][8]byte{}
	input := byte(0x10)
	r.pio = func(port uint16, write bool, p []byte) {
		if write {
			got = append(got, fmt.Sprintf("out %x %x", port, p))
			return
		}
		for i := range p {
			input++
			p[i] = input
		}
		got = append(got, fmt.Sprintf("in %x %x", port, p))
	}
	r.mmio = func(addr uint64, write bool, p []byte) {
		if write {
			var b [8]byte
			copy(b[:], p)
			memory[addr] = b
			got = append(got, fmt.Sprintf("write %x %x", addr, p))
			return
		}
		b := memory[addr]
		copy(p, b[:])
		got = append(got, fmt.Sprintf("read %x %x", addr, p))
	}
	r.powerOff()
	want := []string{
		"out 510 11", "out 510 1122", "out 510 11223344",
		"in 510 11", "in 510 1213", "in 510 14151617",
		"out 510 73", "out 510 74", "out 510 72", "out 510 69", "out 510 6e", "out 510 67", "out 510 0a",
		"in 510 18", "in 510 19", "in 510 1a",
		"write dfff0000 11", "write dfff0008 1122", "write dfff0010 11223344",
		"write dfff0018 1122334455667788", "write dfff0020 5a",
		"read dfff0000 11", "read dfff0008 1122", "read dfff0010 11223344",
		"read dfff0018 1122334455667788", "read dfff0000 11",
	}
	if !slices.Equal(got, want) {
		t.Errorf("accesses\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r.expect("in 1=11 2=1312 4=17161514\ninsb=1a1918\n" +
		"mmio 1=11 2=2211 4=44332211 8=8877665544332211 s=11\n")
	for e, least := range map[kvm.Exit]uint64{kvm.ExitIO: 8, kvm.ExitMMIO: 10} {
		if n := r.vcpus[0].Exits(e); n < least {
			t.Errorf("%d exits of kind %v counted, want at least %d", n, e, least)
		}
	}
}

// TestKVMEnds shows that what a vCPU cannot survive ends it with its name, on
// one line, and that a vCPU that never leaves the guest can be stopped.
func TestKVMEnds(t *testing.T) {
	for _, tt := range []struct {
		guest string
		line  string // the console when the guest is where it should be
		stop  bool
		cause vcpu.Cause
		text  string
	}{
		{guest: "triple", line: "triple: faulting\n", cause: vcpu.Shutdown, text: "vCPU 0: triple fault"},
		{guest: "unemulable", line: "unemulable: executing\n", cause: vcpu.InternalError, text: "cannot emulate an instruction"},
		{guest: "spin", line: "spin: spinning\n", stop: true, cause: vcpu.Stopped},
		{guest: "halt", line: "halt: halted\n", stop: true, cause: vcpu.Stopped},
	} {
		t.Run(tt.guest, func(t *testing.T) {
			r := newRig(t, 1, tt.guest, "")
			r.start()
			if tt.stop {
				eventually(t, func() bool { return r.console() == tt.line })
				r.vcpus[0].Stop()
			}
			e := r.wait()
			if e.Cause != tt.cause || !strings.Contains(e.Text, tt.text) || strings.Contains(e.Text, "\n") {
				t.Errorf("ended with %v, %q; want %v and a line with %q", e.Cause, e.Text, tt.cause, tt.text)
			}
			r.expect(tt.line)
		})
	}
}

// TestKVMExitsDoNotAllocate counts what 20,000 exits leave for the collector.
func TestKVMExitsDoNotAllocate(t *testing.T) {
	const exits = 20000
	r := newRig(t, 1, "doorbell", fmt.Sprintf("count=%d", exits))
	var before, after runtime.MemStats
	seen := 0
	r.mmio = func(uint64, bool, []byte) {
		switch seen++; seen {
		case 100: // past the first of everything
			runtime.ReadMemStats(&before)
		case exits:
			runtime.ReadMemStats(&after)
		}
	}
	r.powerOff()
	if seen != exits {
		t.Fatalf("%d exits, want %d", seen, exits)
	}
	// The test's own timer and the runtime's workers may make a few.
	if n := after.Mallocs - before.Mallocs; n > 100 {
		t.Errorf("%d allocations in %d exits", n, exits)
	}
}

// eventually waits for what a guest or another goroutine is about to do.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen in %v", patience)
		}
	}
}
