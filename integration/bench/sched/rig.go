package sched

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"slices"

	"disco/scheduler/host"
	"disco/vcpu/kvm"
)

// rig is a stage of tiny guests that compute, each a vCPU and memory and nothing else.
type rig struct {
	o      Options
	load   load
	guests []*guest
	shares []*host.Guest
	groups map[string]*host.Group
	pools  [][]int // CPUs
	sched  *host.Scheduler
	weight *weights
	procs  int // of Go, before
}

func newRig(o Options, l load) *rig {
	r := &rig{o: o, load: l, groups: map[string]*host.Group{}, pools: l.pools(o)}
	// A thread in KVM_RUN keeps one of Go's processors for a while; one that is
	// held does not.
	r.procs = runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(r.procs + min(len(l.guests), 16) + 2)
	return r
}

// begin implements stage.
func (r *rig) begin(_ context.Context, sys *kvm.System, p Policy) (err error) {
	switch p {
	case Cgroup:
		if r.weight, err = newWeights(); err != nil {
			return err
		}
	default:
		c := host.Config{Pools: r.pools, Quantum: r.o.Quantum, Bound: true, Seed: 1}
		if p == Lottery {
			c.Kind = host.Lottery
		}
		if r.sched, err = host.New(c); err != nil {
			return err
		}
	}
	for name, n := range r.load.groups {
		if r.weight != nil {
			if err := r.weight.make(name, n); err != nil {
				return err
			}
			continue
		}
		if r.groups[name], err = r.sched.NewGroup(name, nil, n); err != nil {
			return err
		}
	}
	for _, m := range r.load.guests {
		g, err := newGuest(sys, m.name, m.cmdline)
		if err != nil {
			return err
		}
		r.guests = append(r.guests, g)
		r.shares = append(r.shares, nil)
	}
	for i, m := range r.load.guests {
		if !m.late {
			if err := r.start(i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rig) start(i int) error {
	g, m := r.guests[i], r.load.guests[i]
	if err := g.start(r.pools[m.node]); err != nil {
		return err
	}
	if r.weight != nil {
		return r.weight.set(m.name, m.group, g.cpu.TID(), m.tickets)
	}
	s, err := r.sched.NewGuest(host.GuestConfig{Name: m.name, Group: r.groups[m.group], Tickets: m.tickets})
	if err != nil {
		return err
	}
	r.shares[i] = s
	_, err = s.Add(0, g.cpu, m.node)
	return err
}

func (r *rig) index(name string) int {
	return slices.IndexFunc(r.load.guests, func(m member) bool { return m.name == name })
}

func (r *rig) tickets(name string, n int64) error {
	i := r.index(name)
	if r.weight != nil {
		return r.weight.weigh(filepath.Join(r.load.guests[i].group, name), n)
	}
	return r.shares[i].SetTickets(n)
}

func (r *rig) join(name string) error { return r.start(r.index(name)) }

func (r *rig) leave(name string) error {
	i := r.index(name)
	if s := r.shares[i]; s != nil {
		r.shares[i] = nil
		if err := s.Close(); err != nil {
			return err
		}
	}
	r.guests[i].stop()
	return nil
}

func (r *rig) progress() uint64 { return r.guests[0].progress() }

func (r *rig) workers() float64 { return 0 }

func (r *rig) used() []float64 {
	used := make([]float64, len(r.guests))
	for i, g := range r.guests {
		used[i] = g.used()
	}
	return used
}

func (r *rig) close() error {
	defer runtime.GOMAXPROCS(r.procs)
	var errs []error
	for _, s := range r.shares {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	if r.sched != nil {
		r.sched.Close()
	}
	if r.weight != nil {
		r.weight.leave()
	}
	for _, g := range r.guests {
		if g.cpu != nil {
			g.cpu.Stop()
		}
	}
	for _, g := range r.guests {
		errs = append(errs, g.close())
	}
	if r.weight != nil {
		errs = append(errs, r.weight.close())
	}
	return errors.Join(errs...)
}
