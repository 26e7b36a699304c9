package vmm

import (
	"context"
	"slices"
	"time"

	"disco/numa"
	"disco/scheduler"
	"disco/scheduler/host"
)

// relief moves vCPUs from nodes where they wait for CPUs to nodes that have some
// free, if that pays (scheduler.Relieve): a guest that is on one node, and had no say
// in which, with its memory; of a guest on several nodes a vCPU among those, by an
// exchange of roles. It looks only while some wait.
//
// What other processes do on the CPUs it does not look at. But who moved and did not
// get more for it shows that the node has less to give than it seems, and nobody
// follows for a while.
type relief struct {
	m        *Monitor
	s        *host.Scheduler
	topology *numa.Topology
	end      context.CancelFunc // it is not waited for: of a Monitor without guests it touches nothing

	shunned map[int]time.Time // pools to which nobody is moved before that time
}

const (
	// reliefSpan is how long it looks before it moves one, and before it judges.
	reliefSpan = 2 * time.Second
	// shunTime is for how long a node that had less to give than it seemed is left alone.
	shunTime = time.Minute
	// moveRate is how many bytes of a guest's memory move in a second of CPU time,
	// and moveVCPU how many seconds an exchange of roles takes.
	moveRate = 1 << 30
	moveVCPU = 0.01
	// remoteShare is the part of its time for which a vCPU whose memory stays behind
	// waits for memory.
	remoteShare = 0.25
)

// relieve begins.
func (m *Monitor) relieve(s *host.Scheduler, t *numa.Topology) *relief {
	ctx, cancel := context.WithCancel(context.Background())
	r := &relief{m: m, s: s, topology: t, end: cancel, shunned: map[int]time.Time{}}
	go r.run(ctx)
	return r
}

func (r *relief) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.s.Crowded():
		}
		before := r.look()
		if !rest(ctx, reliefSpan) {
			return
		}
		after := r.look()
		places, movers, who := r.compare(before, after)
		i, to, ok := scheduler.Relieve(places, movers)
		if !ok {
			continue
		}
		w := who[i]
		if err := r.move(ctx, w, to); err != nil {
			r.m.log.Debug("a guest was not moved to where CPUs are free", "guest", w.guest.cfg.Name, "error", err)
			r.shunned[to] = time.Now().Add(shunTime)
			continue
		}
		r.m.log.Info("moved to where CPUs are free", "guest", w.guest.cfg.Name, "vcpu", w.vcpu, "node", int(r.m.shares.nodes[to]))
		if !r.settled(ctx, w, movers[i].Used) {
			r.shunned[to] = time.Now().Add(shunTime)
		}
	}
}

// rest is false when ctx ends before d is over.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// settled says whether one who has moved has more CPU time than before.
func (r *relief) settled(ctx context.Context, w ident, had float64) bool {
	key := ident{w.guest, max(w.vcpu, 0)} // one for all
	before := r.look()[key]
	if !rest(ctx, reliefSpan) {
		return true
	}
	after, ok := r.look()[key]
	return !ok || (after.used-before.used).Seconds()/reliefSpan.Seconds() > had*float64(before.part)
}

// ident is a vCPU, or a whole guest.
type ident struct {
	guest *Guest
	vcpu  int // or whole
}

const whole = -1

// seen is what a vCPU has had so far.
type seen struct {
	used, waited time.Duration
	pool         int
	part         float64 // of what moves with it: 1 for a vCPU of a guest on several nodes
}

// look reads the clocks of all vCPUs.
func (r *relief) look() map[ident]seen {
	waited := map[string]map[int]time.Duration{}
	for _, u := range r.s.Usage() {
		if waited[u.Guest] == nil {
			waited[u.Guest] = map[int]time.Duration{}
		}
		waited[u.Guest][u.VCPU] = u.Waited
	}
	all := map[ident]seen{}
	for _, g := range r.m.Guests() {
		m, done, err := g.moving()
		if err != nil {
			continue
		}
		g.mu.Lock() // for where it is
		for id, v := range m.vcpus {
			part := 1.0
			if len(m.vms) == 1 {
				part /= float64(len(m.vcpus))
			}
			all[ident{g, id}] = seen{v.Used(), waited[g.cfg.Name][id], m.share.pool(m, id), part}
		}
		g.mu.Unlock()
		done()
	}
	return all
}

// compare says what was used and waited for between two looks, and who may go where.
func (r *relief) compare(before, after map[ident]seen) (places []scheduler.Place, movers []scheduler.Mover, who []ident) {
	pools := r.m.shares.pools
	for _, p := range pools {
		places = append(places, scheduler.Place{CPUs: len(p)})
	}
	span := reliefSpan.Seconds()
	guests := map[*Guest]int{} // index of movers
	for _, g := range r.m.Guests() {
		for id := range g.cfg.CPUs {
			a, z := before[ident{g, id}], after[ident{g, id}]
			if z.part == 0 || a.part == 0 || a.pool != z.pool {
				continue
			}
			used, waited := max(0, (z.used-a.used).Seconds()/span), max(0, (z.waited-a.waited).Seconds()/span)
			places[z.pool].Used += used
			to, cost, slow := r.way(g, z.pool)
			if slow > 0 { // a vCPU by itself
				movers = append(movers, scheduler.Mover{Place: z.pool, To: to, VCPUs: 1, Used: used, Waited: waited, Cost: cost, Slow: slow})
				who = append(who, ident{g, id})
				continue
			}
			i, ok := guests[g]
			if !ok {
				i = len(movers)
				guests[g] = i
				movers = append(movers, scheduler.Mover{Place: z.pool, To: to, Cost: cost})
				who = append(who, ident{g, whole})
			}
			movers[i].VCPUs++
			movers[i].Used += used
			movers[i].Waited += waited
		}
	}
	return places, movers, who
}

// way is to which pools a guest, or its vCPUs that are in one, may go, what it takes
// and by how much slower it is there; slow is 0 for a guest that moves as a whole.
func (r *relief) way(g *Guest, from int) (to []int, cost, slow float64) {
	m, done, err := g.moving()
	if err != nil {
		return nil, 0, 0
	}
	defer done()
	if g.cfg.NUMA.FakeNodes != r.m.shares.fake {
		return nil, 0, 0
	}
	g.mu.Lock()
	p := m.place
	g.mu.Unlock()
	wide := len(m.vms) > 1
	for i, n := range r.m.shares.nodes {
		if time.Now().Before(r.shunned[i]) {
			continue
		}
		if wide && slices.Contains(p.nodes, n) || !wide && len(p.nodes) == 1 && g.cfg.NUMA.Placement.Kind == PlaceAuto {
			to = append(to, i)
		}
	}
	if !wide {
		return to, float64(m.space.Resident()) / moveRate, 0
	}
	farthest := numa.Local
	for _, i := range to {
		farthest = max(farthest, r.topology.Distance(r.m.shares.nodes[from], r.m.shares.nodes[i]))
	}
	return to, moveVCPU, max(0.01, remoteShare*(float64(farthest)/numa.Local-1))
}

// move moves one.
func (r *relief) move(ctx context.Context, w ident, to int) error {
	node := r.m.shares.nodes[to]
	if w.vcpu != whole {
		return w.guest.MoveVCPU(w.vcpu, node)
	}
	return w.guest.Move(ctx, node, nil)
}
