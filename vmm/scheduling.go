package vmm

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"disco/numa"
	"disco/scheduler"
	"disco/scheduler/flow"
	"disco/scheduler/host"
)

// SchedulerKind says who chooses which vCPU runs.
type SchedulerKind int

const (
	// SchedulerStride divides CPU time by tickets, exactly.
	SchedulerStride SchedulerKind = iota
	// SchedulerLottery divides it by tickets, by drawing lots.
	SchedulerLottery
	// SchedulerHost leaves it to the host's own scheduler.
	SchedulerHost
)

// DefaultTickets is what guests and groups have that say nothing of it.
const DefaultTickets = 100

// SchedulerConfig says how the guests of a Monitor divide the host's CPUs.
type SchedulerConfig struct {
	Kind    SchedulerKind
	Quantum time.Duration    // 1 to 30 ms; 0 for 10 ms
	CPUs    []int            // host CPUs for vCPUs; nil for all that this process may use
	Groups  map[string]int64 // tickets of groups, DefaultTickets for those not named

	// Strict makes it an error if this process lacks the rights. Otherwise it is
	// left to the host then, with a warning.
	Strict bool
}

// CheckTickets refuses a number of tickets that cannot be had.
func CheckTickets(n int64) error { return scheduler.CheckTickets(n) }

// Validate returns nil or a *ConfigError with all that is wrong with c.
func (c *SchedulerConfig) Validate() error {
	v := validator{}
	if c.Kind < SchedulerStride || c.Kind > SchedulerHost {
		v.add("scheduler: there is none with number %d", c.Kind)
	}
	if q := c.Quantum; q != 0 && (q < host.MinQuantum || q > host.MaxQuantum) {
		v.add("quantum %v: use %v to %v", q, host.MinQuantum, host.MaxQuantum)
	}
	if c.CPUs != nil {
		if _, err := usable(c.CPUs); err != nil {
			v.problems = append(v.problems, err)
		}
	}
	for name, n := range c.Groups {
		if err := scheduler.CheckTickets(n); err != nil {
			v.add("group %s: %w", name, err)
		}
	}
	if v.problems != nil {
		return &ConfigError{v.problems}
	}
	return nil
}

// HostCPUs are the CPUs that this process may use.
func HostCPUs() []int {
	cpus, _ := usable(nil) // a process can always ask for its own
	return cpus
}

// usable are the given CPUs, or all that this process may use.
func usable(want []int) ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, &HostError{fmt.Errorf("the CPUs of this process: %w", err)}
	}
	if want == nil {
		var all []int
		for c := range 64 * len(set) {
			if set.IsSet(c) {
				all = append(all, c)
			}
		}
		return all, nil
	}
	if len(want) == 0 {
		return nil, errors.New("host CPUs: none is named")
	}
	for i, c := range want {
		if slices.Contains(want[:i], c) {
			return nil, fmt.Errorf("host CPUs: %d is named twice", c)
		}
		if c < 0 || c >= 64*len(set) || !set.IsSet(c) {
			return nil, &HostError{fmt.Errorf("host CPUs: %d is not there, not online, or forbidden to this process", c)}
		}
	}
	return want, nil
}

// shares is how a Monitor's guests divide the CPUs. Monitor.mu guards it.
type shares struct {
	scheduler *host.Scheduler // nil before the first guest, and where the host schedules
	pools     [][]int         // CPUs, a set for each node
	nodes     []numa.Node     // those nodes
	fake      int             // into how many the host's was split
	relief    *relief         // with several nodes
	groups    map[string]*host.Group
	declined  bool // the host schedules after all

	disks map[uint64]*flow.Gate // by the host's device number
}

// share is a guest's part in it: what it holds outlives a restart.
type share struct {
	guest *host.Guest
	pools [][]int
	flows map[*flow.Gate]*flow.Flow // Monitor.mu guards it
}

// enter gives a guest its tickets. The lock is held. It is nil where the host
// schedules.
func (m *Monitor) enter(cfg *Config) (*share, error) {
	if err := m.schedule(&cfg.NUMA); err != nil || m.shares.scheduler == nil {
		return nil, err
	}
	c := host.GuestConfig{Name: cfg.Name, Tickets: cfg.Tickets, Limit: cfg.CPULimit, Gang: cfg.Gang}
	if c.Tickets == 0 {
		c.Tickets = DefaultTickets
	}
	if cfg.Group != "" {
		var err error
		if c.Group, err = m.group(cfg.Group); err != nil {
			return nil, err
		}
	}
	g, err := m.shares.scheduler.NewGuest(c)
	if err != nil {
		return nil, err
	}
	return &share{guest: g, pools: m.shares.pools, flows: map[*flow.Gate]*flow.Flow{}}, nil
}

func (m *Monitor) group(name string) (*host.Group, error) {
	if g := m.shares.groups[name]; g != nil {
		return g, nil
	}
	g, err := m.shares.scheduler.NewGroup(name, nil, m.groupTickets(name))
	if err != nil {
		return nil, err
	}
	if m.shares.groups == nil {
		m.shares.groups = map[string]*host.Group{}
	}
	m.shares.groups[name] = g
	return g, nil
}

// schedule starts the scheduler, if there is to be one and it does not run. n has the
// first guest's nodes.
func (m *Monitor) schedule(n *NUMA) error {
	c := &m.cfg.Scheduler
	if c.Kind == SchedulerHost || m.shares.scheduler != nil || m.shares.declined {
		return nil
	}
	if err := c.Validate(); err != nil {
		return err
	}
	cpus, err := usable(c.CPUs)
	if err != nil {
		return err
	}
	t, err := n.topology()
	if err != nil {
		return err
	}
	o := host.Config{Quantum: c.Quantum, Bound: c.CPUs != nil, Seed: uint64(time.Now().UnixNano()), Log: m.log}
	if c.Kind == SchedulerLottery {
		o.Kind = host.Lottery
	}
	var nodes []numa.Node
	for _, n := range t.Nodes() {
		pool := slices.DeleteFunc(cpusOf(t, n), func(c int) bool {
			return !slices.Contains(cpus, c) || slices.ContainsFunc(o.Pools, func(p []int) bool { return slices.Contains(p, c) })
		})
		if len(pool) > 0 {
			o.Pools, nodes = append(o.Pools, pool), append(nodes, n)
		}
	}
	s, err := host.New(o)
	switch {
	case err == nil:
		m.shares.scheduler, m.shares.pools, m.shares.nodes, m.shares.fake = s, o.Pools, nodes, n.FakeNodes
		if len(nodes) > 1 {
			m.shares.relief = m.relieve(s, t)
		}
	case c.Strict:
		return &HostError{err}
	default:
		m.log.Warn("tickets count for nothing", "error", err)
		m.shares.declined = true
	}
	return nil
}

// close ends the scheduler, after the guests.
func (s *shares) close() {
	if s.relief != nil {
		s.relief.end()
	}
	if s.scheduler != nil {
		s.scheduler.Close()
	}
}

// leave gives up a guest's tickets.
func (s *share) leave() error {
	if s == nil {
		return nil
	}
	return s.guest.Close()
}

// turns is where the guest's requests to the disk of the host that a path is on wait
// for their turns, as all guests' do by their tickets. It is nil where the host
// schedules.
func (g *Guest) turns(path string) *flow.Flow {
	if g.share == nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return nil // what is opened next says why
	}
	device := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		device = st.Rdev
	}
	m := g.monitor
	m.mu.Lock()
	defer m.mu.Unlock()
	gate := m.shares.disks[device]
	if gate == nil {
		if m.shares.disks == nil {
			m.shares.disks = map[uint64]*flow.Gate{}
		}
		gate = flow.New(flow.Config{})
		m.shares.disks[device] = gate
	}
	return g.flow(gate)
}

// through is the guest's flow through a gate. Where the host schedules, all are alike.
func (g *Guest) through(gate *flow.Gate) *flow.Flow {
	if g.share == nil {
		return gate.NewFlow(1)
	}
	g.monitor.mu.Lock()
	defer g.monitor.mu.Unlock()
	return g.flow(gate)
}

// flow is the guest's; Monitor.mu is held.
func (g *Guest) flow(gate *flow.Gate) *flow.Flow {
	f := g.share.flows[gate]
	if f == nil {
		f = gate.NewFlow(1)
		g.share.flows[gate] = f
		g.monitor.weigh()
	}
	return f
}

// weigh tells all flows what their guests' tickets are worth now. A group's are divided
// among all its guests, whether they use what the flow is of or not. The lock is held.
func (m *Monitor) weigh() {
	in := map[string]float64{} // tickets of a group's guests
	for _, g := range m.guests {
		if g.share != nil {
			in[g.cfg.Group] += float64(g.share.guest.Tickets())
		}
	}
	for _, g := range m.guests {
		if g.share == nil || len(g.share.flows) == 0 {
			continue
		}
		w := float64(g.share.guest.Tickets()) * scheduler.One
		if g.cfg.Group != "" {
			w *= float64(m.groupTickets(g.cfg.Group)) / in[g.cfg.Group]
		}
		for _, f := range g.share.flows {
			f.SetWeight(uint64(w))
		}
	}
}

func (m *Monitor) groupTickets(name string) int64 {
	if n, ok := m.cfg.Scheduler.Groups[name]; ok {
		return n
	}
	return DefaultTickets
}

// pool is the one in which vCPU id of a machine runs: that of its node.
func (s *share) pool(m *machine, id int) int {
	p := m.place
	if !p.pin && len(p.nodes) == 1 {
		return 0
	}
	at := p.homes[id]
	if len(m.vms) > 1 {
		at = m.set.Home(id)
	}
	cpus := p.topology.CPUs(p.nodes[at])
	return max(0, slices.IndexFunc(s.pools, func(pool []int) bool {
		return slices.ContainsFunc(cpus, func(c numa.CPU) bool { return slices.Contains(pool, int(c)) })
	}))
}

// enlist has a machine's vCPUs run by the guest's tickets, from before they start
// until dismissVCPUs.
func (m *machine) enlist(s *share, log *slog.Logger) error {
	if s == nil {
		return nil
	}
	m.share = s
	for id, v := range m.vcpus {
		if err := v.WatchHalts(); err != nil {
			// Kernels before 5.17 do not tell. Then one that has halted is found
			// out when it has its turn and does not use it.
			log.Debug("who has halted is not known", "vcpu", id, "error", err)
		}
		member, err := s.guest.Add(id, v, s.pool(m, id))
		if err != nil {
			return err
		}
		m.members = append(m.members, member)
	}
	for _, t := range m.transports {
		t.PaidBy(s.guest)
	}
	return nil
}

// vcpuMoved puts a vCPU into the pool of the node that it has moved to.
func (m *machine) vcpuMoved(id int) {
	if m.share != nil {
		m.members[id].Move(m.share.pool(m, id))
	}
}

// dismissVCPUs takes the vCPUs out, so that they end as fast as the host lets them.
func (m *machine) dismissVCPUs() {
	for _, v := range m.members {
		v.Remove()
	}
}

// Usage is what the vCPUs of a Monitor's guests have had of the host's CPUs, and
// what their tickets were worth. It is empty where the host schedules.
func (m *Monitor) Usage() []host.Usage {
	m.mu.Lock()
	s := m.shares.scheduler
	m.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.Usage()
}

var errHostSchedules = errors.New("the host schedules this guest's vCPUs, and tickets count for nothing")

// SetTickets changes the guest's tickets while it runs; they count from the next
// quantum on.
func (g *Guest) SetTickets(n int64) error {
	if g.share == nil {
		return errHostSchedules
	}
	if err := g.share.guest.SetTickets(n); err != nil {
		return err
	}
	g.monitor.mu.Lock()
	defer g.monitor.mu.Unlock()
	g.monitor.weigh()
	return nil
}

// Tickets is how many the guest has; 0 where the host schedules.
func (g *Guest) Tickets() int64 {
	if g.share == nil {
		return 0
	}
	return g.share.guest.Tickets()
}
