package integration

import (
	"context"
	"strings"
	"testing"
	"time"

	"disco/numa"
	"disco/vmm"
)

// TestKVMMoveGuest moves a guest between fake nodes, and ends it while it is being
// moved.
func TestKVMMoveGuest(t *testing.T) {
	cfg, _ := config(t, "spin", "")
	cfg.NUMA = vmm.NUMA{FakeNodes: 3, Placement: vmm.Placement{Kind: vmm.PlaceNodes, Nodes: []numa.Node{0}}}
	cfg.Memory = 512 << 20
	r := launch(t, cfg)
	for i := range 6 {
		to := numa.Node((i + 1) % 3)
		var last, all uint64
		if err := r.guest.Move(context.Background(), to, func(done, of uint64) { last, all = done, of }); err != nil {
			t.Fatal(err)
		}
		if p, ok := r.guest.Placed(); !ok || p.Nodes[0] != to || p.Homes[0] != to || p.Wide || p.Real || last != all || all != cfg.Memory {
			t.Errorf("moved to %d: %+v, %d of %d bytes", to, p, last, all)
		}
	}
	for node, want := range map[numa.Node]string{3: "no such node has CPUs; there are 0,1,2", 99: "no such node"} {
		if err := r.guest.Move(context.Background(), node, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("move to node %d: %v", node, err)
		}
	}
	if err := r.guest.MoveVCPU(0, 1); err == nil {
		t.Error("a vCPU left the guest's only KVM VM")
	}
	if err := r.guest.MoveVCPU(7, 0); err == nil {
		t.Error("a vCPU moved that is not there")
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := r.guest.Move(ctx, 2, func(done, _ uint64) { cancel() }); err != context.Canceled {
		t.Errorf("a move that was cancelled: %v", err)
	}

	moved := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		var err error
		for i := 0; err == nil; i++ {
			if i == 1 {
				close(begun)
			}
			err = r.guest.Move(context.Background(), numa.Node(i%3), nil)
		}
		moved <- err
	}()
	<-begun
	r.guest.Kill("while it moves")
	r.wait()
	if err := r.guest.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-moved:
	case <-time.After(patience):
		t.Error("the move goes on without a guest")
	}
	if err := r.guest.Move(context.Background(), 0, nil); err == nil {
		t.Error("a guest that is gone was moved")
	}
}
