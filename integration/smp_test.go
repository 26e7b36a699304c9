package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestKVMSMP starts application processors by INIT, SIPI, SIPI, through real
// mode, and sees each of them run once, as itself.
func TestKVMSMP(t *testing.T) {
	for _, cpus := range []int{1, 2, 4, 16} {
		t.Run(fmt.Sprint(cpus), func(t *testing.T) {
			r := newRig(t, cpus, "smp", fmt.Sprintf("cpus=%d", cpus))
			r.powerOff()
			var want strings.Builder
			for i := 1; i < cpus; i++ {
				fmt.Fprintf(&want, "cpu %d up\n", i)
			}
			fmt.Fprintf(&want, "smp: %d cpus\n", cpus)
			r.expect(want.String())
		})
	}
}
