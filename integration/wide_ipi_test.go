package integration

import (
	"fmt"
	"testing"
)

// TestKVMWideInterrupts sends interrupts and NMIs between vCPUs of different KVM
// VMs, both ways, to one and to all: each arrives once.
func TestKVMWideInterrupts(t *testing.T) { wideInterrupts(t, 1000) }

func wideInterrupts(t *testing.T, count int) {
	for _, tt := range []struct {
		name       string
		vms, vcpus int
		kind       int
		answers    int
		relayed    int
	}{
		{"one VM", 1, 2, 0, count, 0},
		{"two VMs", 2, 2, 0, count, 2 * count},
		{"two VMs, NMI", 2, 2, 1, count, 2 * count},
		{"two VMs, NMI both ways", 2, 2, 3, count, 2 * count},
		{"two VMs, broadcast", 2, 4, 2, 3 * count, 4 * count},
		{"four VMs", 4, 4, 0, 3 * count, 6 * count},
		{"four VMs, broadcast", 4, 4, 2, 3 * count, 6 * count},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newWideRig(t, tt.vms, spread(tt.vcpus, tt.vms), "wide", fmt.Sprintf("cpus=%d count=%d kind=%d", tt.vcpus, count, tt.kind))
			r.powerOff()
			r.expect(fmt.Sprintf("wide: up\nwide: %d answers, 0 clocks behind\n", tt.answers))
			if n := r.set.Relayed(); n != uint64(tt.relayed) {
				t.Errorf("%d interrupts relayed, want %d", n, tt.relayed)
			}
		})
	}
}
