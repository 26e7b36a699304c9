package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"disco/memory"
	"disco/memory/arena"
	"disco/numa"
	"disco/numa/balance"
)

// errNoMachine is what comes of a guest that is between two power cycles or gone.
var errNoMachine = errors.New("the guest does not run")

// moving is the current machine, which is not closed until done is called.
func (g *Guest) moving() (m *machine, done func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil || !g.machine.movers.TryRLock() {
		return nil, nil, errNoMachine
	}
	return g.machine, g.machine.movers.RUnlock, nil
}

// MoveVCPU makes vCPU id live on another of the nodes that a wide guest runs on,
// while it runs. Its memory follows as the policy sees fit.
func (g *Guest) MoveVCPU(id int, to numa.Node) error {
	m, done, err := g.moving()
	if err != nil {
		return err
	}
	defer done()
	if id < 0 || id >= len(m.vcpus) {
		return fmt.Errorf("there is no vCPU %d", id)
	}
	for i, n := range m.place.nodes {
		if n == to && len(m.vms) > 1 {
			return m.set.Move(id, i)
		}
	}
	return fmt.Errorf("vCPU %d: the guest runs on %s and not on node %d", id, numa.FormatNodes(m.place.nodes), to)
}

// chunk is the memory that Move moves before it looks whether it may go on, in
// pages: 2 MiB.
const chunk = 512

// Move brings a guest that runs on one node to another, while it runs: first its
// vCPUs, at once, then its memory. progress, if not nil, is told bytes done and of
// how many. When ctx ends, or an error comes, the vCPUs stay on the new node with
// the memory that has followed. The guest's second-level page tables stay behind.
func (g *Guest) Move(ctx context.Context, to numa.Node, progress func(done, of uint64)) error {
	m, moved, err := g.moving()
	if err != nil {
		return err
	}
	defer moved()
	g.mu.Lock()
	p := m.place
	g.mu.Unlock()
	switch {
	case len(p.nodes) > 1:
		return fmt.Errorf("move to node %d: the guest runs on nodes %s; move its vCPUs one by one", to, numa.FormatNodes(p.nodes))
	case !p.topology.Has(to) || len(p.topology.CPUs(to)) == 0:
		return fmt.Errorf("move to node %d: no such node has CPUs; there are %s", to, numa.FormatNodes(roomy(p.topology)))
	}
	free, err := p.topology.ReadMemory(os.DirFS("/"), to)
	if err == nil && free.Available < m.space.Size() {
		return fmt.Errorf("move to node %d: it has %s free, less than the guest's memory", to, FormatSize(free.Available&^(1<<20-1)))
	}
	if err := m.set.SetCPUs(0, cpusOf(p.topology, to)); err != nil {
		return fmt.Errorf("move to node %d: %w", to, err)
	}
	g.mu.Lock()
	next := *p
	next.nodes = []numa.Node{to}
	m.place, g.place = &next, &next
	g.mu.Unlock()
	for id := range m.vcpus {
		m.vcpuMoved(id)
	}
	g.backends.readFrom(&next, &g.cfg)
	g.backends.sit(&next)
	if err := m.space.SetNode(to); err != nil {
		return fmt.Errorf("move to node %d: %w", to, err)
	}
	var done uint64
	for _, r := range m.space.RAM() {
		for at := r.Start; at < r.End(); at += chunk * arena.PageSize {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-m.halting:
				return errNoMachine
			default:
			}
			n := min(chunk, int((r.End()-at)/arena.PageSize))
			if _, err := m.space.Migrate(memory.PPN(at/arena.PageSize), n, to); err != nil && !errors.Is(err, memory.ErrBusy) {
				return fmt.Errorf("move to node %d: %w", to, err)
			}
			done += uint64(n) * arena.PageSize
			if progress != nil {
				progress(done, m.space.Size())
			}
		}
	}
	return nil
}

// StartBalance has the policy of a guest with NUMA.Late begin. It does nothing where
// it has begun, or there is none.
func (g *Guest) StartBalance() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine != nil && g.machine.balance != nil {
		g.machine.balance.Start()
	}
}

// Balance is what the policy has looked at and done in the guest's machine; the zero
// value where there is none.
func (g *Guest) Balance() balance.Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil || g.machine.balance == nil {
		return balance.Stats{}
	}
	return g.machine.balance.Stats()
}

// Relayed is how many interrupts went between vCPUs of different nodes so far, at
// no cost; 0 when the guest does not run.
func (g *Guest) Relayed() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil {
		return 0
	}
	return g.machine.set.Relayed()
}
