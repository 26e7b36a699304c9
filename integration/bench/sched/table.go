package sched

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"disco/integration/bench"
)

// Print shows the rows to people.
func (r *Results) Print(w io.Writer) error {
	fmt.Fprintln(w, r.Setting)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nload\tby\twant\tgot\tworst error\tquanta\tσ\tworst second\tlost\tworkers\tguests had")
	for _, row := range r.Rows {
		for i, ph := range row.Phases {
			if i > 0 {
				fmt.Fprintf(t, "\t\t%s\t%s\t\t\t\t\t\t\t\n", parts(ph.Want), parts(ph.Got))
				continue
			}
			window := "-"
			if row.Guests <= maxWindowed {
				window = fmt.Sprintf("%.1f ms", row.Window)
			}
			workers := "-"
			if row.Workers > 0 {
				workers = fmt.Sprintf("%.0f %%", 100*row.Workers)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.2f %%\t%.1f\t%.1f\t%s\t%.2f %%\t%s\t%.0f %%\n",
				row.Load, row.Policy, parts(ph.Want), parts(ph.Got), 100*row.Error, row.Quanta, row.Sigma, window, 100*row.Lost, workers, 100*row.Had)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range r.Skipped {
		fmt.Fprintln(w, "not measured:", s)
	}
	return nil
}

// parts are shares in per cent; of many, the first and the range of the rest.
func parts(p []float64) string {
	var words []string
	for _, x := range p {
		words = append(words, fmt.Sprintf("%.2f", 100*x))
	}
	if len(p) <= 4 {
		return strings.Join(words, " ")
	}
	least, most := p[1], p[1]
	for _, x := range p[1:] {
		least, most = min(least, x), max(most, x)
	}
	return fmt.Sprintf("%s, %.3f to %.3f", words[0], 100*least, 100*most)
}

// promises judges the rows by the numbers that were promised.
func (r *Results) promises() []bench.Promise {
	var ps []bench.Promise
	within := func(row Row, limit float64) {
		ps = append(ps, bench.AtMost(fmt.Sprintf("%s, %s: worst error of a share, %%", row.Load, row.Policy), limit, 100*row.Error))
	}
	for _, row := range r.Rows {
		switch {
		case row.Policy == Lottery:
			ps = append(ps, bench.AtMost(row.Load+", lottery: worst error of a share, standard deviations", 3, row.Sigma))
		case row.Policy != Stride:
		case row.Load == "100:1" || row.Load == "change" || row.Load == "join":
			within(row, 3)
		case row.Load == "resting" || row.Load == "many" || row.Load == "skewed" || row.Load == "nodes" || row.Load == "storms" || row.Load == "workers" || row.Load == "linux":
			within(row, 2)
		case row.Load == "inflation":
			moved := 100 * abs(row.Phases[1].Got[2]/row.Phases[0].Got[2]-1)
			ps = append(ps, bench.AtMost("inflation, stride: by how much the other group's share moves, %", 1, moved))
		default:
			within(row, 1)
		}
		if row.Policy == Stride && row.Guests <= maxWindowed && len(row.Phases) == 1 {
			ps = append(ps, bench.AtMost(row.Load+", stride: worst error in any second, ms", 20, row.Window))
		}
		if row.Policy == Stride && row.Load == "2:1" {
			ps = append(ps, bench.AtMost("2:1, stride: CPU lost to scheduling, %", 1, 100*row.Lost))
		}
	}
	if r.Aloned {
		ps = append(ps, bench.AtMost("one guest on each CPU: CPU lost to scheduling, %", 0.1, 100*r.Alone))
	}
	return ps
}

func abs(x float64) float64 { return max(x, -x) }
