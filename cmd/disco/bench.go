package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"disco/integration/bench/locality"
	"disco/integration/guest/workload"
	"disco/integration/lab"
	"disco/memory"
	"disco/numa"
	"disco/vmm"
)

const benchNUMALong = `numa boots a guest on several NUMA nodes for each policy, has it do the same fixed
work, and says how many of its accesses to memory were local: before anything
was done, and once the policy had settled. The share is exact: the guest's program
visits its pages in a known order, and where they are is asked of the kernel.

Policies:
  off         pages stay on the node that touched them first
  interleave  pages are spread over the nodes
  autonuma    one plain KVM VM over all nodes, and the host's numa_balancing
  migrate     disco moves pages
  replicate   disco copies pages
  full        disco does both

Workloads, one thread on each vCPU, all memory first touched by vCPU 0:
  private     each thread has its own array
  readshared  all read one table
  writeshared all add to one region
  mixed       half of the visits private, 45 % to a table, 5 % to a shared region
  phase       as private; half-way the threads swap arrays across nodes
  moving      a guest on one node, moved to another half-way

It prints a table, and writes FILE.json and FILE.svg, the local share over time.
The line of costs is a model: every access pays its node's latency, Disco's 300
and 900 ns, and this machine's where they can be measured. It needs root, and
turns the host's numa_balancing on for autonuma and off for all else; afterwards
it is as it was.`

const benchNUMAExample = `  disco bench numa
  disco bench numa --policies off,full --workloads private,readshared
  disco bench numa --size 256M --rounds 40 --out /tmp/numa
  disco lab --nodes 4 -- disco bench numa`

// exitWrong is an exit code of its own, as this is not to be tried again.
const exitWrong = 4

const benchExitCodes = `Exit codes: 0 if it ran, promises kept or not; 1 if a guest was lost; 2 if the command
line is wrong; 3 if this host lacks something; 130 if it was interrupted.`

func benchCommand(w *world) *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure what disco does for guests on this machine",
		Long:  "bench measures on this machine what disco promises.",
		Args:  cobra.NoArgs,
		Run:   func(c *cobra.Command, _ []string) { _ = c.Help() },
	}
	c.AddCommand((&benchNUMA{world: w}).command(), (&benchShare{world: w}).command(), (&benchSched{world: w}).command(), (&benchNet{world: w}).command(), benchActs(w))
	return c
}

const benchActsLong = `acts times what disco does to single pages and to runs of them: watching who uses
a page, guarding it against writes, moving it, copying it to a node, and giving
copies up. There is no guest; the accesses are this process's own. On a machine
with one node, or with --fake-nodes, moving is bookkeeping.`

func benchActs(w *world) *cobra.Command {
	var problems []error
	fake := 0
	c := &cobra.Command{
		Use:     "acts [flags]",
		Short:   "Time what is done to pages: sample, migrate, replicate, collapse",
		Long:    benchActsLong,
		Example: "  disco bench acts\n  disco lab -- disco bench acts",
		Args:    noWords,
		RunE: func(*cobra.Command, []string) error {
			if problems != nil {
				return &vmm.ConfigError{Problems: problems}
			}
			t, err := w.topology()
			if err == nil && fake == 0 && len(t.Nodes()) < 2 {
				fake = 2
			}
			if err == nil && fake > 0 {
				t, err = t.Fake(max(fake, 2))
			}
			if err != nil {
				return &vmm.HostError{Err: err}
			}
			if err := memory.Probe(); err != nil {
				return &vmm.HostError{Err: err}
			}
			costs, err := w.measureActs(t, t.Nodes())
			if err != nil {
				return err
			}
			fmt.Fprintln(w.stdout, "Cost of acts on pages, on", t)
			if w.getenv(lab.InLab) != "" {
				fmt.Fprintln(w.stdout, "In the lab, whose CPUs are emulated: only their ratios mean something.")
			}
			return locality.PrintActs(w.stdout, costs)
		},
	}
	c.Flags().Var(parsed("fake-nodes", "N", "", &fake, positive, &problems), "fake-nodes", "split one node into N (default 2 where there is only one)")
	noFile(c, "fake-nodes")
	return c
}

// benchNUMA is one `disco bench numa`.
type benchNUMA struct {
	*world
	o        locality.Options
	nodes    []numa.Node
	fake     int
	out      string
	resume   bool
	problems []error
}

func (b *benchNUMA) command() *cobra.Command {
	c := &cobra.Command{
		Use:     "numa [flags]",
		Short:   "Measure how many of a guest's accesses are local, by policy",
		Long:    benchNUMALong + "\n\n" + benchExitCodes + "\nAnd 4 if a guest's memory was found wrong.",
		Example: benchNUMAExample,
		Args:    noWords,
		RunE:    func(c *cobra.Command, _ []string) error { return b.run(c.Context()) },
	}
	f := c.Flags()
	f.SortFlags = false
	b.o.Huge = true
	flag := adder(c, &b.problems)
	flag("nodes", "LIST", "", into(&b.nodes, parseNodes), "use these NUMA nodes, such as 0,1 (default all with CPUs and memory)")
	flag("fake-nodes", "N", "", into(&b.fake, positive), "split one node into N, to try the mechanism where there is only one; what is local then says nothing about this machine")
	flag("policies", "LIST", "", into(&b.o.Policies, locality.ParsePolicies), "measure these policies, such as off,full (default all)")
	flag("workloads", "LIST", "", into(&b.o.Workloads, parseWorkloads), "run these workloads (default all)")
	flag("cpus", "N", "", into(&b.o.CPUs, positive), "the guest's CPUs, a multiple of the nodes (default two for each node, or one)")
	flag("memory", "SIZE", "", into(&b.o.Memory, parseSize), "the guest's memory (default what the workloads need)")
	flag("size", "SIZE", "8M", into(&b.o.Size, parseSize), "each thread's array; tables are four times as large. On a real machine choose more than the caches hold")
	flag("rounds", "N", "60", into(&b.o.Rounds, positive), "looks at where the pages are, in each workload; twice as many where something changes half-way")
	flag("visits", "N", "", into(&b.o.Visits, positive), fmt.Sprintf("page visits of each thread in each round, %d accesses each (default what takes --round-time under the first policy)", workload.VisitAccesses))
	flag("round-time", "DURATION", "250ms", into(&b.o.RoundTime, positiveTime), "how long a round is meant to take")
	flag("pause", "DURATION", "0s", into(&b.o.Pause, parseDuration), "how long the guest rests after each round, where it leaves the monitor no CPU, as in the lab")
	flag("guest-pages", "SIZE", "2M", into(&b.o.Huge, parsePages), "pages of the guest's program: 2M, as Linux gives large arrays by default, or 4K, where arrays of different nodes meet within 2 MiB")
	flag("thresholds", "LIST", "", into(&b.o.Thresholds, parseThresholds), "thresholds of disco's policies other than the defaults, as those of `disco run --numa`, such as tick=50ms,sample-share=0.5")
	flag("boot-timeout", "DURATION", "2m", into(&b.o.BootTimeout, positiveTime), "how long a guest may take to come up before it is booted once more")
	f.StringVar(&b.o.Kernel, "kernel", "", "the guest's kernel in `FILE` (default: the default guest's)")
	f.StringVar(&b.o.Initrd, "initrd", "", "the guest's initrd in `FILE` (default: numa.img beside the default guest's)")
	f.StringVar(&b.out, "out", "numa", "write `FILE`.json and FILE.svg")
	f.BoolVar(&b.resume, "resume", false, "go on with FILE.json, which is written after each policy: what it has of the same work is not measured again")
	return c
}

// into makes a flag's setter of a parser.
func into[T any](p *T, parse func(string) (T, error)) func(string) error {
	return func(s string) error {
		x, err := parse(s)
		if err == nil {
			*p = x
		}
		return err
	}
}

func positive(s string) (int, error) {
	n, err := parseCount(s)
	if err == nil && n < 1 {
		err = errors.New("use a positive number")
	}
	return n, err
}

func positiveTime(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err == nil && d <= 0 {
		err = errors.New("use a positive one")
	}
	return d, err
}

func parsePages(s string) (huge bool, err error) {
	switch strings.ToUpper(s) {
	case "2M":
		return true, nil
	case "4K":
		return false, nil
	}
	return false, errors.New("there are 2M and 4K")
}

func parseWorkloads(s string) ([]string, error) { return locality.ParseWorkloads(s, workload.Names) }

// run completes the options, checks everything and measures.
func (b *benchNUMA) run(ctx context.Context) error {
	t, err := b.topology()
	if err != nil {
		return &vmm.HostError{Err: err}
	}
	if b.fake > 0 {
		if t, err = t.Fake(b.fake); err != nil {
			b.problems = append(b.problems, err)
			return &vmm.ConfigError{Problems: b.problems}
		}
	}
	b.o.Topology, b.o.Nodes, b.o.Progress = t, b.nodes, b.stderr
	b.o.Emulated, b.o.Cmdline = b.emulated()
	b.o.Keep = func(r *locality.Results) error { return r.Result(b.setting(r, b.o.Emulated)).Write(b.out + ".json") }
	m := measurement[*locality.Results]{
		out: b.out, problems: b.problems, check: b.o.Check, artefacts: b.artefacts,
		run:    func(ctx context.Context) (*locality.Results, error) { return b.benchNUMA(ctx, b.o) },
		empty:  func(r *locality.Results) bool { return r == nil || len(r.Runs) == 0 },
		report: func(r *locality.Results) error { return b.report(r, b.o.Emulated) },
	}
	if b.resume {
		m.load = func(file string) (err error) {
			b.o.Resume, err = locality.Load(file)
			return err
		}
	}
	err = m.do(ctx)
	if errors.Is(err, locality.ErrWrong) {
		return &exitError{exitWrong, err}
	}
	return err
}

// artefacts finds the guest's kernel and initrd.
func (b *benchNUMA) artefacts() error {
	if b.o.Kernel == "" {
		b.o.Kernel = b.getenv("DISCO_KERNEL")
	}
	if b.o.Kernel == "" {
		b.o.Kernel = b.find("vmlinuz")
	}
	if b.o.Initrd == "" {
		b.o.Initrd = b.find("numa.img")
	}
	if b.o.Kernel == "" || b.o.Initrd == "" {
		return errors.New("the benchmark's guest is not there: run `make guest` in disco's source tree, or name a kernel and an initrd by --kernel and --initrd")
	}
	return nil
}

// setting is what was measured on what.
func (b *benchNUMA) setting(r *locality.Results, inLab bool) string {
	setting := fmt.Sprintf("A guest with %d CPUs on %s", r.CPUs, b.o.Topology)
	switch {
	case inLab:
		setting += "\nIn the lab, whose CPUs are emulated: shares and counts mean something, times do not; latencies are not measured."
	case !b.o.Topology.Real():
		setting += "\nThe nodes are not real: what is local here says nothing about this machine."
	}
	return setting
}

// report prints the results and writes the files.
func (b *benchNUMA) report(r *locality.Results, inLab bool) error {
	setting := b.setting(r, inLab)
	models := []locality.Model{{Name: "Disco's 300/900 ns", Latency: locality.DiscoLatency}}
	if !inLab && b.o.Topology.Real() {
		fmt.Fprintln(b.stderr, "bench: measuring this machine's latencies")
		l, err := locality.Measure(b.o.Topology, b.o.Topology.Nodes())
		if err != nil {
			setting += fmt.Sprintf("\nThis machine's latencies could not be measured: %v.", err)
		} else {
			models = append(models, locality.Model{Name: "this machine's latencies, " + l.String(), Latency: l.Of})
		}
	}
	if err := r.Print(b.stdout, models, !inLab); err != nil {
		return err
	}
	fmt.Fprintln(b.stdout)
	res := r.Result(setting)
	if err := res.PrintPromises(b.stdout); err != nil {
		return err
	}
	if err := res.Write(b.out + ".json"); err != nil {
		return err
	}
	return writeChart(b.out+".svg", func(w io.Writer) error { return r.Chart(w, "Local accesses over the work done") })
}

func writeChart(path string, draw func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(draw(f), f.Close())
}
