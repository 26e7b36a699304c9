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
	Turn    int     `json:"turn"`
	Round   uint64  `json:"round"`
	Ops     uint64  `json:"ops"`     // messages, or bytes of a stream that were asked for
	Bytes   uint64  `json:"bytes"`   // that the client's program got
	Seconds float64 `json:"seconds"` // by the client's clock
	carried
	Exits *exits.Exits `json:"exits"` // of both guests
	// Memory is what of the machine's holds the data, in bytes: page caches, as the
	// guests' kernels count them, and the monitor's; of the first round of a turn only.
	Memory *int64 `json:"memory,omitempty"`
}

// newHost makes what carries the frames of a program's guests.
func (o *Options) newHost(p Program) (host, error) {
	switch p {
	case QEMU, Vhost:
		return newQEMUHost(o, p == Vhost)
	default:
		return newDiscoHost(o, p)
	}
}

// measure runs a server and a client, and measures all ways.
func (o *Options) measure(ctx context.Context, p Program, c *exits.Counters) (rows []Row, err error) {
	h, err := o.newHost(p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	server, costs, err := o.serve(ctx, h)
	if err != nil {
		return nil, err
	}
	client, err := h.start("client", o.clientWords(), false)
	if err != nil {
		return nil, err
	}
	ctx, stop := watch(ctx, server)
	defer stop()
	f := follower{o: o, program: p, host: h, counters: c, costs: costs}
	for {
		e, err := client.next(ctx)
		if err != nil {
			return nil, err
		}
		if e["net"] == "done" {
			return f.rows, nil
		}
		if err := f.heed(e); err != nil {
			return nil, client.lost(err)
		}
	}
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

// follower looks at the host's counters when the client says so.
type follower struct {
	o        *Options
	program  Program
	host     host
	counters *exits.Counters
	costs    costs

	rows   []Row
	cached uint64 // by the client, before the way
	before carried
}

func (f *follower) heed(e event) (err error) {
	switch e["net"] {
	case "way":
		f.cached, err = e.Number("cached")
	case "begin":
		if f.before, err = f.host.carried(); err == nil {
			err = f.counters.Reset()
		}
	case "end":
		err = f.end(e)
	}
	return err
}

func (f *follower) end(e event) error {
	r := Row{Program: f.program, Way: Way(e["way"])}
	var err error
	if r.Exits, err = f.counters.Read(); err != nil {
		return err
	}
	now, err := f.host.carried()
	if err != nil {
		return err
	}
	r.carried = now.since(f.before)
	var nanos uint64
	if err := e.Numbers(map[string]*uint64{"round": &r.Round, "ops": &r.Ops, "bytes": &r.Bytes, "nanos": &nanos}); err != nil {
		return err
	}
	if nanos == 0 || r.Bytes == 0 || r.Delivered == 0 {
		return fmt.Errorf("nothing was carried: %s", e["text"])
	}
	r.Seconds = float64(nanos) / 1e9
	if r.Round == 0 && r.Way != Echo {
		cached, err := e.Number("cached")
		if err != nil {
			return err
		}
		m := int64(cached) - int64(f.cached) + int64(f.costs.of(r.Way)*float64(r.Bytes))
		r.Memory = &m
	}
	f.rows = append(f.rows, r)
	f.o.say("%-6s %-8s %8.1f %s, %.3f copies %v and %.3f mapped, %s%s", r.Program, r.Way, r.rate(), r.Way.unit(), r.copies(), r.CopiedBy, r.mapped(), size(r.Memory), r.Exits.Brief())
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
