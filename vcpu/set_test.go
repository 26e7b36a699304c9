package vcpu

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/vcpu/kvm"
)

const testRelayBase = 0xfef0_0000

// machines makes n KVM VMs that share memory, with code at 0x1000.
func machines(t *testing.T, n int, code []byte) (*kvm.System, []*kvm.VM) {
	t.Helper()
	var vms []*kvm.VM
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sys.Close() })
	space, err := memory.New("test", []memory.Range{{Start: 0, Size: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { space.Close() })
	if err := space.WriteAt(code, 0x1000); err != nil {
		t.Fatal(err)
	}
	for range n {
		view, err := space.NewView()
		if err != nil {
			t.Fatal(err)
		}
		vm, err := sys.CreateVM()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { vm.Close() })
		if err := vm.SplitIRQChip(); err != nil {
			t.Fatal(err)
		}
		if err := vm.SetMemory(0, 0, view.Bytes()); err != nil {
			t.Fatal(err)
		}
		vms = append(vms, vm)
	}
	return sys, vms
}

// build makes a set of vCPUs with the given homes on n KVM VMs that share
// memory, with code at 0x1000 for vCPU 0 to run in 32-bit protected mode.
func build(t *testing.T, n int, homes []int, o SetOptions, code ...byte) (*Set, []*kvm.VM) {
	t.Helper()
	sys, vms := machines(t, n, code)
	o.VMs = vms
	cpuid, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	o.System, o.Homes, o.RelayBase = sys, homes, testRelayBase
	if o.Handler == nil {
		o.Handler = ports{make(chan byte, 1000)}
	}
	o.CPUID = func(id int) []kvm.CPUIDEntry { return CPUID(cpuid, id, len(homes)) }
	s, err := NewSet(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Stop()
		for _, v := range s.VCPUs() {
			if s.started {
				wait(t, v)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	err = s.VCPUs()[0].SetBoot(Boot{RIP: 0x1000, RSP: 0x8000, GDTLimit: 0x1f, Code: 0x10, Data: 0x18})
	if err != nil {
		t.Fatal(err)
	}
	return s, o.VMs
}

// forever is jmp to itself.
var forever = []byte{0xeb, 0xfe}

// eventually waits for what other threads are to do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestKVMRelayForwards: every vector that an interrupt can have comes out of the
// relay as it is, and nothing that a relay does allocates.
func TestKVMRelayForwards(t *testing.T) {
	s, vms := build(t, 2, []int{0}, SetOptions{}, forever...)
	s.Start()
	v := s.VCPUs()[0]
	var m kvm.Message
	send := func(data uint32) {
		before := v.Relayed()
		m.Set(messageTo(0), data)
		if ok, err := vms[1].Signal(&m); err != nil || !ok {
			t.Fatalf("message %#x: delivered %v, %v", data, ok, err)
		}
		for end := time.Now().Add(20 * time.Second); v.Relayed() == before; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("message %#x was not passed on", data)
			}
		}
	}
	for vector := uint32(16); vector < 256; vector++ {
		send(vector)
	}
	if n := testing.AllocsPerRun(1000, func() { send(0x40) }); n != 0 {
		t.Errorf("an interrupt that is passed on allocates %v times", n)
	}
	if n := v.Relayed(); n != 240+1001 {
		t.Errorf("%d passed on", n)
	}
	// The live one has kept its APIC disabled, but an NMI it takes, unprepared.
	send(deliverNMI)
	if e := wait(t, v); e.Cause != Shutdown {
		t.Errorf("ended with %+v, want the triple fault of an NMI without an IDT", e)
	}
}

func TestKVMExitsDoNotAllocate(t *testing.T) {
	for name, n := range map[string]int{"one VM": 1, "two": 2} {
		t.Run(name, func(t *testing.T) {
			// again: out 0x10, al; jmp again
			s, _ := build(t, n, []int{0}, SetOptions{Handler: deaf{}}, 0xe6, 0x10, 0xeb, 0xfc)
			s.Start()
			v := s.VCPUs()[0]
			allocs := testing.AllocsPerRun(10, func() {
				for want := v.Exits(kvm.ExitIO) + 1000; v.Exits(kvm.ExitIO) < want; {
					runtime.Gosched()
				}
			})
			if allocs > 1 {
				t.Errorf("1,000 exits allocate %v times", allocs)
			}
		})
	}
}

// deaf is a Handler that does nothing.
type deaf struct{}

func (deaf) PIO(uint16, bool, []byte) error  { return nil }
func (deaf) MMIO(uint64, bool, []byte) error { return nil }

// TestKVMRelayLost: a guest that destroys what relays stand on ends, with a line
// that says what happened, and the host is unharmed.
func TestKVMRelayLost(t *testing.T) {
	s, vms := build(t, 2, []int{0, 1}, SetOptions{}, forever...)
	s.Start()
	clear(s.data[1])
	if _, err := vms[1].SignalMSI(messageTo(0), 0x40); err != nil {
		t.Fatal(err)
	}
	e := wait(t, s.VCPUs()[0])
	if e.Cause != RelayLost || !strings.Contains(e.Text, "its relay in KVM VM 1") {
		t.Errorf("ended with %+v", e)
	}
	if err := s.Move(0, 1); err == nil {
		t.Error("a vCPU that has ended was moved")
	}
}

// TestKVMRelayWithoutRest: a relay that the guest keeps busy holds up no Move for
// good, and the guest runs on where it was.
func TestKVMRelayWithoutRest(t *testing.T) {
	s, vms := build(t, 2, []int{0}, SetOptions{Handler: deaf{}}, 0xe6, 0x10, 0xeb, 0xfc)
	s.Start()
	copy(s.code[relayLoop+1:], forever)
	v := s.VCPUs()[0]
	if _, err := vms[1].SignalMSI(messageTo(0), 0x40); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the interrupt was not passed on", func() bool { return v.Relayed() == 1 })
	if err := s.Move(0, 1); err == nil || !strings.Contains(err.Error(), "does not come to rest") {
		t.Errorf("moved: %v", err)
	}
	before := v.Exits(kvm.ExitIO)
	eventually(t, "the guest stands still", func() bool { return v.Exits(kvm.ExitIO) > before && s.Home(0) == 0 })
}

func TestKVMSetRefuses(t *testing.T) {
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	for want, o := range map[string]SetOptions{
		"without a KVM VM": {},
		"no KVM VM 1":      {VMs: make([]*kvm.VM, 1), Homes: []int{0, 1}},
		"no KVM VM -1":     {VMs: make([]*kvm.VM, 1), Homes: []int{-1}},
		"relays at 0x1000": {System: sys, VMs: make([]*kvm.VM, 2), Homes: []int{0}, RelayBase: 0x1000},
		"at most":          {System: sys, VMs: make([]*kvm.VM, 2), Homes: make([]int, 5000), RelayBase: testRelayBase},
	} {
		if s, err := NewSet(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, %v; want an error with %q", s, err, want)
		}
	}
}

// TestKVMClocksAgree: each incarnation has the same time-stamp counter.
func TestKVMClocksAgree(t *testing.T) {
	s, vms := build(t, 3, []int{0, 1, 2}, SetOptions{}, forever...)
	want, err := s.vcpus[0].KVM().TSCOffset()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range s.vcpus {
		for _, b := range v.bodies {
			if got, err := b.kvm.TSCOffset(); err != nil || got != want {
				t.Errorf("vCPU %d in VM %d: offset %#x, %v; want %#x", v.id, b.vm, got, err, want)
			}
		}
	}
	// Read one after the other, so each is between those before and after it.
	var last uint64
	for range 100 {
		for i, vm := range vms {
			c, err := vm.Clock()
			if err != nil {
				t.Fatal(err)
			}
			if c.Clock+uint64(time.Millisecond) < last {
				t.Errorf("VM %d's clock is %v behind", i, time.Duration(last-c.Clock))
			}
			last = max(last, c.Clock)
		}
	}
}

// TestKVMThreads: threads are bound to their VM's CPUs, live and relays, can be
// bound anew while they run, and are gone afterwards.
func TestKVMThreads(t *testing.T) {
	before := tasks(t)
	t.Run("bound", func(t *testing.T) {
		seen := make(chan [2]int, 100)
		s, _ := build(t, 2, []int{0, 1}, SetOptions{
			CPUs:   [][]int{{0}, {1}},
			Thread: func(vm, tid int) { seen <- [2]int{vm, tid} },
		}, forever...)
		s.Start()
		for range 4 {
			at := <-seen
			bound(t, at[1], at[0])
		}
		for vm := range 2 {
			if n := len(s.Threads(vm)); n != 2 {
				t.Errorf("VM %d has %d threads", vm, n)
			}
		}
		if err := s.SetCPUs(0, []int{1}); err != nil {
			t.Error(err)
		}
		for _, tid := range s.Threads(0) {
			bound(t, tid, 1)
		}
		if err := s.SetCPUs(0, []int{1000}); err == nil || !strings.Contains(err.Error(), "1000") {
			t.Errorf("bound to CPU 1000: %v", err)
		}
	})
	t.Run("each its own", func(t *testing.T) {
		s, _ := build(t, 1, []int{0, 0}, SetOptions{Pin: func(id, _ int) []int { return []int{id} }}, forever...)
		s.Start()
		eventually(t, "not all threads began", func() bool { return len(s.Threads(0)) == 2 })
		for id, v := range s.VCPUs() {
			eventually(t, "not bound", func() bool { return isBound(t, int(v.bodies[0].tid.Load()), id) })
		}
	})
	for range 10 {
		t.Run("many", func(t *testing.T) {
			s, _ := build(t, 4, []int{0, 1, 2, 3}, SetOptions{}, forever...)
			s.Start()
		})
	}
	eventually(t, "threads are left", func() bool { return tasks(t) < before+20 })
}

func bound(t *testing.T, tid, cpu int) {
	t.Helper()
	if !isBound(t, tid, cpu) {
		t.Errorf("thread %d may run elsewhere than on CPU %d", tid, cpu)
	}
}

func isBound(t *testing.T, tid, cpu int) bool {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &set); err != nil {
		t.Fatal(err)
	}
	return set.Count() == 1 && set.IsSet(cpu)
}

func tasks(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestKVMThreadOnNoCPU: a thread that cannot go where it should ends the guest
// with the reason.
func TestKVMThreadOnNoCPU(t *testing.T) {
	s, _ := build(t, 1, []int{0}, SetOptions{CPUs: [][]int{{1000}}}, forever...)
	s.Start()
	if e := wait(t, s.VCPUs()[0]); e.Cause != HostError || !strings.Contains(e.Text, "CPUs [1000]") {
		t.Errorf("ended with %+v", e)
	}
}

// TestKVMTransferIsWhole: the MSRs that carry a guest's state are among those
// that move, and none that must not.
func TestKVMTransferIsWhole(t *testing.T) {
	s, _ := build(t, 2, []int{0}, SetOptions{}, forever...)
	for _, index := range []uint32{
		0x174, 0x175, 0x176, // SYSENTER
		0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, // SYSCALL, KERNEL_GS_BASE
		0x277, msrMTRRDefType, msrMiscEnable, msrClock,
	} {
		if !slices.Contains(s.transfer.msrs, index) {
			t.Errorf("MSR %#x does not move", index)
		}
	}
	for _, index := range []uint32{msrTSC, msrWallClock, msrTSCDeadline} {
		if slices.Contains(s.transfer.msrs, index) {
			t.Errorf("MSR %#x moves", index)
		}
	}
	if !s.transfer.deadline {
		t.Error("the TSC deadline does not move")
	}
	t.Logf("%d MSRs", len(s.transfer.msrs))
}
