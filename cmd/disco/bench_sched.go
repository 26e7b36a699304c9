package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"disco/integration/bench/sched"
	"disco/scheduler/host"
	"disco/vmm"
)

const benchSchedLong = `sched runs small guests that compute, directly on this host's KVM, and says which
share of the CPUs each had, against what its tickets ask: over the whole time and in
any second.

By:
  stride   disco, by tickets, exactly
  lottery  disco, by drawing lots
  cgroup   this host's own scheduler, with a cgroup's weight for each guest

Loads:
  1:1 … 100:1  guests that compute all the time
  change       tickets change
  join         a guest comes and goes
  resting      one guest halts for a moment all the time
  storms       guests in PAUSE, port accesses, memory-mapped accesses
  inflation    in one of two groups tickets are inflated
  workers      one guest has the monitor's workers read a disk for it all the time,
               whose CPU time counts as its own
  nodes        two nodes of one CPU each, with a queue for each
  skewed       101 guests, 100:1:…:1
  many         --many guests, half of them with twice the tickets
  alone        one guest on each CPU
  linux        with --linux, and then this alone: three guests with Linux that compute,
               whose tickets change and of which one leaves

It prints a table and writes FILE.json and FILE.svg, the CPU time over the time, and
takes some 13 minutes; with --linux, two and what the guests take to boot. It needs
the right to change priorities (CAP_SYS_NICE), and root for cgroups. What else runs on
the CPUs disturbs it.`

// benchSched is one `disco bench sched`.
type benchSched struct {
	*world
	o        sched.Options
	out      string
	problems []error
}

func (b *benchSched) command() *cobra.Command {
	c := &cobra.Command{
		Use:     "sched [flags]",
		Short:   "Measure how tickets divide CPUs among guests",
		Long:    benchSchedLong + "\n\n" + benchExitCodes,
		Example: "  disco bench sched\n  disco lab --steady -- disco bench sched --linux\n  disco bench sched --cpus-host 0 --loads 2:1,10:1 --time 5s\n  disco bench sched --loads many --many 1000",
		Args:    noWords,
		RunE:    func(c *cobra.Command, _ []string) error { return b.run(c.Context()) },
	}
	f := c.Flags()
	f.SortFlags = false
	b.o.Policies, b.o.Time, b.o.Quantum = sched.Policies, 30*time.Second, host.DefaultQuantum
	flag := adder(c, &b.problems)
	flag("by", "LIST", "", into(&b.o.Policies, parseSchedPolicies), "measure these, such as stride,cgroup (default all)")
	flag("loads", "LIST", "", into(&b.o.Loads, parseSchedLoads), "run these loads, such as 2:1,resting (default all)")
	flag("cpus-host", "LIST", "0", into(&b.o.CPUs, parseCPUs), "run the guests on these CPUs of the host; the loads of few guests need one")
	flag("time", "DURATION", b.o.Time.String(), into(&b.o.Time, positiveTime), "how long to measure each load by stride, and a third of it by the others; some take twice that, as errors of a quantum are larger there")
	flag("quantum", "DURATION", b.o.Quantum.String(), into(&b.o.Quantum, positiveTime), "how long a guest runs before another has its turn")
	flag("many", "N", "", into(&b.o.Many, positive), "guests of the load many, such as 1000 (default without)")
	f.BoolVar(&b.o.Linux, "linux", false, "measure guests with Linux instead of tiny ones: they need a host that runs them, such as the lab")
	f.StringVar(&b.o.Kernel, "kernel", "", "the Linux guests' kernel in `FILE` (default: the default guest's)")
	f.StringVar(&b.o.Initrd, "initrd", "", "the Linux guests' initrd in `FILE` (default: the default guest's)")
	f.StringVar(&b.out, "out", "sched", "write `FILE`.json and FILE.svg")
	return c
}

func parseSchedPolicies(s string) ([]sched.Policy, error) {
	var all []sched.Policy
	for word := range strings.SplitSeq(s, ",") {
		p := sched.Policy(word)
		if !slices.Contains(sched.Policies, p) {
			return nil, errors.New("there are stride, lottery and cgroup")
		}
		all = append(all, p)
	}
	return all, nil
}

func parseSchedLoads(s string) ([]string, error) {
	known := append(sched.Loads(2, false), "alone")
	known = append(known, sched.Loads(0, true)...)
	words := strings.Split(s, ",")
	for _, w := range words {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("there is no load %q; there are %s", w, strings.Join(known, ", "))
		}
	}
	return words, nil
}

// run checks the options and measures.
func (b *benchSched) run(ctx context.Context) error {
	if b.o.CPUs == nil {
		b.o.CPUs = []int{0}
	}
	if b.o.Nodes = b.o.CPUs; len(b.o.Nodes) < 2 {
		b.o.Nodes = vmm.HostCPUs()
	}
	b.o.Progress = b.stderr
	emulated, cmdline := b.emulated()
	b.o.Cmdline = cmdline
	problems := b.problems
	c := vmm.SchedulerConfig{Quantum: b.o.Quantum, CPUs: b.o.CPUs}
	if ce, ok := errors.AsType[*vmm.ConfigError](c.Validate()); ok {
		problems = append(problems, ce.Problems...)
	}
	m := measurement[*sched.Results]{
		out: b.out, problems: problems,
		check: func() error {
			if slices.Contains(b.o.Loads, "many") && b.o.Many < 2 {
				return errors.New("the load many needs --many with at least 2 guests")
			}
			for _, l := range b.o.Loads {
				if slices.Contains(sched.Loads(0, true), l) != b.o.Linux {
					return fmt.Errorf("the load %s: with --linux there is linux, and without there are all others", l)
				}
			}
			return nil
		},
		artefacts: b.artefacts,
		run: func(ctx context.Context) (*sched.Results, error) {
			r, err := sched.Run(ctx, b.o)
			if r != nil && emulated {
				r.Setting += "\nIn the lab, whose CPUs are emulated: ratios of CPU times count, times do not."
			}
			if err != nil {
				err = &vmm.HostError{Err: err}
			}
			return r, err
		},
		empty:  func(r *sched.Results) bool { return r == nil || len(r.Rows) == 0 && !r.Aloned },
		report: b.report,
	}
	return m.do(ctx)
}

// artefacts finds what Linux guests are made of. The others are a kilobyte each, and
// in this program.
func (b *benchSched) artefacts() error {
	if !b.o.Linux {
		return nil
	}
	a := artefacts{world: b.world}
	a.need(&b.o.Kernel, "DISCO_KERNEL", "guest", "vmlinuz", "the guests' kernel", "run `make guest` in disco's source tree, or name one by --kernel")
	a.need(&b.o.Initrd, "DISCO_INITRD", "guest", "initrd.img", "the guests' initrd", "run `make guest` in disco's source tree, or name one by --initrd")
	return errors.Join(a.missing...)
}

// report prints the results and writes the files.
func (b *benchSched) report(r *sched.Results) error {
	if err := r.Print(b.stdout); err != nil {
		return err
	}
	fmt.Fprintln(b.stdout)
	res := r.Result()
	if err := res.PrintPromises(b.stdout); err != nil {
		return err
	}
	if err := res.Write(b.out + ".json"); err != nil {
		return err
	}
	return writeChart(b.out+".svg", r.Chart)
}
