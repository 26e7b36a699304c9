package locality

import (
	"fmt"
	"slices"

	"disco/integration/guest/workload"
	"disco/memory"
	"disco/numa"
)

// census is where the pages of a workload are.
type census struct {
	plan    *workload.Plan
	regions []pages
	nodes   []numa.Node // all that memory can be on
	blocks  []uint64    // of 2 MiB that the pages are in
}

const blockPages = 512

// pages are those of one region, in order.
type pages struct {
	frames  []workload.Frames
	where   []numa.Node
	copies  []uint32 // as Guest.Replicas
	weights []uint64 // room for one thread's visits
}

// newCensus checks that all pages lie in the guest's memory of limit pages.
func newCensus(plan *workload.Plan, ready workload.Ready, nodes []numa.Node, ram []memory.Range) (*census, error) {
	c := &census{plan: plan, nodes: nodes}
	for i, frames := range ready.Regions {
		n := plan.Regions[i].Pages
		for _, f := range frames {
			if !inside(ram, f) {
				return nil, fmt.Errorf("the guest says that its pages %#x to %#x are memory, and they are not", f.PPN, f.PPN+uint64(f.N)-1)
			}
			for b := f.PPN / blockPages; b <= (f.PPN+uint64(f.N)-1)/blockPages; b++ {
				c.blocks = append(c.blocks, b)
			}
		}
		c.regions = append(c.regions, pages{
			frames: frames, where: slices.Repeat([]numa.Node{-1}, n), copies: make([]uint32, n), weights: make([]uint64, n),
		})
	}
	slices.Sort(c.blocks)
	c.blocks = slices.Compact(c.blocks)
	return c, nil
}

// own is what was done to the workload's blocks so far.
func (c *census) own(g Guest) (o Own) {
	for _, b := range c.blocks {
		moved, copied := g.Handled(b * blockPages)
		o.Moved += moved
		o.Copied += copied
	}
	return o
}

func inside(ram []memory.Range, f workload.Frames) bool {
	return slices.ContainsFunc(ram, func(r memory.Range) bool {
		first := uint64(r.Start) / workload.PageSize
		return f.PPN >= first && f.PPN+uint64(f.N) <= first+r.Size/workload.PageSize
	})
}

// look finds out where every page is now. One that is just being moved is
// nowhere for a moment; it is asked for again, and then taken to be where it was.
func (c *census) look(g Guest) error {
	for i := range c.regions {
		r := &c.regions[i]
		at := 0
		for _, f := range r.frames {
			if err := locate(g, r.where[at:][:f.N], f.PPN); err != nil {
				return fmt.Errorf("pages of %s: %w", c.plan.Regions[i].Name, err)
			}
			for j := range f.N {
				r.copies[at+j] = g.Replicas(f.PPN + uint64(j))
			}
			at += f.N
		}
	}
	return nil
}

func locate(g Guest, where []numa.Node, p uint64) error {
	before := slices.Clone(where)
	for range 3 {
		if err := g.Locate(where, p); err != nil {
			return err
		}
		if !slices.Contains(where, -1) {
			return nil
		}
	}
	for i, n := range where {
		if n < 0 {
			where[i] = before[i]
		}
	}
	return nil
}

// tally counts a round's accesses with the pages where they are. homes are the
// nodes of the threads.
func (c *census) tally(round int, spans [][]workload.Span, homes []numa.Node, guest []numa.Node) *Tally {
	t := NewTally(c.nodes)
	for thread, from := range homes {
		bit := uint32(0)
		if i := slices.Index(guest, from); i >= 0 && i < 32 {
			bit = 1 << i
		}
		for i, turn := range c.plan.Turns(thread, round) {
			r := &c.regions[turn.Region]
			clear(r.weights)
			spans[thread][i].Weights(r.weights)
			for p, n := range r.weights {
				to := r.where[p]
				if r.copies[p]&bit != 0 {
					to = from
				}
				t.Add(from, to, n*workload.VisitAccesses)
			}
		}
	}
	return t
}
