package integration

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"
)

// TestKVMWideBirth starts vCPUs that are live in other KVM VMs than their
// starter, with SIPI right behind INIT, so that both are there when the relay
// wakes, and long after, so that it wakes between; and starts them again.
func TestKVMWideBirth(t *testing.T) { wideBirth(t, 20) }

func wideBirth(t *testing.T, most int) {
	for _, tt := range []struct{ vms, vcpus, rounds, gap int }{
		{2, 2, 1, 0},
		{2, 2, 1, 1},
		{2, 2, 1, 100},
		{2, 4, 1, 3},
		{4, 8, 1, 0},
		{4, 8, 1, 20},
		{1, 2, 20, 3},
		{2, 2, 20, 0},
		{2, 2, 20, 3},
		{2, 4, 10, 20},
		{4, 4, 10, 1},
	} {
		if tt.rounds > most {
			continue
		}
		t.Run(fmt.Sprintf("%d VMs, %d vCPUs, %d rounds, gap %d", tt.vms, tt.vcpus, tt.rounds, tt.gap), func(t *testing.T) {
			r := newWideRig(t, tt.vms, spread(tt.vcpus, tt.vms), "birth",
				fmt.Sprintf("cpus=%d rounds=%d gap=%d", tt.vcpus, tt.rounds, tt.gap))
			r.powerOff()
			r.expect(fmt.Sprintf("birth: %d times up\n", tt.rounds*(tt.vcpus-1)))
		})
	}
}

// TestKVMWideBirthManyTimes does it over and over with new machines, kicking the
// vCPUs all the while, so that they wake at every moment.
func TestKVMWideBirthManyTimes(t *testing.T) {
	for i := range 200 {
		r := newWideRig(t, 2, []int{0, 1}, "birth", fmt.Sprintf("gap=%d", i%5))
		r.bornWhile(i, "birth: 1 times up\n", time.Duration(i)*time.Microsecond, func(int) {
			r.set.Threads(0)
			for _, v := range r.vcpus {
				v.Kick()
			}
		})
	}
}

// bornWhile runs the i-th machine to its end, and does act over and over.
func (r *wideRig) bornWhile(i int, want string, pause time.Duration, act func(n int)) {
	r.t.Helper()
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			act(n)
			select {
			case <-over:
				return
			case <-time.After(pause):
			}
		}
	})
	r.powerOff()
	close(over)
	wg.Wait()
	r.expect(want)
	if r.t.Failed() {
		r.t.Fatalf("in the %d. machine", i+1)
	}
}

// TestKVMWideMoveWhileStarting moves vCPUs around from the first moment on.
func TestKVMWideMoveWhileStarting(t *testing.T) {
	for i := range 20 {
		r := newWideRig(t, 3, []int{0, 1, 2, 0}, "birth", fmt.Sprintf("cpus=4 rounds=3 gap=%d", i%5))
		r.bornWhile(i, "birth: 9 times up\n", time.Millisecond, func(n int) {
			// ErrBusy, and that the guest has ended, are as good as a move.
			_ = r.set.Move(n%4, (n+i)%3)
		})
	}
}

// TestKVMWideMoveUnborn moves a vCPU that nobody has started. An interrupt that is
// for it waits where it was before, too: its sender may be there, and see it run
// before that incarnation has become a relay.
func TestKVMWideMoveUnborn(t *testing.T) {
	r := newWideRig(t, 3, []int{0, 1}, "birth", "")
	for _, to := range []int{2, 0} {
		if err := r.set.Move(1, to); err != nil {
			t.Fatal(err)
		}
		for i, vm := range r.vms {
			if i == to {
				continue
			}
			if accepted, err := vm.SignalMSI(msiAddress|1<<12, 0x60); err != nil || !accepted {
				t.Errorf("live in VM %d: an interrupt in VM %d is lost (%v)", to, i, err)
			}
		}
	}
}

// TestKVMWideMSI raises message-signalled interrupts of every vCPU in every VM,
// by physical and logical destination: wherever they enter, they arrive.
func TestKVMWideMSI(t *testing.T) {
	const vms, vcpus, each, vector = 3, 4, 20, 0x60
	r := newWideRig(t, vms, spread(vcpus, vms), "wide", fmt.Sprintf("cpus=%d kind=4 count=%d", vcpus, vms*vcpus*each*2))
	got := make(chan uint32, 1)
	yield := r.pio
	r.pio = func(port uint16, write bool, p []byte) {
		if port == sparePort && write {
			got <- binary.LittleEndian.Uint32(p)
		}
		yield(port, write, p)
	}
	r.set.Start()
	if !spinUntil(func() bool { return r.console() != "" }) {
		t.Error("the guest did not come up")
	}
	for i := range each {
		for vm := range vms {
			for id := range vcpus {
				physical := uint64(msiAddress | id<<12)
				logical := uint64(msiAddress | 1<<id<<12 | 1<<2)
				for _, address := range []uint64{physical, logical} {
					if home := r.set.MSIHome(address); home != r.set.Home(id) {
						t.Fatalf("%#x is for VM %d, want %d", address, home, r.set.Home(id))
					}
					if _, err := r.vms[vm].SignalMSI(address, vector); err != nil {
						t.Errorf("%#x in VM %d: %v", address, vm, err)
					}
					select {
					case at := <-got:
						if at != uint32(id) {
							t.Fatalf("an interrupt for vCPU %d arrived at %d", id, at)
						}
					case <-time.After(patience):
						t.Errorf("interrupt %d for vCPU %d by VM %d, address %#x, was lost", i, id, vm, address)
						r.set.Stop()
						r.wait()
						return
					}
				}
			}
		}
	}
	r.wait()
	r.expect(fmt.Sprintf("wide: up\nwide: %d answers, 0 clocks behind\n", vms*vcpus*each*2))
}
