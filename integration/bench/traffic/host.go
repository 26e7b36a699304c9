package traffic

import (
	"context"
	"errors"
	"fmt"
)

// host runs guests of one monitor or several on one network, and counts what
// becomes of their frames. Its methods are called by one goroutine.
type host interface {
	// start starts a guest; the first is the server, and has the disk.
	start(name, words string, server bool) (*running, error)
	// carried is what was carried so far.
	carried() (carried, error)
	// lent is how many bytes of the server's page cache are not its own but the
	// monitor's buffer cache's, and held how many that has.
	lent() (lent, held uint64)
	// close ends the guests, and frees all.
	close() error
}

// carried counts bytes of frames.
type carried struct {
	Delivered uint64 `json:"delivered"` // to guests
	Copied    uint64 `json:"copied"`    // by who carries them, once for each time
	Mapped    uint64 `json:"mapped"`    // instead
	// CopiedBy is Copied by the segment's reason.
	CopiedBy map[string]uint64 `json:"copied_by,omitempty"`
}

func (c carried) since(before carried) carried {
	d := carried{Delivered: c.Delivered - before.Delivered, Copied: c.Copied - before.Copied, Mapped: c.Mapped - before.Mapped}
	for why, n := range c.CopiedBy {
		if n -= before.CopiedBy[why]; n > 0 {
			d.by(why, n)
		}
	}
	return d
}

func (c *carried) by(why string, n uint64) {
	if c.CopiedBy == nil {
		c.CopiedBy = map[string]uint64{}
	}
	c.CopiedBy[why] += n
}

// running is a guest that was started.
type running struct {
	name    string
	console *console
	ended   chan error   // gets how it ended, once
	input   func(string) // hands a line to its console
}

// await waits for an event of the guest that has the word key=value.
func (g *running) await(ctx context.Context, key, value string) (event, error) {
	for {
		e, err := g.next(ctx)
		if err != nil || e[key] == value {
			return e, err
		}
	}
}

var errEnded = errors.New("the guest ended")

// next waits for what the guest says next. What it said is heard before its end.
func (g *running) next(ctx context.Context) (event, error) {
	select {
	case e := <-g.console.events:
		return g.judge(e)
	default:
	}
	select {
	case e := <-g.console.events:
		return g.judge(e)
	case err := <-g.ended:
		g.ended <- err
		select {
		case e := <-g.console.events:
			return g.judge(e)
		default:
		}
		if err == nil {
			err = errEnded
		}
		return nil, g.lost(err)
	case <-ctx.Done():
		return nil, g.lost(context.Cause(ctx))
	}
}

func (g *running) judge(e event) (event, error) {
	if e["result"] == "failed" {
		return nil, g.lost(errors.New(e["text"]))
	}
	return e, nil
}

// lost is an error for a guest that will do no more.
func (g *running) lost(err error) error {
	return fmt.Errorf("%s: %w; its last lines: %q", g.name, err, g.console.Last())
}
