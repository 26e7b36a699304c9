package locality

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Model is a machine whose latencies a cost is modelled with.
type Model struct {
	Name    string
	Latency Latency
}

// Print shows the runs to people, one line each, then the modelled costs. Without
// clock times are not shown: they mean nothing there.
func (r *Results) Print(w io.Writer, models []Model, clock bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "local accesses, %\t\t\t\t\tpages\t\t\tsampling\tcopied\trelayed\t\t")
	fmt.Fprintln(t, "workload\tpolicy\tbefore\tsettled\tall\tmigrated\treplicated\tcollapsed\tfaults\tMiB\tinterrupts\ttime\t")
	for _, name := range r.workloads() {
		for _, run := range r.Runs {
			if run.Workload != name {
				continue
			}
			time := "not meaningful here"
			if clock {
				time = fmt.Sprintf("%.2f s", run.Seconds)
			}
			d := run.Did
			fmt.Fprintf(t, "%s\t%s\t%.1f\t%.1f\t%.1f\t%d\t%d\t%d\t%d\t%.1f\t%d\t%s\t\n", name, run.Policy,
				percent(run.Before), percent(run.Settled), percent(run.Whole),
				d.Migrated, d.Replicated, d.Collapsed, d.Sampling, float64(d.Copied)/(1<<20), d.Relayed, time)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, run := range r.Runs {
		if run.rising() {
			fmt.Fprintf(w, "%s under %s was over before it had settled: ask for more --rounds\n", run.Workload, run.Policy)
		}
	}
	r.printTables(w)
	for _, why := range r.Retried {
		fmt.Fprintf(w, "a guest was lost and booted once more: %s\n", why)
	}
	return r.printCosts(w, models)
}

// printCosts is one line for each workload and model.
func (r *Results) printCosts(w io.Writer, models []Model) error {
	for _, m := range models {
		fmt.Fprintf(w, "\nModelled, not measured: cost of the accesses ÷ that on an ideal uniform machine, %s; settled (all)\n", m.Name)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, name := range r.workloads() {
			fmt.Fprintf(t, "%s\t", name)
			for _, run := range r.Runs {
				if run.Workload == name {
					fmt.Fprintf(t, "%s %.2f (%.2f)\t", run.Policy, run.Settled.Cost(m.Latency), run.Whole.Cost(m.Latency))
				}
			}
			fmt.Fprintln(t)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}
