package integration

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

const (
	msiAddress = 0xfee00000 // to APIC 0
	virqVector = 0x40
)

func TestKVMLocalInterrupts(t *testing.T) {
	for _, tt := range []struct{ name, guest, cmdline, want string }{
		{"timer", "timer", "ticks=20", "timer: 20 ticks\n"},
		{"deadline", "timer", "ticks=20 deadline=1", "timer: 20 ticks\n"},
		{"self IPI", "ipi", "count=100", "ipi: 100 received\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, tt.guest, tt.cmdline)
			r.powerOff()
			r.expect(tt.want)
			if n := r.vcpus[0].Exits(kvm.ExitHLT); n != 0 {
				t.Errorf("hlt came out to the monitor %d times; the kernel should keep it", n)
			}
		})
	}
}

// TestKVMInterrupts sends 1,000 interrupts from outside, in step with the
// guest, each way that there is, and sees every one arrive while it waits in hlt.
func TestKVMInterrupts(t *testing.T) {
	const count, gsi = 1000, 24
	for _, tt := range []struct {
		name string
		make func(t *testing.T, r *rig) (send func())
	}{
		{"MSI", func(t *testing.T, r *rig) func() {
			return func() {
				if ok, err := r.vm.SignalMSI(msiAddress, virqVector); err != nil || !ok {
					t.Errorf("SignalMSI: delivered %v, %v", ok, err)
				}
			}
		}},
		{"irqfd", func(t *testing.T, r *rig) func() {
			fd := newEventFD(t)
			if err := r.vm.SetRoutes([]kvm.MSIRoute{{GSI: gsi, Address: msiAddress, Data: virqVector}}); err != nil {
				t.Fatal(err)
			}
			if err := r.vm.BindIRQFD(fd, gsi); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := r.vm.UnbindIRQFD(fd, gsi); err != nil {
					t.Error(err)
				}
			})
			return func() { ring(t, fd) }
		}},
		{"irqfd, rerouted", func(t *testing.T, r *rig) func() {
			fd := newEventFD(t)
			if err := r.vm.BindIRQFD(fd, gsi); err != nil {
				t.Fatal(err)
			}
			ring(t, fd) // to nowhere: dropped
			for _, vector := range []uint32{0x50, virqVector} {
				if err := r.vm.SetRoutes([]kvm.MSIRoute{{GSI: gsi, Address: msiAddress, Data: vector}}); err != nil {
					t.Fatal(err)
				}
			}
			return func() { ring(t, fd) }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, "virq", fmt.Sprintf("count=%d vector=%d", count, virqVector))
			send := tt.make(t, r)
			r.pio = func(port uint16, write bool, p []byte) {
				if port == sparePort && write && binary.LittleEndian.Uint32(p) < count {
					send()
				}
			}
			r.powerOff()
			r.expect(fmt.Sprintf("virq: waiting\nvirq: %d received\n", count))
		})
	}
}

// TestKVMNoSuchInterrupt points messages at nothing: the host is unharmed.
func TestKVMNoSuchInterrupt(t *testing.T) {
	r := newRig(t, 1, "hello", "")
	for _, m := range []struct {
		address uint64
		data    uint32
	}{{msiAddress | 7<<12, 0x40}, {0, 0}, {^uint64(0), ^uint32(0)}, {0x1000, 0x41}} {
		// Whether the kernel calls it undelivered or an error is its own affair.
		delivered, err := r.vm.SignalMSI(m.address, m.data)
		t.Logf("%#x %#x: delivered %v, %v", m.address, m.data, delivered, err)
	}
	r.powerOff()
}

// TestKVMDoorbell rings 10,000 times without coming out to the monitor once.
func TestKVMDoorbell(t *testing.T) {
	const count = 10000
	for _, size := range []int{1, 2, 4, 8} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			r := newRig(t, 1, "doorbell", fmt.Sprintf("count=%d size=%d", count, size))
			fd := newEventFD(t)
			if err := r.vm.BindIOEventFD(fd, spareAddr); err != nil {
				t.Fatal(err)
			}
			var exits atomic.Int64
			r.mmio = func(uint64, bool, []byte) { exits.Add(1) }
			r.powerOff()
			if n := rings(t, fd); n != count {
				t.Errorf("%d rings, want %d", n, count)
			}
			if n := exits.Load(); n != 0 {
				t.Errorf("%d MMIO exits", n)
			}
			if err := r.vm.UnbindIOEventFD(fd, spareAddr); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKVMDoorbellUnbound: what is unbound comes out to the monitor again.
func TestKVMDoorbellUnbound(t *testing.T) {
	r := newRig(t, 1, "doorbell", "count=10")
	fd := newEventFD(t)
	if err := r.vm.BindIOEventFD(fd, spareAddr); err != nil {
		t.Fatal(err)
	}
	if err := r.vm.UnbindIOEventFD(fd, spareAddr); err != nil {
		t.Fatal(err)
	}
	exits := 0
	r.mmio = func(uint64, bool, []byte) { exits++ }
	r.powerOff()
	if exits != 10 {
		t.Errorf("%d MMIO exits, want 10", exits)
	}
}

func newEventFD(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func ring(t *testing.T, fd int) {
	if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		t.Errorf("eventfd: %v", err)
	}
}

// rings takes the count of an eventfd.
func rings(t *testing.T, fd int) uint64 {
	t.Helper()
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		t.Errorf("eventfd: %v", err)
	}
	return binary.NativeEndian.Uint64(b[:])
}
