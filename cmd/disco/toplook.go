package main

import (
	"slices"

	"disco/control"
)

// topLook is what disco top shows: what monitors do, between two answers of theirs.
// With --json this is printed, so the names stay.
type topLook struct {
	Monitors []topMonitor `json:"monitors"`
	Trouble  []string     `json:"trouble,omitempty"` // monitors that did not answer as they should
}

type topMonitor struct {
	PID       int        `json:"pid"`
	Program   string     `json:"program"`
	Scheduler string     `json:"scheduler"`
	CPUs      int        `json:"cpus"`
	Quantum   float64    `json:"quantum_s"`
	Interval  float64    `json:"interval_s"` // between the answers; 0 if there was one only
	Guests    []topGuest `json:"guests"`
}

// topUse is of a guest or a vCPU. What ends in CPUs is a mean number of CPUs over
// the interval: 0.5 is half of one.
type topUse struct {
	State   string  `json:"state"`
	Asked   float64 `json:"asked_cpus"` // that its tickets entitle it to while all compete
	Got     float64 `json:"got_cpus"`
	Waiting float64 `json:"waiting_cpus"` // that it wanted and did not get
	Steal   float64 `json:"steal_cpus"`   // of them, what the guest sees as steal time
	// Exits to the monitor per second, by reason.
	Exits map[string]float64 `json:"exits_per_s"`
	// KVM are all exits per second, by KVM's names; exits is the sum. It is empty
	// where KVM does not say.
	KVM     map[string]float64 `json:"kvm_exits_per_s"`
	Relayed float64            `json:"relayed_ipis_per_s"`
	fresh   bool               // seen for the first time: there are no rates
}

type topGuest struct {
	Name string `json:"name"`
	topUse
	Memory   uint64 `json:"memory"` // bytes
	Resident uint64 `json:"resident"`
	Shared   uint64 `json:"shared"`
	Nodes    []int  `json:"nodes"`
	// LocalShare is nil where nothing is sampled.
	LocalShare *float64 `json:"local_share"`
	Group      string   `json:"group,omitempty"`
	Tickets    int64    `json:"tickets"`
	Limit      float64  `json:"limit_cpus"` // 0 is no limit
	// Workers is the part of Got that the monitor's workers used for it.
	Workers float64 `json:"workers_cpus"`
	// TLP is the number of vCPUs that run while any does, and Parallel[i] the part
	// of time in which exactly i do.
	TLP      float64   `json:"tlp"`
	Parallel []float64 `json:"parallel"`
	VCPUs    []topVCPU `json:"vcpus"`
}

type topVCPU struct {
	ID   int `json:"id"`
	Node int `json:"node"`
	topUse
}

// lookAt makes a look of what the same monitors answered before and now.
func lookAt(before, now []*seen) *topLook {
	look := &topLook{Monitors: []topMonitor{}}
	for _, s := range now {
		i := slices.IndexFunc(before, func(b *seen) bool { return b.Monitor.PID == s.Monitor.PID && b.path == s.path })
		var old *control.Snapshot
		if i >= 0 && before[i].Monitor.Uptime < s.Monitor.Uptime {
			old = before[i].Snapshot
		}
		look.Monitors = append(look.Monitors, monitorLook(old, s.Snapshot))
	}
	return look
}

func monitorLook(old, s *control.Snapshot) topMonitor {
	m := topMonitor{
		PID: s.Monitor.PID, Program: s.Monitor.Program, Scheduler: s.Monitor.Scheduler, CPUs: s.Monitor.CPUs,
		Quantum: float64(s.Monitor.Quantum) / 1e9, Guests: []topGuest{},
	}
	if old != nil {
		m.Interval = float64(s.Monitor.Uptime-old.Monitor.Uptime) / 1e9
	}
	for i := range s.Guests {
		g := &s.Guests[i]
		var was *control.Guest
		if old != nil {
			if at := slices.IndexFunc(old.Guests, func(o control.Guest) bool { return o.Name == g.Name }); at >= 0 {
				was = &old.Guests[at]
			}
		}
		m.Guests = append(m.Guests, guestLook(&m, was, g))
	}
	return m
}

// since is how much a total has grown. A restart begins it anew.
func since(was, is uint64) uint64 {
	if is < was {
		return is
	}
	return is - was
}

func guestLook(m *topMonitor, was, g *control.Guest) topGuest {
	t := topGuest{
		Name: g.Name, Memory: g.Memory, Resident: g.Resident, Shared: g.Shared, Nodes: g.Nodes, LocalShare: g.LocalShare,
		Group: g.Group, Tickets: g.Tickets, Limit: g.Limit, Parallel: []float64{}, VCPUs: []topVCPU{},
	}
	t.State, t.Asked, t.Exits, t.KVM, t.fresh = g.State, g.Asked, map[string]float64{}, map[string]float64{}, was == nil
	for i := range g.VCPUs {
		var before *control.VCPU
		if was != nil && i < len(was.VCPUs) {
			before = &was.VCPUs[i]
		}
		v := vcpuLook(m, before, &g.VCPUs[i])
		t.Got += v.Got
		t.Waiting += v.Waiting
		t.Steal += v.Steal
		t.Relayed += v.Relayed
		for reason, n := range v.Exits {
			t.Exits[reason] += n
		}
		for kind, n := range v.KVM {
			t.KVM[kind] += n
		}
		t.VCPUs = append(t.VCPUs, v)
	}
	if was != nil && m.Interval > 0 {
		t.Workers = float64(since(was.Workers, g.Workers)) / m.Interval / 1e9
		t.Got += t.Workers
	}
	var spent []uint64
	var sum float64
	for i, n := range g.Parallel {
		if was != nil && i < len(was.Parallel) {
			n = since(was.Parallel[i], n)
		}
		spent = append(spent, n)
		sum += float64(n)
	}
	t.TLP = control.TLP(spent)
	for _, n := range spent {
		if sum > 0 {
			t.Parallel = append(t.Parallel, float64(n)/sum)
		}
	}
	return t
}

func vcpuLook(m *topMonitor, was, v *control.VCPU) topVCPU {
	t := topVCPU{ID: v.ID, Node: v.Node}
	t.State, t.Asked, t.Exits, t.KVM = v.State, v.Asked, map[string]float64{}, map[string]float64{}
	if t.fresh = was == nil || m.Interval == 0; t.fresh {
		return t
	}
	rate := func(was, is uint64) float64 { return float64(since(was, is)) / m.Interval }
	t.Got, t.Waiting, t.Steal = rate(was.CPU, v.CPU)/1e9, rate(was.Waited, v.Waited)/1e9, rate(was.Stolen, v.Stolen)/1e9
	t.Relayed = rate(was.Relayed, v.Relayed)
	for reason, n := range v.Exits {
		if r := rate(was.Exits[reason], n); r > 0 {
			t.Exits[reason] = r
		}
	}
	for kind, n := range v.KVM {
		if r := rate(was.KVM[kind], n); r > 0 {
			t.KVM[kind] = r
		}
	}
	return t
}

// exits are those of all kinds: of the guest, or, where KVM does not say, to the
// monitor.
func (u *topUse) exits() (sum float64) {
	if n, ok := u.KVM[allExits]; ok {
		return n
	}
	for _, n := range u.Exits {
		sum += n
	}
	return sum
}
