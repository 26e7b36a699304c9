package vmm

import (
	"cmp"
	"runtime"
	"slices"
	"time"

	"disco/numa"
	"disco/scheduler"
	"disco/scheduler/host"
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

	// Where the host schedules, these are zero. Asked is how many CPUs the tickets
	// entitle to while all guests compete.
	Tickets int64
	Group   string
	Asked   float64
	Limit   float64 // most CPUs that it may use; 0 is no limit
	// Workers is the CPU time that the monitor's workers have used for the guest, which
	// it pays for. It goes on over restarts.
	Workers time.Duration
}

// LiveVCPU is what a vCPU is doing.
type LiveVCPU struct {
	Node    numa.Node
	Pool    int                  // of the scheduler
	Asked   float64              // as in Live
	Waiting bool                 // it wants to run, and the scheduler has others run
	Asleep  bool                 // its thread waits, as when the guest has halted it
	Used    time.Duration        // CPU time
	Delayed time.Duration        // time in which the kernel ran others
	Held    time.Duration        // time in which our scheduler ran others
	Relayed uint64               // interrupts from vCPUs of other nodes
	Exits   [kvm.NumExits]uint64 // to the monitor, by reason
	KVM     kvm.Stats            // KVM's own counters; nil where the host schedules
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
	m.mu.Lock()
	pools, groups := m.shares.pools, m.cfg.Scheduler.Groups
	m.mu.Unlock()
	entitle(all, pools, groups)
	type vcpu struct {
		guest string
		id    int
	}
	waits := map[vcpu]bool{}
	for _, u := range m.Usage() {
		waits[vcpu{u.Guest, u.VCPU}] = u.State == host.Waiting || u.State == host.Capped
	}
	for i := range all {
		for id := range all[i].VCPUs {
			all[i].VCPUs[id].Waiting = waits[vcpu{all[i].Name, id}]
		}
	}
	return all
}

// entitle fills in what tickets are worth, on CPUs in pools.
func entitle(all []Live, pools [][]int, groups map[string]int64) {
	in := map[string]int64{} // tickets of a group's guests
	for i := range all {
		in[all[i].Group] += all[i].Tickets
	}
	const one = 1 << 20 // of a ticket
	weight := func(l *Live) uint64 {
		w := float64(l.Tickets) * one
		if l.Group != "" {
			n, ok := groups[l.Group]
			if !ok {
				n = DefaultTickets
			}
			w *= float64(n) / float64(in[l.Group])
		}
		return uint64(max(1, w/float64(len(l.VCPUs))))
	}
	for p, cpus := range pools {
		var weights []uint64
		for i := range all {
			for j := range all[i].VCPUs {
				if v := &all[i].VCPUs[j]; all[i].Tickets > 0 && v.Pool == p {
					weights = append(weights, weight(&all[i]))
				}
			}
		}
		most := scheduler.Feasible(slices.Clone(weights), len(cpus))
		var total float64
		for _, w := range weights {
			total += float64(min(w, most))
		}
		for i := range all {
			for j := range all[i].VCPUs {
				if v := &all[i].VCPUs[j]; all[i].Tickets > 0 && v.Pool == p {
					v.Asked = min(1, float64(min(weight(&all[i]), most))/total*float64(len(cpus)))
					all[i].Asked += v.Asked
				}
			}
		}
	}
	for i := range all {
		if l := &all[i]; l.Limit > 0 {
			l.Asked = min(l.Asked, l.Limit)
		}
	}
}

// Scheduling is who divides a Monitor's CPUs.
type Scheduling struct {
	Kind    SchedulerKind // SchedulerHost also where the host's was fallen back on
	Quantum time.Duration
	CPUs    int
}

// Scheduling is how CPUs are divided. It is settled when the first guest comes.
func (m *Monitor) Scheduling() Scheduling {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shares.scheduler == nil {
		return Scheduling{Kind: SchedulerHost, CPUs: runtime.NumCPU()}
	}
	s := Scheduling{Kind: m.cfg.Scheduler.Kind, Quantum: cmp.Or(m.cfg.Scheduler.Quantum, host.DefaultQuantum)}
	for _, p := range m.shares.pools {
		s.CPUs += len(p)
	}
	return s
}

// SetTickets is Guest.SetTickets of the guest of this name; false if there is none.
func (m *Monitor) SetTickets(name string, n int64) (bool, error) {
	for _, g := range m.Guests() {
		if g.cfg.Name == name {
			return true, g.SetTickets(n)
		}
	}
	return false, nil
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
	if g.share != nil {
		l.Tickets, l.Group, l.Limit = g.Tickets(), g.cfg.Group, float64(g.cfg.CPULimit)/1000
		l.Workers = g.share.guest.Worked()
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
		c.Node, c.Asleep, c.Used, c.Delayed, c.Held, c.Relayed = p.Homes[id], v.Asleep(), v.Used(), v.Delayed(), v.Held(), v.Relayed()
		for e := range kvm.Exit(kvm.NumExits) {
			c.Exits[e] = v.Exits(e)
		}
		c.KVM = v.KVMStats()
		if m.share != nil {
			c.Pool = m.share.pool(m, id)
		}
	}
}
