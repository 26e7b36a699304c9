package integration

import "testing"

// TestLabNodesRelays does what the tests of wide guests on any KVM do, less
// often, on one like a server's. CPUs are not started a second time here: that
// ends in a breakpoint on a nested guest's instruction, of which QEMU dies.
func TestLabNodesRelays(t *testing.T) {
	t.Run("birth", func(t *testing.T) { wideBirth(t, 1) })
	t.Run("interrupts", func(t *testing.T) { wideInterrupts(t, 50) })
	t.Run("moves", func(t *testing.T) { wideMove(t, 50) })
}
