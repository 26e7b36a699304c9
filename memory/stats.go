package memory

import (
	"sync/atomic"

	"disco/memory/arena"
	"disco/numa"
)

type counters struct {
	migrated, replicated, collapsed            atomic.Uint64
	shared, runs, unshared                     atomic.Uint64
	received, receivedCopied                   atomic.Uint64
	discarded, discards                        atomic.Uint64
	sharedNow                                  atomic.Int64
	guardFaults, collapseFaults                atomic.Uint64
	sampleFaults, aroundFaults, leftoverFaults atomic.Uint64
	copied, failed                             atomic.Uint64
}

// Stats are counts of a Space since it was made, and what is now where marked.
type Stats struct {
	// Pages that were moved, copied, and made Private again.
	Migrated   uint64 `json:"migrated"`
	Replicated uint64 `json:"replicated"`
	Collapsed  uint64 `json:"collapsed"`
	Shared     uint64 `json:"shared"`
	// SharedRuns is in how many pieces those of Shared came.
	SharedRuns uint64 `json:"sharedRuns"`
	// Unshared counts those of Collapsed that were Shared.
	Unshared uint64 `json:"unshared"`
	// Received counts those of Shared that came from other guests, ReceivedCopied
	// those of these that were written to and so copied.
	Received       uint64 `json:"received"`
	ReceivedCopied uint64 `json:"receivedCopied"`
	// Discarded counts pages that were Shared and are Private and empty, as they were
	// to be overwritten, DiscardedRuns in how many pieces these were.
	Discarded     uint64 `json:"discarded"`
	DiscardedRuns uint64 `json:"discardedRuns"`
	// SharedPages are those that there are now.
	SharedPages uint64 `json:"sharedPages"`
	// Replicas there are now, by View.
	Replicas []uint64 `json:"replicas"`

	// SampleFaults are first accesses to watched pages, AroundFaults those to
	// pages that this View had not mapped yet, one for many pages.
	SampleFaults uint64 `json:"sampleFaults"`
	AroundFaults uint64 `json:"aroundFaults"`
	// GuardFaults are stores to guarded pages, CollapseFaults to replicated or
	// shared ones, LeftoverFaults to pages that were one of these before.
	GuardFaults    uint64 `json:"guardFaults"`
	CollapseFaults uint64 `json:"collapseFaults"`
	LeftoverFaults uint64 `json:"leftoverFaults"`

	// BytesCopied is of migrations, of replications, and of Shared pages that were
	// written to.
	BytesCopied uint64 `json:"bytesCopied"`
	// Failed counts acts that the host refused, wholly or in part.
	Failed uint64 `json:"failed"`

	// VMAs is what the process has now of mappings away from Home, and the most it
	// may have.
	VMAs      uint64 `json:"vmas"`
	VMABudget uint64 `json:"vmaBudget"`
	PinsHeld  uint64 `json:"pinsHeld"` // now
}

// Faults are all that the guest had to wait for.
func (t *Stats) Faults() uint64 {
	return t.SampleFaults + t.AroundFaults + t.GuardFaults + t.CollapseFaults + t.LeftoverFaults
}

// Stats reads the counters, at no cost to the guest.
func (s *Space) Stats() Stats {
	c := &s.counters
	t := Stats{
		Migrated: c.migrated.Load(), Replicated: c.replicated.Load(), Collapsed: c.collapsed.Load(), Shared: c.shared.Load(),
		SharedRuns: c.runs.Load(), Unshared: c.unshared.Load(), SharedPages: uint64(max(0, c.sharedNow.Load())),
		SampleFaults: c.sampleFaults.Load(), AroundFaults: c.aroundFaults.Load(),
		GuardFaults: c.guardFaults.Load(), CollapseFaults: c.collapseFaults.Load(), LeftoverFaults: c.leftoverFaults.Load(),
		Received: c.received.Load(), ReceivedCopied: c.receivedCopied.Load(),
		Discarded: c.discarded.Load(), DiscardedRuns: c.discards.Load(),
		BytesCopied: c.copied.Load(), Failed: c.failed.Load(), PinsHeld: uint64(s.Pins()),
	}
	if s.words != nil {
		t.VMAs, t.VMABudget = uint64(arena.VMAs.Used()), uint64(arena.VMAs.Limit())
		for _, v := range s.view {
			t.Replicas = append(t.Replicas, uint64(max(0, v.copied.Load())))
		}
	}
	return t
}

// PagesOn counts the canonical copies on each node of the topology, by its
// index there. It asks for every page of RAM: some 0.1 µs each.
func (s *Space) PagesOn() ([]uint64, error) {
	if s.opt.Topology == nil {
		return nil, nil
	}
	nodes := s.opt.Topology.Nodes()
	count := make([]uint64, len(nodes))
	index := make(map[numa.Node]int)
	for i, n := range nodes {
		index[n] = i
	}
	var on [arena.Batch]numa.Node
	for _, r := range s.ram {
		p, end := PPN(r.Start/arena.PageSize), PPN(r.End()/arena.PageSize)
		for p < end {
			part := on[:min(arena.Batch, int(end-p))]
			if err := s.Locate(part, p); err != nil {
				return nil, err
			}
			for _, n := range part {
				if i, ok := index[n]; ok && n >= 0 {
					count[i]++
				}
			}
			p += PPN(len(part))
		}
	}
	return count, nil
}

// Handled is how many pages of p's block of 2 MiB were migrated, and how many
// copies were made of them, since the Space was opened; 0 where pages have no
// states.
func (s *Space) Handled(p PPN) (moved, copied uint64) {
	if s.words == nil || int(p) >= len(s.words) {
		return 0, 0
	}
	b := s.block(p)
	return b.moved.Load(), b.copied.Load()
}
