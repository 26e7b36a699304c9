package locality

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"disco/integration/guest/workload"
	"disco/numa"
	"disco/numa/balance"
	"disco/vmm"
)

// Options says what to run. A zero field means its default where it names one.
type Options struct {
	Kernel, Initrd string // of the guest; the initrd is the one whose init is integration/guest/numa
	Cmdline        string // more words for the guest's kernel

	Topology *numa.Topology // of this host, or fake
	Nodes    []numa.Node    // to use, at least two; nil for all that have CPUs and memory
	CPUs     int            // of the guest, a multiple of the nodes; 0 for two for each node, or one where a node has but one CPU
	Memory   uint64         // of the guest, in bytes; 0 for what the workloads need

	Policies  []Policy // nil for all
	Workloads []string // nil for all
	Size      uint64   // bytes of each thread's array, whole pages; 0 for 8 MiB
	Rounds    int      // of each workload, twice as many for those that change half-way; even; 0 for 24
	Visits    int      // page visits of each thread in each round; 0 for as many as take RoundTime under the first policy
	RoundTime time.Duration
	// Pause is how long the guest rests after each round. A guest whose CPUs are all
	// that the host has, as in emulation, leaves the monitor none to act with.
	Pause time.Duration
	Huge  bool // the guest's program asks its kernel for 2 MiB pages

	Thresholds balance.Config // without its Policy

	BootTimeout time.Duration        // of each guest; 0 for two minutes
	Emulated    bool                 // this host is: a guest that is lost is booted once more
	Resume      *Results             // of the same work, which was broken off: the policies that it has whole are not run again
	Keep        func(*Results) error // is given the results so far after each policy; or nil
	Progress    io.Writer            // what is being done; nil for nothing
}

const (
	defaultSize        = 8 << 20
	defaultRounds      = 60
	defaultRoundTime   = 250 * time.Millisecond
	defaultBootTimeout = 2 * time.Minute
	// kernelMemory is what the guest needs besides the workloads' memory.
	kernelMemory = 160<<20 + workload.BallastPages*workload.PageSize
	memoryStep   = 64 << 20
)

// Check returns everything that is wrong with o.
func (o Options) Check() error { return errors.Join(o.complete()...) }

// complete fills in the defaults and returns everything that is wrong.
func (o *Options) complete() []error {
	var problems []error
	bad := func(format string, a ...any) { problems = append(problems, fmt.Errorf(format, a...)) }
	o.Size = cmp.Or(o.Size, defaultSize)
	o.Rounds = cmp.Or(o.Rounds, defaultRounds)
	o.RoundTime = cmp.Or(o.RoundTime, defaultRoundTime)
	o.BootTimeout = cmp.Or(o.BootTimeout, defaultBootTimeout)
	if o.Policies == nil {
		o.Policies = Policies
	}
	if o.Workloads == nil {
		o.Workloads = workload.Names
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	nodes := o.checkNodes(bad)
	if o.Size%workload.PageSize != 0 || o.Size < 64<<10 || o.Size > 64<<30 {
		bad("size of %s: use whole pages, from 64K to 64G", vmm.FormatSize(o.Size))
	}
	if o.Rounds < 8 || o.Rounds%2 != 0 || o.Rounds > workload.MaxRounds/2 {
		bad("%d rounds: use an even number from 8 to %d", o.Rounds, workload.MaxRounds/2)
	}
	if o.Visits < 0 {
		bad("%d visits: use a positive number", o.Visits)
	}
	if o.RoundTime < time.Millisecond || o.RoundTime > time.Hour {
		bad("round time of %v: use 1ms to 1h", o.RoundTime)
	}
	if o.Pause < 0 || o.Pause > time.Hour {
		bad("pause of %v: use 0 to 1h", o.Pause)
	}
	if o.BootTimeout < time.Second {
		bad("boot timeout of %v: use 1s or more", o.BootTimeout)
	}
	if err := o.Thresholds.Validate(); err != nil {
		problems = append(problems, err)
	}
	if nodes && len(problems) == 0 {
		o.checkMemory(bad)
	}
	return problems
}

// checkNodes completes and checks Nodes and CPUs.
func (o *Options) checkNodes(bad func(string, ...any)) bool {
	t := o.Topology
	usable := slices.DeleteFunc(slices.Clone(t.Nodes()), func(n numa.Node) bool { return len(t.CPUs(n)) == 0 || t.Memory(n).Total == 0 })
	if o.Nodes == nil {
		o.Nodes = usable
	}
	ok := true
	for i, n := range o.Nodes {
		switch {
		case !t.Has(n):
			bad("node %d: there is none; this machine has nodes %s", n, numa.FormatNodes(usable))
		case !slices.Contains(usable, n):
			bad("node %d: it has no CPUs or no memory; use from %s", n, numa.FormatNodes(usable))
		case slices.Contains(o.Nodes[:i], n):
			bad("node %d: it is named twice", n)
		default:
			continue
		}
		ok = false
	}
	switch {
	case !ok:
		return false
	case len(usable) < 2:
		bad("one node: nothing is remote on this machine; --fake-nodes 2 splits it, to try the mechanism, and `disco lab -- disco bench numa` emulates a machine with two")
		return false
	case len(o.Nodes) < 2:
		bad("one node: nothing is remote; use two or more of %s", numa.FormatNodes(usable))
		return false
	case len(o.Nodes) > 16:
		bad("%d nodes: use at most 16", len(o.Nodes))
		return false
	}
	if o.CPUs == 0 {
		o.CPUs = 2 * len(o.Nodes)
		if slices.ContainsFunc(o.Nodes, func(n numa.Node) bool { return len(t.CPUs(n)) < 2 }) {
			o.CPUs = len(o.Nodes)
		}
	}
	if o.CPUs < 1 || o.CPUs%len(o.Nodes) != 0 || o.CPUs > workload.MaxThreads {
		bad("%d CPUs: use a multiple of the %d nodes, at most %d", o.CPUs, len(o.Nodes), workload.MaxThreads)
		return false
	}
	return true
}

// checkMemory completes and checks Memory.
func (o *Options) checkMemory(bad func(string, ...any)) {
	need := uint64(kernelMemory)
	for _, name := range o.Workloads {
		p, err := workload.New(o.spec(name, 1, o.threadNodes(o.CPUs, len(o.Nodes))))
		if err != nil {
			bad("%s: %w", name, err)
			return
		}
		if name != "moving" { // it has a guest of its own
			need += uint64(p.Pages()) * workload.PageSize
		}
	}
	need = (need + memoryStep - 1) &^ (memoryStep - 1)
	if o.Memory == 0 {
		o.Memory = need
	}
	if o.Memory < need {
		bad("memory %s: the workloads need %s; give the guest more, or use a smaller --size", vmm.FormatSize(o.Memory), vmm.FormatSize(need))
	}
	least := ^uint64(0)
	for _, n := range o.Nodes {
		least = min(least, o.Topology.Memory(n).Total)
	}
	// All of it begins on one node, and is to be copied to any.
	if o.Memory > least {
		bad("memory %s: the smallest node has %s, and all memory is first touched on one; use a smaller --size", vmm.FormatSize(o.Memory), vmm.FormatSize(least&^(1<<20-1)))
	}
}

// threadNodes gives each node as many threads, in runs.
func (o *Options) threadNodes(threads, nodes int) []int {
	of := make([]int, threads)
	for i := range of {
		of[i] = i * nodes / threads
	}
	return of
}

// spec is one workload.
func (o *Options) spec(name string, visits int, threads []int) workload.Spec {
	rounds := o.Rounds
	if name == "phase" || name == "moving" {
		rounds *= 2
	}
	return workload.Spec{Name: name, Pages: int(o.Size / workload.PageSize), Rounds: rounds, Visits: visits, Threads: threads, Huge: o.Huge}
}
