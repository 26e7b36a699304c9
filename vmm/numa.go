package vmm

import (
	"fmt"
	"log/slog"
	"os"

	"disco/memory"
	"disco/numa"
	"disco/numa/balance"
	"disco/vcpu"
	"disco/vcpu/kvm"
	"disco/vmm/boot"
)

// topology is that of the host, or what cfg puts in its place.
func (n *NUMA) topology() (*numa.Topology, error) {
	t := n.Topology
	if t == nil {
		var err error
		if t, err = numa.Read(os.DirFS("/")); err != nil {
			return nil, &HostError{fmt.Errorf("NUMA nodes: %w", err)}
		}
	}
	if n.FakeNodes == 0 {
		return t, nil
	}
	fake, err := t.Fake(n.FakeNodes)
	if err != nil {
		return nil, &ConfigError{[]error{fmt.Errorf("fake nodes: %w", err)}}
	}
	return fake, nil
}

// settle chooses the guest's nodes and makes sure that this host can run it on
// them, which others were given parts of. With Lenient, cfg is changed to what the
// host can do.
func settle(cfg *Config, sys *kvm.System, given map[numa.Node]grant, log *slog.Logger) (*place, error) {
	n := &cfg.NUMA
	t, err := n.topology()
	if err != nil {
		return nil, err
	}
	p, err := placeGuest(n, t, given, cfg.CPUs, cfg.Memory)
	if err != nil {
		return nil, &ConfigError{[]error{err}}
	}
	if len(p.nodes) == 1 || n.Plain {
		n.Balance.Policy = balance.Off
		return p, nil
	}
	if err := canSpan(sys); err != nil {
		if !n.Lenient {
			return nil, &HostError{fmt.Errorf("a guest on nodes %s: %w", numa.FormatNodes(p.nodes), err)}
		}
		log.Warn("the guest's nodes share one KVM VM, and its pages stay where they are", "reason", err)
		n.Plain, n.Balance.Policy = true, balance.Off
		return p, nil
	}
	if n.Balance.Policy == balance.Off {
		return p, nil
	}
	if err := memory.Probe(); err != nil {
		err = fmt.Errorf("moving pages: %w", err)
		if !n.Lenient {
			return nil, &HostError{fmt.Errorf("%w; or choose the policy off", err)}
		}
		log.Warn("the guest's pages stay where they are", "reason", err)
		n.Balance.Policy = balance.Off
	}
	return p, nil
}

// canSpan says why this host cannot run a guest as several KVM VMs.
func canSpan(sys *kvm.System) error {
	if ok, why := kvm.TwoDimensional(os.DirFS("/")); !ok {
		return fmt.Errorf("KVM must use two-dimensional paging: %s", why)
	}
	return sys.Wide()
}

// openMemory makes the guest's memory and a View for each of its KVM VMs.
func (m *machine) openMemory(cfg *Config, ram []memory.Range, log *slog.Logger) ([]*memory.View, error) {
	n, p := &cfg.NUMA, m.place
	o := memory.Options{Name: "disco-" + cfg.Name, RAM: ram, Huge: n.Huge}
	if p.pin || len(p.nodes) > 1 {
		o.Topology, o.Nodes, o.Place = p.topology, p.nodes, p.memory
		o.Tracked = n.Balance.Policy != balance.Off
		o.HostBalancing = n.HostBalancing
	}
	views := make([]*memory.View, 1)
	if n.wide(p) {
		views = make([]*memory.View, len(p.nodes))
	}
	// A tracked Space can share as it is. One with several Views and no states can
	// not, and one whose pages the kernel balances must not.
	if !o.Tracked && !o.HostBalancing && len(views) == 1 {
		var err error
		if o.Sharing, err = cfg.shares(log); err != nil {
			return nil, err
		}
	}
	var err error
	if m.space, err = memory.Open(o); err != nil {
		return nil, err
	}
	for i := range views {
		if i > 0 && !o.Tracked {
			if _, err := m.space.NewView(); err != nil {
				return nil, err
			}
		}
		views[i] = m.space.View(i)
	}
	return views, nil
}

// setOptions are those of the guest's vCPUs.
func (m *machine) setOptions(sys *kvm.System, cfg *Config, supported []kvm.CPUIDEntry, log *slog.Logger) vcpu.SetOptions {
	p, wide := m.place, cfg.NUMA.wide(m.place)
	o := vcpu.SetOptions{
		System: sys, VMs: m.vms, Homes: make([]int, cfg.CPUs), Handler: buses{m},
		CPUID:  func(id int) []kvm.CPUIDEntry { return vcpu.CPUID(supported, id, cfg.CPUs) },
		Stolen: m.stolen,
	}
	if len(m.menders) > 0 {
		o.CPUID = func(id int) []kvm.CPUIDEntry { return vcpu.WithoutAsyncPF(vcpu.CPUID(supported, id, cfg.CPUs)) }
		o.Mend = m.mend
	}
	switch {
	case len(p.nodes) > len(m.vms): // one KVM VM for all
		o.Pin = func(id, _ int) []int { return cpusOf(p.topology, p.nodes[p.homes[id]]) }
	case p.pin || len(p.nodes) > 1:
		for _, n := range p.nodes {
			o.CPUs = append(o.CPUs, cpusOf(p.topology, n))
		}
	}
	if !wide {
		return o
	}
	o.Homes, o.RelayBase = p.homes, boot.RelayArea
	o.Thread = func(vm, _ int) { m.space.Threads(p.nodes[vm], m.set.Threads(vm)...) }
	o.Moved = func(id, _, _ int) {
		m.vcpuMoved(id)
		if err := m.irq.moved(); err != nil {
			log.Error("interrupts of a vCPU that moved", "vcpu", id, "error", err)
		}
	}
	return o
}

func cpusOf(t *numa.Topology, n numa.Node) []int {
	cpus := make([]int, 0, len(t.CPUs(n)))
	for _, c := range t.CPUs(n) {
		cpus = append(cpus, int(c))
	}
	return cpus
}

// makeBalance makes what moves the guest's pages.
func (m *machine) makeBalance(cfg *Config, log *slog.Logger) (err error) {
	if !cfg.NUMA.wide(m.place) || cfg.NUMA.Balance.Policy == balance.Off {
		return nil
	}
	m.balance, err = balance.New(cfg.NUMA.Balance, m.space, m.place.topology, m.place.nodes, log)
	return err
}
