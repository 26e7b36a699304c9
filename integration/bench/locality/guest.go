package locality

import (
	"context"
	"errors"
	"fmt"

	"disco/memory"
	"disco/numa"
	"disco/numa/balance"
	"disco/vmm"
)

// maxMoves is the cap on the moves of a page.
func (o *Options) maxMoves() int {
	if o.Thresholds.MaxMoves > 0 {
		return o.Thresholds.MaxMoves
	}
	return balance.Default().MaxMoves
}

// config is a guest for policy p; a thin one runs on the first node only.
func (o *Options) config(p Policy, thin bool) vmm.Config {
	n := vmm.NUMA{Topology: o.Topology, Placement: vmm.Placement{Kind: vmm.PlaceNodes, Nodes: o.Nodes}, Balance: o.Thresholds, Late: true}
	n.Balance.Policy = balance.Off
	switch p {
	case Interleave:
		n.Placement.Kind = vmm.PlaceInterleave
	case AutoNUMA:
		n.Plain, n.HostBalancing = true, true
	case Migrate:
		n.Balance.Policy = balance.Migrate
	case Replicate:
		n.Balance.Policy = balance.Replicate
	case Full:
		n.Balance.Policy = balance.Full
	}
	c := vmm.Config{
		Name: "bench", Kernel: o.Kernel, Initrd: o.Initrd, Cmdline: o.Cmdline, Console: vmm.ConsoleSerial,
		CPUs: o.CPUs, Memory: o.Memory, NUMA: n,
	}
	if thin {
		c.CPUs /= len(o.Nodes)
		c.NUMA.Placement.Nodes = o.Nodes[:1]
	}
	return c
}

var errGone = errors.New("the guest is gone")

func (m *machine) Locate(dst []numa.Node, p uint64) error {
	s := m.Space()
	if s == nil {
		return errGone
	}
	return s.Locate(dst, memory.PPN(p))
}

func (m *machine) Replicas(p uint64) uint32 {
	if s := m.Space(); s != nil {
		return s.Replicas(memory.PPN(p))
	}
	return 0
}

func (m *machine) Handled(p uint64) (moved, copied uint64) {
	if s := m.Space(); s != nil {
		return s.Handled(memory.PPN(p))
	}
	return 0, 0
}

// Homes is the Guest's; it is nil when the guest is gone.
func (m *machine) Homes() []numa.Node {
	p, _ := m.Placed()
	return p.Homes
}

// Nodes are those of the guest's Views.
func (m *machine) Nodes() []numa.Node {
	p, _ := m.Placed()
	return p.Nodes
}

// Move takes a thin guest to another node; its memory follows if one of our
// policies is on.
func (m *machine) Move(to numa.Node) error {
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	if !m.policy.acts() {
		cancel() // ends the move when the vCPUs have moved
	}
	err := m.Guest.Move(ctx, to, nil)
	if !m.policy.acts() && errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

func (m *machine) Counters() Counters {
	s := m.Space()
	if s == nil {
		return Counters{}
	}
	t := s.Stats()
	return Counters{
		Migrated: t.Migrated, Replicated: t.Replicated, Collapsed: t.Collapsed,
		Faults:   t.Faults(),
		Sampling: t.Faults() - t.CollapseFaults,
		Copied:   t.BytesCopied,
		Relayed:  m.Relayed(),
	}
}

// checkPlace is an error if the guest is not where the benchmark takes it to be.
func (m *machine) checkPlace(thin bool) error {
	homes := m.Homes()
	if homes == nil {
		return errGone
	}
	for cpu, n := range homes {
		want := m.nodes[0]
		if !thin {
			want = m.nodes[cpu*len(m.nodes)/len(homes)]
		}
		if n != want {
			return fmt.Errorf("vCPU %d is on node %d, and not on %d as the workloads suppose", cpu, n, want)
		}
	}
	return nil
}
