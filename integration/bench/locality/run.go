package locality

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"disco/integration/guest/workload"
	"disco/numa/balance"
)

// Benchmark runs what o asks for, one policy after the other. The results it
// returns with an error are those of the runs that were completed. It needs root,
// as it switches the host's numa_balancing, which it leaves as it was.
func Benchmark(ctx context.Context, o Options) (results *Results, err error) {
	if problems := o.complete(); len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	balancing, err := openBalancing()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, balancing.restore()) }()
	b := &benchmark{o: &o, before: secPageTables(o.Nodes), results: &Results{Nodes: len(o.Nodes), CPUs: o.CPUs, Wanted: o.Policies, MaxMoves: o.maxMoves(), Thresholds: o.Thresholds, Pause: o.Pause}}
	if err := b.resume(); err != nil {
		return nil, err
	}
	wide := slices.DeleteFunc(slices.Clone(o.Workloads), func(w string) bool { return w == "moving" })
	for _, p := range o.Policies {
		if slices.Contains(b.done, p) {
			continue
		}
		if err := balancing.set(p == AutoNUMA); err != nil {
			return b.results, err
		}
		if len(wide) > 0 {
			if err := b.boot(ctx, p, wide, false); err != nil {
				return b.results, fmt.Errorf("%s: %w", p, err)
			}
		}
		if slices.Contains(o.Workloads, "moving") && p.moves() {
			if err := b.boot(ctx, p, []string{"moving"}, true); err != nil {
				return b.results, fmt.Errorf("%s: %w", p, err)
			}
		}
		if o.Keep != nil {
			if err := o.Keep(b.results); err != nil {
				return b.results, err
			}
		}
	}
	return b.results, b.results.CheckUntreated()
}

// moves says whether a guest on one node, which is moved to another, makes sense
// under a policy. The kernel balances among the nodes that the guest's memory is
// bound to, which is one here.
func (p Policy) moves() bool { return p != Interleave && p != AutoNUMA }

// benchmark is one call of Benchmark.
type benchmark struct {
	o       *Options
	before  []int64 // second-level tables, before any guest
	results *Results
	done    []Policy // measured before
}

func (b *benchmark) say(format string, a ...any) {
	fmt.Fprintf(b.o.Progress, "bench: "+format+"\n", a...)
}

// boot has a guest under policy p run workloads. In emulation a guest that is lost
// is booted once more, which is counted; anywhere else that is an error.
func (b *benchmark) boot(ctx context.Context, p Policy, workloads []string, thin bool) error {
	for try := 1; ; try++ {
		runs, err := b.once(ctx, p, workloads, thin)
		lost := err != nil && !errors.Is(err, ErrWrong) && ctx.Err() == nil
		if lost && b.o.Emulated && try == 1 {
			b.say("%s: %v; once more", p, err)
			b.results.Retried = append(b.results.Retried, fmt.Sprintf("%s: %v", p, err))
			continue
		}
		b.results.Runs = append(b.results.Runs, runs...)
		return err
	}
}

func (b *benchmark) once(ctx context.Context, p Policy, workloads []string, thin bool) ([]*Run, error) {
	g, err := start(ctx, b.o, p, thin)
	if err != nil {
		return nil, err
	}
	runs, err := b.serve(ctx, g, p, workloads, thin)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err != nil && !errors.Is(err, ErrWrong) {
		err = g.why(err)
	}
	return runs, errors.Join(err, g.close())
}

// serve has a guest that is up run workloads.
func (b *benchmark) serve(ctx context.Context, g *machine, p Policy, workloads []string, thin bool) (runs []*Run, err error) {
	b.say("%s: the guest is up", p)
	threads := b.o.threadNodes(b.o.CPUs, len(b.o.Nodes))
	if thin {
		threads = make([]int, b.o.CPUs/len(b.o.Nodes))
	}
	if b.o.Visits == 0 {
		if err := b.calibrate(g, threads); err != nil {
			return nil, err
		}
	}
	for _, name := range workloads {
		plan, err := workload.New(b.o.spec(name, b.o.Visits, threads))
		if err != nil {
			return runs, err
		}
		lastSaid := time.Now()
		tell := func(pt Point) {
			if time.Since(lastSaid) > 5*time.Second {
				lastSaid = time.Now()
				b.say("%s, %s: round %d of %d, %.1f %% local%s", p, name, pt.Round+1, plan.Spec.Rounds, 100*pt.Local, account(g.Balance()))
			}
			select {
			case <-time.After(b.o.Pause):
			case <-ctx.Done():
			}
		}
		to := b.o.Nodes[len(b.o.Nodes)-1]
		before := hostActs()
		run, err := drive(g.conn, g, g.ram, b.o.Topology.Nodes(), plan, to, tell)
		if run != nil {
			run.Policy = p
			if p == AutoNUMA {
				run.Did = run.Did.plus(hostActs().Less(before))
			}
			runs = append(runs, run)
		}
		if err != nil {
			return runs, fmt.Errorf("%s: %w", name, err)
		}
		if run.MoveNote != "" {
			b.say("%s, %s: %s", p, name, run.MoveNote)
		}
		b.say("%s, %s: %.1f %% local before, %.1f %% settled", p, name, percent(run.Before), percent(run.Settled))
	}
	b.results.Tables = append(b.results.Tables, b.tables(p, thin))
	return runs, g.conn.Bye()
}

// account is a policy's account on the line of its progress.
func account(s balance.Stats) string {
	if s.Policy == balance.Off {
		return ""
	}
	return fmt.Sprintf("; %d blocks looked at, %d for too little, %d put off, %d left alone for a while; %.1f s of sampling and %.1f of moving",
		s.Looks, s.Strays, s.Late, s.Holds, s.Sampling.Seconds(), s.Moving.Seconds())
}

// calibrate sets the work of a round to what takes about RoundTime.
func (b *benchmark) calibrate(g *machine, threads []int) error {
	for visits := 2000; ; visits *= 4 {
		plan, err := workload.New(workload.Spec{Name: "private", Pages: 64, Rounds: 2, Visits: visits, Threads: threads})
		if err != nil {
			return err
		}
		run, err := drive(g.conn, g, g.ram, b.o.Topology.Nodes(), plan, 0, func(Point) {})
		if err != nil {
			return fmt.Errorf("calibration: %w", err)
		}
		if each := run.Seconds / 2; each > 0.05 || visits > 1<<28 {
			b.o.Visits = roundDigits(int(float64(visits) * b.o.RoundTime.Seconds() / each))
			b.say("%d visits of each thread in each round (--visits %d asks for the same work again)", b.o.Visits, b.o.Visits)
			return nil
		}
	}
}

// roundDigits keeps two digits of n.
func roundDigits(n int) int {
	unit := 1
	for n/unit >= 100 {
		unit *= 10
	}
	return max(1, n/unit*unit)
}
