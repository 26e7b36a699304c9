package traffic

import (
	"context"
	"errors"
	"fmt"

	"disco/integration/bench/exits"
)

// Row is one round of one way.
type Row struct {
	Program Program `json:"program"`
	Way     Way     `json:"way"`
	Round   uint64  `json:"round"`
	Ops     uint64  `json:"ops"`     // messages, or bytes of a stream that were asked for
	Bytes   uint64  `json:"bytes"`   // that the client's program got
	Seconds float64 `json:"seconds"` // by the client's clock
	carried
	Exits *exits.Exits `json:"exits"` // of both guests
	// Memory is what of the machine's holds the data, in bytes: page caches, as the
	// guests' kernels count them, and the monitor's; of the first round only.
	Memory *int64 `json:"memory,omitempty"`
}

// newHost makes what carries the frames of a program's guests.
func (o *Options) newHost(p Program) (host, error) {
	switch p {
	case QEMU, Vhost:
		return newQEMUHost(o, p)
	default:
		return newDiscoHost(o, p)
	}
}

// pair is a program's two guests: a server, and a client that waits to be told what
// to take from it.
type pair struct {
	o        *Options
	program  Program
	host     host
	client   *running
	counters *exits.Counters
	costs    costs

	// Of the way of now.
	way    Way
	cached uint64 // by the client, before
}

// start starts a program's guests.
func (o *Options) start(ctx context.Context, p Program, c *exits.Counters) (_ *pair, server *running, err error) {
	o.say("%s: boot", p)
	h, err := o.newHost(p)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	g := &pair{o: o, program: p, host: h, counters: c}
	if server, g.costs, err = o.serve(ctx, h); err != nil {
		return nil, nil, err
	}
	if g.client, err = h.start("client", o.clientWords(), false); err != nil {
		return nil, nil, err
	}
	_, err = g.client.await(ctx, "net", "ready")
	return g, server, err
}

// measure has all programs' guests running at once, and measures one at a time, those
// ways that are not in r yet: a round of a way with each program, then the next. What
// makes this host faster or slower for seconds is shared by all of them so.
func (o *Options) measure(ctx context.Context, r *Results, c *exits.Counters) (err error) {
	var pairs []*pair
	defer func() {
		for _, g := range pairs {
			err = errors.Join(err, g.host.close())
		}
	}()
	for _, p := range o.Programs {
		g, server, err := o.start(ctx, p, c)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		pairs = append(pairs, g)
		watched, stop := watch(ctx, server)
		defer stop()
		ctx = watched
	}
	for _, w := range o.Ways {
		if r.has(o.Programs, w) {
			continue
		}
		rows, err := o.take(ctx, pairs, w)
		if err != nil {
			return err
		}
		r.Rows = append(r.Rows, rows...)
		if err := o.keep(r); err != nil {
			return err
		}
	}
	return nil
}

// take measures a way with all programs: in their order, then backwards, and so on.
func (o *Options) take(ctx context.Context, pairs []*pair, w Way) (rows []Row, err error) {
	for _, g := range pairs {
		if err := g.prepare(ctx, w); err != nil {
			return nil, fmt.Errorf("%s, %s: %w", g.program, w, err)
		}
	}
	for round := range o.Rounds {
		for i, g := range pairs {
			if round%2 == 1 {
				g = pairs[len(pairs)-1-i]
			}
			row, err := g.round(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", g.program, w, err)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// watch hears what a guest says until stop, and ends the context when it is lost:
// others would wait for it.
func watch(ctx context.Context, g *running) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			if _, err := g.next(ctx); err != nil {
				cancel(err)
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-over
	}
}

// costs is how much memory holds the server's data, per byte of them.
type costs struct{ file, ram float64 }

// serve starts the server and waits until it serves.
func (o *Options) serve(ctx context.Context, h host) (*running, costs, error) {
	var c costs
	g, err := h.start("server", o.serverWords(), true)
	if err != nil {
		return nil, c, err
	}
	var at [3]int64
	for i, stage := range []string{"up", "warm", "serving"} {
		e, err := g.await(ctx, "net", stage)
		if err != nil {
			return nil, c, err
		}
		cached, err := e.Number("cached")
		if err != nil {
			return nil, c, g.lost(err)
		}
		lent, held := h.lent()
		at[i] = int64(cached) - int64(lent) + int64(held)
	}
	c.file = float64(at[1]-at[0]) / FileSize
	c.ram = float64(at[2]-at[1]) / float64(o.Bytes)
	o.say("server: %.2f bytes of memory for each of its file, %.2f for each of the file in memory", c.file, c.ram)
	return g, c, nil
}

// prepare has the client warm a way up.
func (g *pair) prepare(ctx context.Context, w Way) error {
	g.way = w
	g.client.input("way " + string(w) + "\n")
	e, err := g.client.await(ctx, "net", "way")
	if err != nil {
		return err
	}
	if g.cached, err = e.Number("cached"); err != nil {
		return g.client.lost(err)
	}
	_, err = g.client.await(ctx, "net", "warm")
	return err
}

// round has the client go its way once, and looks at the host's counters when it says
// that it begins and has ended.
func (g *pair) round(ctx context.Context) (r Row, err error) {
	g.client.input("round\n")
	if _, err := g.client.await(ctx, "net", "begin"); err != nil {
		return r, err
	}
	before, err := g.host.carried()
	if err != nil {
		return r, err
	}
	if err := g.counters.Reset(); err != nil {
		return r, err
	}
	e, err := g.client.await(ctx, "net", "end")
	if err != nil {
		return r, err
	}
	r = Row{Program: g.program, Way: g.way}
	if r.Exits, err = g.counters.Read(); err != nil {
		return r, err
	}
	now, err := g.host.carried()
	if err != nil {
		return r, err
	}
	r.carried = now.since(before)
	if err := g.fill(&r, e); err != nil {
		return r, g.client.lost(err)
	}
	g.o.say("%-6s %-8s %8.1f %s, %.3f copies %v and %.3f mapped, %s%s", r.Program, r.Way, r.rate(), r.Way.unit(), r.copies(), r.CopiedBy, r.mapped(), size(r.Memory), r.Exits.Brief())
	return r, nil
}

// fill takes from what the client said of a round.
func (g *pair) fill(r *Row, e event) error {
	var nanos, cached uint64
	if err := e.Numbers(map[string]*uint64{"round": &r.Round, "ops": &r.Ops, "bytes": &r.Bytes, "nanos": &nanos, "cached": &cached}); err != nil {
		return err
	}
	if nanos == 0 || r.Bytes == 0 || r.Delivered == 0 {
		return fmt.Errorf("nothing was carried: %s", e["text"])
	}
	r.Seconds = float64(nanos) / 1e9
	if r.Round == 0 && r.Way != Echo {
		m := int64(cached) - int64(g.cached) + int64(g.costs.of(r.Way)*float64(r.Bytes))
		r.Memory = &m
	}
	return nil
}

// of is the server's part of what the data of a way cost.
func (c costs) of(w Way) float64 {
	switch w {
	case Sendfile, NFS:
		return c.file
	case RAM:
		return c.ram
	}
	return 0
}

// unit is that of a way's rate.
func (w Way) unit() string {
	if w == Echo {
		return "exchanges/s"
	}
	return "MB/s"
}

// rate is in the way's unit.
func (r *Row) rate() float64 {
	if r.Way == Echo {
		return float64(r.Ops) / r.Seconds
	}
	return float64(r.Bytes) / 1e6 / r.Seconds
}

// copies is bytes copied for each that was delivered.
func (r *Row) copies() float64 { return float64(r.Copied) / float64(r.Delivered) }

// mapped is bytes mapped for each that was delivered.
func (r *Row) mapped() float64 { return float64(r.Mapped) / float64(r.Delivered) }

// megabytes are of what the client's program got.
func (r *Row) megabytes() float64 { return float64(r.Bytes) / 1e6 }

func size(n *int64) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("%.1f MiB of memory", float64(*n)/(1<<20))
}
