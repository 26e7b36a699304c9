package balance

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// Config is a Policy and its thresholds. A threshold that is zero is
// [Default]'s.
type Config struct {
	Policy Policy `json:"policy"`

	// Tick is how often the daemon looks at what was touched and acts; 10 ms to
	// 10 s.
	Tick time.Duration `json:"tick_ns"`
	// Window is the least time for which probes are watched before anything is
	// said of a block. A block that is used slowly is watched for longer, up to
	// MaxWindow.
	Window    time.Duration `json:"window_ns"`
	MaxWindow time.Duration `json:"max_window_ns"`
	// GuardWindow is the least time for which pages read from several nodes are
	// guarded, and must stay unwritten, before they are replicated.
	GuardWindow time.Duration `json:"guard_window_ns"`
	// Hold is how long a block that could not be helped is left alone: written
	// from several nodes, not movable, or with a copy that was written. It doubles
	// each time, up to MaxHold.
	Hold    time.Duration `json:"hold_ns"`
	MaxHold time.Duration `json:"max_hold_ns"`
	// MaxMoves is how often a block may be moved; the count halves every Decay.
	MaxMoves int           `json:"max_moves"`
	Decay    time.Duration `json:"decay_ns"`

	// FaultRate is the faults per second and node that sampling may cause while
	// it finds nothing to move. What it moves pays for more: a fault for every
	// two pages.
	FaultRate int `json:"fault_rate"`
	// SampleShare is the part of one CPU that arming and reading samples may
	// take, and MoveShare the part that moving and copying may take; above 0, up
	// to 1. On a host where an act takes longer, fewer are done.
	SampleShare float64 `json:"sample_share"`
	MoveShare   float64 `json:"move_share"`
	// MoveRate is the pages per second that are moved or copied at most.
	MoveRate int `json:"move_rate"`
	// MinFree is the part of a node's memory that nothing is brought into, so that
	// it stays available; with less than that, replicas are given back. 0 to 1.
	MinFree float64 `json:"min_free"`
}

// Default is Full with the thresholds that the benchmarks are run with. With
// them a guest of 1 GiB whose memory is all in the wrong place settles in some
// seconds.
func Default() Config {
	return Config{
		Policy:      Full,
		Tick:        100 * time.Millisecond,
		Window:      200 * time.Millisecond,
		MaxWindow:   4 * time.Second,
		GuardWindow: 500 * time.Millisecond,
		Hold:        time.Second,
		MaxHold:     16 * time.Second,
		MaxMoves:    4,
		Decay:       20 * time.Second,
		FaultRate:   40,
		SampleShare: 0.2,
		MoveShare:   0.5,
		MoveRate:    131072,
		MinFree:     0.05,
	}
}

// Validate says all that is wrong with c, each by the name of its field.
func (c Config) Validate() error {
	c = c.complete()
	var errs []error
	bad := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	bad(c.Policy >= Off && c.Policy <= Full, "policy: no policy %d", int(c.Policy))
	bad(c.Tick >= 10*time.Millisecond && c.Tick <= 10*time.Second, "tick of %v: choose 10ms to 10s", c.Tick)
	bad(c.Window > 0 && c.Window <= c.MaxWindow, "window of %v: choose more than 0 and at most the longest window, %v", c.Window, c.MaxWindow)
	bad(c.GuardWindow > 0, "guard window of %v: choose more than 0", c.GuardWindow)
	bad(c.Hold > 0 && c.Hold <= c.MaxHold, "hold of %v: choose more than 0 and at most the longest hold, %v", c.Hold, c.MaxHold)
	bad(c.MaxMoves > 0 && c.MaxMoves <= 100, "%d moves of a block: choose 1 to 100", c.MaxMoves)
	bad(c.Decay > 0, "decay of %v: choose more than 0", c.Decay)
	bad(c.FaultRate > 0, "fault rate of %d per second: choose more than 0", c.FaultRate)
	bad(c.SampleShare > 0 && c.SampleShare <= 1, "sample share of %v: choose more than 0, up to 1 CPU", c.SampleShare)
	bad(c.MoveShare > 0 && c.MoveShare <= 1, "move share of %v: choose more than 0, up to 1 CPU", c.MoveShare)
	bad(c.MoveRate > 0, "move rate of %d pages per second: choose more than 0", c.MoveRate)
	bad(c.MinFree > 0 && c.MinFree < 1, "least free memory of %v: choose a part of a node, more than 0 and less than 1", c.MinFree)
	return errors.Join(errs...)
}

// complete is c with defaults for what is zero.
func (c Config) complete() Config {
	d := Default()
	c.Tick = cmp.Or(c.Tick, d.Tick)
	c.Window = cmp.Or(c.Window, d.Window)
	c.MaxWindow = cmp.Or(c.MaxWindow, max(d.MaxWindow, c.Window))
	c.GuardWindow = cmp.Or(c.GuardWindow, d.GuardWindow)
	c.Hold = cmp.Or(c.Hold, d.Hold)
	c.MaxHold = cmp.Or(c.MaxHold, max(d.MaxHold, c.Hold))
	c.MaxMoves = cmp.Or(c.MaxMoves, d.MaxMoves)
	c.Decay = cmp.Or(c.Decay, d.Decay)
	c.FaultRate = cmp.Or(c.FaultRate, d.FaultRate)
	c.SampleShare = cmp.Or(c.SampleShare, d.SampleShare)
	c.MoveShare = cmp.Or(c.MoveShare, d.MoveShare)
	c.MoveRate = cmp.Or(c.MoveRate, d.MoveRate)
	c.MinFree = cmp.Or(c.MinFree, d.MinFree)
	return c
}
