package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"disco/vmm"
)

const topLong = `top shows the guests of all disco run and disco up of this user, and their vCPUs:

  TICKETS   how many the guest has
  ASKED%    what they entitle it to while all want CPUs; 100 is one CPU, here and below
  GOT%      what it got
  WAIT%     what it wanted besides, and did not get
  STEAL%    of that, what the guest sees as steal time
  EXITS/S   exits from the guest to KVM; without its count, to the monitor
  TLP       how many of its vCPUs run while any does: Σ i·cᵢ / (1 − c₀), where cᵢ is the
            part of time in which exactly i run
  LOCAL%    accesses to memory of the vCPU's own node, by samples
  SHARED    memory that it has in common with the cache of disk images

On a terminal it does so until q is pressed; s changes the order, v shows vCPUs, and
the arrows choose the guest whose exits and cᵢ are shown below. Elsewhere it prints
one look as text; with --interval one after the other.`

// top is one `disco top`.
type top struct {
	*world
	path     string // of a socket, or empty
	every    time.Duration
	once     bool
	again    bool // every was given
	json     bool
	by       topOrder
	problems []error
}

// topEvery is the usual interval.
const topEvery = time.Second

func topCommand(w *world) *cobra.Command {
	t := &top{world: w, every: topEvery, by: topOrders[0]}
	c := &cobra.Command{
		Use:     "top",
		Short:   "Show what running guests do",
		Long:    topLong,
		Example: "  disco top\n  disco top --once\n  disco top --json --interval 10s >>log",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			t.again = c.Flags().Changed("interval")
			if t.every < minTopEvery {
				t.problems = append(t.problems, fmt.Errorf("interval %v: at least %v", t.every, minTopEvery))
			}
			if t.problems != nil {
				return &vmm.ConfigError{Problems: t.problems}
			}
			return t.run(c.Context())
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.Var(parsed("interval", "DURATION", t.every.String(), &t.every, parseDuration, &t.problems), "interval", "look that often")
	f.BoolVar(&t.once, "once", false, "look once, over one interval, and print text")
	f.BoolVar(&t.json, "json", false, "print JSON: an object, or with --interval one in each line, until it is ended")
	f.Var(parsed("sort", "COLUMN", t.by.name, &t.by, parseOrder, &t.problems), "sort", "begin with the guests that have most of this: got, asked, wait, steal, exits or tlp; or sort by name")
	controlFlag(c, &t.path)
	var orders []cobra.Completion
	for _, o := range topOrders {
		orders = append(orders, o.name)
	}
	for name, choices := range map[string][]cobra.Completion{"sort": orders, "interval": nil} {
		// It fails only for a flag that does not exist.
		if err := c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err)
		}
	}
	return c
}

// minTopEvery keeps top itself from being what is seen.
const minTopEvery = 100 * time.Millisecond

func parseOrder(s string) (topOrder, error) {
	for _, o := range topOrders {
		if o.name == s {
			return o, nil
		}
	}
	return topOrder{}, errors.New("there are got, asked, wait, steal, exits, tlp and name")
}

func (t *top) run(ctx context.Context) error {
	l := t.lookout(t.path)
	defer l.close()
	if t.onTerminal() && !t.once && !t.json {
		return t.screen(ctx, l)
	}
	before, _, err := l.ask(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(t.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		now, trouble, err := l.ask(ctx)
		if err != nil {
			return err
		}
		if err := t.print(newLook(before, now, trouble)); err != nil {
			return err
		}
		if t.once || !t.again {
			return nil
		}
		before = now
	}
}

func newLook(before, now []*seen, trouble []error) *topLook {
	look := lookAt(before, now)
	for _, err := range trouble {
		look.Trouble = append(look.Trouble, oneLine(err.Error()))
	}
	return look
}

func (t *top) print(look *topLook) error {
	if !t.json {
		_, err := io.WriteString(t.stdout, look.text(t.by))
		return err
	}
	e := json.NewEncoder(t.stdout)
	if t.once || !t.again {
		e.SetIndent("", "  ")
	}
	return e.Encode(look)
}

// screen shows looks until it is told to end.
func (t *top) screen(ctx context.Context, l *lookout) error {
	var before []*seen
	s := &topScreen{every: t.every}
	for i, o := range topOrders {
		if o.name == t.by.name {
			s.by = i
		}
	}
	s.ask = func() tea.Msg {
		now, trouble, err := l.ask(ctx)
		if err != nil {
			return err
		}
		look := newLook(before, now, trouble)
		before = now
		return look
	}
	_, err := tea.NewProgram(s, tea.WithContext(ctx), tea.WithInput(t.stdin), tea.WithOutput(t.stdout)).Run()
	if errors.Is(err, tea.ErrInterrupted) || ctx.Err() != nil {
		err = nil
	}
	return errors.Join(err, s.err)
}
