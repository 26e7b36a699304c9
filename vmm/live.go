package vmm

import (
	"time"

	"disco/numa"
	"disco/vcpu/kvm"
)

// LiveState is how far a guest has come.
type LiveState int

const (
	// LiveBuilt has not run yet.
	LiveBuilt LiveState = iota
	// LiveRunning runs.
	LiveRunning
	// LiveRestarting is between two machines.
	LiveRestarting
	// LiveEnded has run.
	LiveEnded
)

// Live is what a guest is doing. Counts are those of the current machine: they
// begin anew when the guest restarts.
type Live struct {
	Name     string
	State    LiveState
	CPUs     int
	Memory   uint64 // bytes it was given
	Resident uint64 // bytes of its own that exist
	Shared   uint64 // pages that it has in common with the cache
	Nodes    []numa.Node
	// LocalShare is as in NUMAStats; Sampled is false where nothing is.
	LocalShare float64
	Sampled    bool
	// Parallel[i] is how long exactly i vCPUs ran at once, since somebody watches:
	// see Monitor.Live.
	Parallel []time.Duration
	VCPUs    []LiveVCPU // none between two machines
}

// LiveVCPU is what a vCPU is doing.
type LiveVCPU struct {
	Node    numa.Node
	Asleep  bool                 // its thread waits, as when the guest has halted it
	Used    time.Duration        // CPU time
	Delayed time.Duration        // time in which the kernel ran others
	Relayed uint64               // interrupts from vCPUs of other nodes
	Exits   [kvm.NumExits]uint64 // to the monitor, by reason
}

// Live tells of all guests. Nothing is counted for it on the way of a guest: it
// reads what is counted anyway, some 20 µs for each vCPU. For half a minute after
// each call the monitor looks 50 to 200 times a second at how many vCPUs run, for
// Parallel.
func (m *Monitor) Live() []Live {
	m.observer.watch(m)
	guests := m.Guests()
	all := make([]Live, len(guests))
	for i, g := range guests {
		all[i] = g.live()
	}
	return all
}

func (g *Guest) live() Live {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := Live{Name: g.cfg.Name, CPUs: g.cfg.CPUs, Memory: g.cfg.Memory, Nodes: g.place.nodes}
	switch m := g.machine; {
	case g.clock.ended.Load() != 0:
		l.State = LiveEnded
	case g.clock.started.Load() == 0:
		l.State = LiveBuilt
	case m == nil:
		l.State = LiveRestarting
	default:
		l.State = LiveRunning
	}
	if g.machine != nil {
		g.machine.live(&l)
	}
	return l
}

func (m *machine) live(l *Live) {
	p := m.placed()
	l.Nodes = p.Nodes
	l.Resident, l.Shared = m.space.Resident(), m.space.Stats().SharedPages
	if m.balance != nil {
		l.LocalShare, l.Sampled = m.balance.Stats().LocalShare, true
	}
	l.Parallel = m.parallel.read()
	l.VCPUs = make([]LiveVCPU, len(m.vcpus))
	for id, v := range m.vcpus {
		c := &l.VCPUs[id]
		c.Node, c.Asleep, c.Used, c.Delayed, c.Relayed = p.Homes[id], v.Asleep(), v.Used(), v.Delayed(), v.Relayed()
		for e := range kvm.Exit(kvm.NumExits) {
			c.Exits[e] = v.Exits(e)
		}
	}
}
