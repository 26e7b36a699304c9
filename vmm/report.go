package vmm

import (
	"sync/atomic"
	"time"

	"disco/vcpu/kvm"
)

// Report is what a run cost. Times are seconds since New was called; counts are
// summed over vCPUs and over restarts.
type Report struct {
	Name    string  `json:"name,omitempty"`
	CPUs    int     `json:"cpus"`
	Memory  uint64  `json:"memory"` // bytes
	Outcome Outcome `json:"outcome"`
	Built   float64 `json:"built_s"`   // ready to run
	Started float64 `json:"started_s"` // first instruction
	Ended   float64 `json:"ended_s"`
	Reboots int     `json:"reboots"`

	// Exits to the monitor by reason, and their sum: each is a KVM_RUN that
	// returned.
	Exits         map[string]uint64 `json:"exits"`
	UserspaceExit uint64            `json:"userspace_exits"`
	// KVM are KVM's own counters of the vCPUs, where the kernel has them;
	// "exits" among them counts every exit, those that stay in the kernel too.
	KVM map[string]uint64 `json:"kvm,omitempty"`
	// NUMA is where the guest's current or last machine is, and what was done about
	// it; nil if it never ran, or is closed.
	NUMA *NUMAStats `json:"numa,omitempty"`
	// Folders are what it did with shared folders, in the order of Config.Folders.
	Folders []FolderStats `json:"folders,omitempty"`
	// Missed are accesses to addresses where no device is.
	Missed uint64 `json:"missed_accesses"`
}

// clock holds when things happened, from the making of the guest on.
type clock struct {
	zero                  time.Time
	built, started, ended moment
}

// moment is a time since the clock's zero in nanoseconds; 0 has not come yet.
type moment struct{ atomic.Int64 }

func (c *clock) begin() { c.zero = time.Now() }

func (c *clock) mark(m *moment) { m.Store(int64(time.Since(c.zero))) }

func (m *moment) seconds() float64 { return time.Duration(m.Load()).Seconds() }

// account adds a halted machine's counters to the report.
func (g *Guest) account(m *machine) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := &g.report
	if r.Exits == nil {
		r.Exits = map[string]uint64{}
	} else {
		r.Reboots++
	}
	for _, v := range m.vcpus {
		for e := range kvm.Exit(kvm.NumExits) {
			if n := v.Exits(e); n > 0 {
				r.Exits[e.String()] += n
				r.UserspaceExit += n
			}
		}
		// A kernel before 5.14 has no statistics; the report goes without.
		stats, err := v.KVM().Stats()
		if err != nil {
			continue
		}
		if r.KVM == nil {
			r.KVM = map[string]uint64{}
		}
		for name, n := range stats {
			r.KVM[name] += n
		}
	}
	r.Missed += m.pio.Missed() + m.mmio.Missed()
}

// Report is the account of the run so far; it is complete between Run and Close.
// Where the guest's memory is costs some 0.1 µs for each page of it.
func (g *Guest) Report() Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.report
	if g.machine != nil && g.clock.started.Load() != 0 {
		n := g.machine.numaStats()
		r.NUMA = &n
	}
	r.Folders = g.FolderStats()
	r.Name, r.CPUs, r.Memory = g.cfg.Name, g.cfg.CPUs, g.cfg.Memory
	r.Built, r.Started, r.Ended = g.clock.built.seconds(), g.clock.started.seconds(), g.clock.ended.seconds()
	return r
}
