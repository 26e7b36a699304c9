package locality

import (
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

// config is a guest for policy p; a thin one has the first node's vCPUs only.
func (o *Options) config(p Policy, thin bool) vmm.Config {
	c := vmm.Config{
		Name: "bench", Kernel: o.Kernel, Initrd: o.Initrd, Cmdline: o.Cmdline, Console: vmm.ConsoleSerial,
		CPUs: o.CPUs, Memory: o.Memory,
	}
	if thin {
		c.CPUs /= len(o.Nodes)
	}
	return c
}

func (m *machine) Locate(dst []numa.Node, p uint64) error { clear(dst); return nil }
func (m *machine) Replicas(p uint64) uint32               { return 0 }
func (m *machine) Nodes() []numa.Node                     { return m.nodes }
func (m *machine) NodeOf(vcpu int) numa.Node              { return m.nodes[vcpu%len(m.nodes)] }
func (m *machine) Move(to numa.Node) error                { return nil }
func (m *machine) Counters() Counters                     { return Counters{} }

var _ = memory.Range{}
