package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"disco/control"
	"disco/scheduler"
	"disco/vmm"
)

const ticketsLong = `tickets gives a running guest N tickets, from its next quantum on: what it gets of
its monitor's CPUs, while others want them too, is its part of all tickets there. In
a group, it is its part of the group's.

Where guests of several processes have the same name, PID/NAME names one: disco top
shows the process ids.`

func ticketsCommand(w *world) *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:     "tickets [flags] NAME N",
		Short:   "Change a running guest's share of CPUs",
		Long:    ticketsLong,
		Example: "  disco tickets web 300",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%s: give a guest's name and its tickets", count(len(args), "word"))
			}
			return nil
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			all, _ := w.snapshots(c.Context(), path)
			return names(all), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			n, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return &usageError{fmt.Errorf("%q is no number of tickets: use 1 to %d", args[1], scheduler.MaxTickets), c.CommandPath()}
			}
			if err := scheduler.CheckTickets(n); err != nil {
				return &usageError{err, c.CommandPath()}
			}
			return w.setTickets(c.Context(), path, args[0], n)
		},
	}
	c.Flags().SetInterspersed(false) // a negative number is no flag
	controlFlag(c, &path)
	return c
}

// controlFlag is the flag of commands that ask monitors.
func controlFlag(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "control", "", "ask the process whose socket is at `PATH` (default all of this user)")
}

func (w *world) setTickets(ctx context.Context, path, name string, n int64) error {
	all, err := w.snapshots(ctx, path)
	if err != nil {
		return err
	}
	var where []*seen
	for _, s := range all {
		for i := range s.Guests {
			if matches(s.Snapshot, &s.Guests[i], name) {
				where = append(where, s)
			}
		}
	}
	switch len(where) {
	case 1:
	case 0:
		return &usageError{err: errors.New(control.NoGuest(name, names(all)))}
	default:
		var full []string
		for _, s := range where {
			full = append(full, strconv.Itoa(s.Monitor.PID)+"/"+name)
		}
		return &usageError{err: fmt.Errorf("guests of %d processes are called %s: name one of %s", len(where), name, strings.Join(full, ", "))}
	}
	s := where[0]
	c := control.NewClient(s.path)
	defer c.Close()
	own := strings.TrimPrefix(name, strconv.Itoa(s.Monitor.PID)+"/")
	g, err := c.SetTickets(ctx, own, n)
	if err != nil {
		return &vmm.HostError{Err: err}
	}
	fmt.Fprintf(w.stdout, "%s has %d tickets, worth %.2f of its monitor's %s while all want them\n", g.Name, g.Tickets, g.Asked, count(s.Monitor.CPUs, "CPU"))
	return nil
}
