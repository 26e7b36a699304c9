// Package locality is the NUMA benchmark: how many of a guest's accesses to
// memory are local, under each way of placing and moving its pages. It boots a
// guest for each [Policy] whose only program is package workload's, has it do the
// same fixed work each time, and asks the guest's Space at fixed access counts where
// the pages are.
//
// # What is measured, and what is not
//
// The share of local accesses is exact as far as the workload goes: the number of
// visits of each page by each thread is known, not sampled, and so is the node of
// the page, or of the copy that the thread's node reads. Where a page was between two
// looks is not known: what a thread did in a round counts with the places at the
// round's end. Accesses of the guest's kernel and of the workload's own few private
// pages are not counted; nor is it known which accesses the CPU's caches answered: the
// share is of accesses, not of cache misses.
//
// The cost against an ideal uniform machine is a model: every access pays its
// node's latency and nothing else. It is given for Disco's latencies, and for those of
// this machine where they could be measured ([Measure]).
//
// With fake nodes "local" is what the Space has booked, and says nothing about this
// machine.
//
// Not done: other programs' guests, several guests at once, bandwidth.
package locality

import (
	"fmt"
	"slices"
	"strings"

	"disco/numa"
	"disco/numa/balance"
)

// Policy is one way of treating a guest's memory.
type Policy string

// The policies, in the order in which they are run: Off comes first, as the
// others are compared with it and its speed sets the amount of work.
const (
	Off        Policy = "off"        // pages stay on the node of their first touch
	Interleave Policy = "interleave" // pages are spread over the nodes
	AutoNUMA   Policy = "autonuma"   // one plain KVM VM over all nodes, and the host kernel's numa_balancing
	Migrate    Policy = "migrate"
	Replicate  Policy = "replicate"
	Full       Policy = "full"
)

// Policies are all of them.
var Policies = []Policy{Off, Interleave, AutoNUMA, Migrate, Replicate, Full}

// ParsePolicies reads a list like "off,full", in the order of Policies.
func ParsePolicies(s string) ([]Policy, error) { return parseList(s, Policies, "policy") }

// ParseWorkloads reads a list of workloads, in the order of all.
func ParseWorkloads(s string, all []string) ([]string, error) { return parseList(s, all, "workload") }

func parseList[T ~string](s string, all []T, what string) ([]T, error) {
	chosen := map[T]bool{}
	for word := range strings.SplitSeq(s, ",") {
		if !slices.Contains(all, T(word)) {
			return nil, fmt.Errorf("%q is no %s; there are %v", word, what, all)
		}
		chosen[T(word)] = true
	}
	var list []T
	for _, one := range all {
		if chosen[one] {
			list = append(list, one)
		}
	}
	return list, nil
}

// Guest is what the benchmark asks of a guest while it runs.
type Guest interface {
	// Locate gives the nodes of the pages from number p on; -1 for one that is nowhere.
	Locate(dst []numa.Node, p uint64) error
	// Replicas says which nodes have a copy of page p: bit i is the guest's node i.
	Replicas(p uint64) uint32
	// Handled is how often pages of page p's block of 2 MiB were moved and copied.
	Handled(p uint64) (moved, copied uint64)
	// Nodes are the guest's nodes, in the order of Replicas' bits.
	Nodes() []numa.Node
	// Homes are the nodes that the vCPUs run on now.
	Homes() []numa.Node
	// Move takes the guest, which is on one node, to another.
	Move(to numa.Node) error
	// Counters are the totals since the guest's start.
	Counters() Counters
	// Balance is what the policy has looked at and done, since then too.
	Balance() balance.Stats
}

// Counters are what the monitor did for a guest.
type Counters struct {
	Migrated   uint64 `json:"migrated_pages"`
	Replicated uint64 `json:"replicated_pages"`
	Collapsed  uint64 `json:"collapsed_pages"`
	Faults     uint64 `json:"faults"`          // all that reached the monitor
	Sampling   uint64 `json:"sampling_faults"` // of them, those that sampling caused
	Copied     uint64 `json:"copied_bytes"`
	Relayed    uint64 `json:"relayed_interrupts"` // between vCPUs of different nodes
}

// Own is what was done to the 2 MiB blocks that a workload's memory is in. The
// Counters are of all that the guest has: its kernel's pages are moved and copied
// while a workload runs, too.
type Own struct {
	Moved  uint64 `json:"moved_pages"`
	Copied uint64 `json:"copied_pages"`
}

// Less is what happened since before.
func (c Counters) Less(before Counters) Counters {
	return Counters{
		c.Migrated - before.Migrated, c.Replicated - before.Replicated, c.Collapsed - before.Collapsed,
		c.Faults - before.Faults, c.Sampling - before.Sampling, c.Copied - before.Copied, c.Relayed - before.Relayed,
	}
}

func (c Counters) plus(d Counters) Counters {
	return Counters{
		c.Migrated + d.Migrated, c.Replicated + d.Replicated, c.Collapsed + d.Collapsed,
		c.Faults + d.Faults, c.Sampling + d.Sampling, c.Copied + d.Copied, c.Relayed + d.Relayed,
	}
}
