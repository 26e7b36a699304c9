package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"

	"disco/memory/arena"
	"disco/vmm"
)

// watchStats prints a line about the guest's memory that often, after its name if
// there is one, until stop; never if every is 0.
func (w *world) watchStats(g guest, name string, every time.Duration) (stop func()) {
	if every == 0 {
		return func() {}
	}
	if name != "" {
		name += ": "
	}
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(every)
		defer tick.Stop()
		var before vmm.NUMAStats
		for {
			select {
			case <-tick.C:
				if now, ok := g.NUMAStats(); ok {
					fmt.Fprintf(w.stderr, "disco: %s%s\n", name, statsLine(before, now, every))
					before = now
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-gone }
}

// statsLine is one line about now, with rates since before.
func statsLine(before, now vmm.NUMAStats, d time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "local %.1f %%", 100*now.LocalShare)
	for _, n := range now.Memory {
		fmt.Fprintf(&b, ", node %d %s", n.Node, units.BytesSize(float64(n.Pages*arena.PageSize)))
		if n.Replicas > 0 {
			fmt.Fprintf(&b, " + %s copies", units.BytesSize(float64(n.Replicas*arena.PageSize)))
		}
	}
	// A restart begins counts anew.
	rate := func(a, b uint64) float64 {
		if b < a {
			a = 0
		}
		return float64(b-a) / d.Seconds()
	}
	p, q := before.Acts, now.Acts
	fmt.Fprintf(&b, "; per second: %.0f pages moved, %.0f copied, %.0f collapsed, %.0f faults, %.0f relayed interrupts",
		rate(p.Migrated, q.Migrated), rate(p.Replicated, q.Replicated), rate(p.Collapsed, q.Collapsed),
		rate(p.Faults(), q.Faults()), rate(before.Relayed, now.Relayed))
	if !now.Real {
		b.WriteString(" (the nodes are not real)")
	}
	return b.String()
}
