package locality

import (
	"fmt"
	"math"
	"slices"
	"time"

	"disco/integration/bench"
	"disco/numa/balance"
)

// What is promised of the settled rounds.
const (
	promisedShare      = 97.0 // % local of private, phase and readshared
	promisedMixed      = 90.0 // % local of mixed
	promisedCost       = 1.05 // of private and readshared, by Disco's latencies
	promisedLoss       = 1.0  // points that a policy may be worse than Off
	promisedFaults     = 2.0  // sampling faults for each page moved or copied
	promisedSteadyRate = 50.0 // sampling faults per second and node once all is settled
	// untreatedSlack is how far from 1/nodes, in points, the share may be before
	// anything was done; farther, and the benchmark measures something else. A
	// huge page of the host's that another vCPU touched first is some points already.
	untreatedSlack = 10.0
)

// Results are the runs of one benchmark.
type Results struct {
	Runs  []*Run `json:"runs"`
	Nodes int    `json:"nodes"`
	CPUs  int    `json:"cpus"`
	// Wanted are the policies that were asked for: where some are missing, what ran
	// them came to an end before it was done.
	Wanted []Policy `json:"policies"`
	// MaxMoves is the policies' cap on the moves of a page.
	MaxMoves int `json:"max_moves"`
	// Thresholds are those of the policies, where they are not the defaults.
	Thresholds balance.Config `json:"thresholds"`
	// Pause is how long the guest rested after each round.
	Pause time.Duration `json:"pause_ns,omitempty"`
	// Tables are of each guest, in the order of the boots.
	Tables []Tables `json:"second_level_tables"`
	// Retried are the guests that were lost, and booted once more.
	Retried []string `json:"retried"`
}

// find is one run, or nil.
func (r *Results) find(p Policy, workload string) *Run {
	i := slices.IndexFunc(r.Runs, func(run *Run) bool { return run.Policy == p && run.Workload == workload })
	if i < 0 {
		return nil
	}
	return r.Runs[i]
}

// workloads are those that were run, in order.
func (r *Results) workloads() []string {
	var names []string
	for _, run := range r.Runs {
		if !slices.Contains(names, run.Workload) {
			names = append(names, run.Workload)
		}
	}
	return names
}

// CheckUntreated is an error if a guest that nothing was done for yet did not have
// about 1/nodes of its accesses local: then the pages are not where they
// should be at the start, and no share says anything.
func (r *Results) CheckUntreated() error {
	want := 100 / float64(r.Nodes)
	for _, run := range r.Runs {
		if run.Workload == "moving" || run.Policy == Interleave || run.Before == nil {
			continue // it begins on its one node, or treated
		}
		if got := percent(run.Before); math.Abs(got-want) > untreatedSlack {
			return fmt.Errorf("%s under %s: %.1f %% of its accesses were local before anything was done, and should have been about 1/%d, %.1f %%: this measures nothing",
				run.Workload, run.Policy, got, r.Nodes, want)
		}
	}
	return nil
}

func percent(t *Tally) float64 { return 100 * t.Local() }

// Promises are the promised numbers, as far as the runs that were made say
// something about them.
func (r *Results) Promises() []bench.Promise {
	var all []bench.Promise
	add := func(p bench.Promise) { all = append(all, p) }
	for _, w := range []string{"private", "phase", "readshared", "mixed"} {
		if run := r.find(Full, w); run != nil {
			want := promisedShare
			if w == "mixed" {
				want = promisedMixed
			}
			add(bench.AtLeast(fmt.Sprintf("%s, full: local once settled, %%", w), want, percent(run.Settled)))
		}
	}
	for _, w := range []string{"private", "readshared"} {
		if run := r.find(Full, w); run != nil {
			add(bench.AtMost(fmt.Sprintf("%s, full: modelled cost ÷ uniform ideal (300/900 ns)", w), promisedCost, run.Settled.Cost(DiscoLatency)))
		}
	}
	for _, run := range r.Runs {
		if run.Workload != "writeshared" || !run.Policy.acts() {
			continue
		}
		add(bench.AtMost(fmt.Sprintf("writeshared, %s: pages copied once settled", run.Policy), 0, float64(run.OwnSteady.Copied)))
		add(bench.AtMost(fmt.Sprintf("writeshared, %s: moves of each page", run.Policy), float64(r.MaxMoves), float64(run.Own.Moved)/float64(run.Spec.Pages)))
	}
	for _, run := range r.Runs {
		if off := r.find(Off, run.Workload); off != nil && run.Policy.acts() {
			add(bench.AtLeast(fmt.Sprintf("%s, %s: points above off", run.Workload, run.Policy), -promisedLoss, percent(run.Settled)-percent(off.Settled)))
		}
	}
	for _, w := range r.workloads() {
		full, auto := r.find(Full, w), r.find(AutoNUMA, w)
		if full == nil || auto == nil {
			continue
		}
		f, a := percent(full.Settled), percent(auto.Settled)
		p := bench.AtLeast(fmt.Sprintf("%s, full: points above autonuma, or both above %g %%", w, promisedShare), 0, f-a)
		p.OK = p.OK || f > promisedShare && a > promisedShare
		add(p)
	}
	r.sampling(add)
	return all
}

// sampling are the promises about what sampling costs.
func (r *Results) sampling(add func(bench.Promise)) {
	var sum Counters
	seen := false
	for _, run := range r.Runs {
		if run.Policy == Full && run.Workload != "writeshared" {
			sum, seen = sum.plus(run.Did), true
		}
	}
	if moved := sum.Migrated + sum.Replicated; seen && moved > 0 {
		add(bench.AtMost("full: sampling faults for each page moved or copied", promisedFaults, float64(sum.Sampling)/float64(moved)))
	}
	for _, run := range r.Runs {
		if run.Policy == Full && run.SteadyS > 0 {
			add(bench.AtMost(fmt.Sprintf("%s, full: sampling faults per second and node once settled", run.Workload),
				promisedSteadyRate, float64(run.Steady.Sampling)/run.SteadyS/float64(r.Nodes)))
		}
	}
	for _, run := range r.Runs {
		if run.Policy == Off || run.Policy == Interleave {
			add(bench.AtMost(fmt.Sprintf("%s, %s: faults", run.Workload, run.Policy), 0, float64(run.Did.Faults)))
		}
	}
}

// Result is all of it as the benchmarks' common form.
func (r *Results) Result(setting string) *bench.Result {
	res := &bench.Result{Name: "numa", Setting: setting, Promises: r.Promises(), Raw: r}
	for _, name := range r.workloads() {
		s := bench.Series{Name: name + ": local accesses once settled", Unit: "%"}
		for _, run := range r.Runs {
			if run.Workload != name {
				continue
			}
			var shares []float64
			for _, p := range run.Points {
				if p.Settled {
					shares = append(shares, 100*p.Local)
				}
			}
			if len(shares) > 0 {
				s.Bars = append(s.Bars, bench.NewBar(string(run.Policy), shares))
			}
		}
		res.Series = append(res.Series, s)
	}
	return res
}

// acts says whether a policy is one of ours that moves or copies.
func (p Policy) acts() bool { return p == Migrate || p == Replicate || p == Full }
