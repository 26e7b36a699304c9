package locality

import (
	"errors"
	"fmt"
	"time"

	"disco/integration/guest/workload"
	"disco/memory"
	"disco/numa"
	"disco/numa/balance"
)

// ErrWrong is a guest whose memory did not hold what it had written.
var ErrWrong = errors.New("the guest's memory is wrong")

// Run is one workload under one policy.
type Run struct {
	Policy   Policy        `json:"policy"`
	Workload string        `json:"workload"`
	Spec     workload.Spec `json:"spec"`
	Points   []Point       `json:"points"` // one for each round
	Pieces   []int         `json:"pieces"` // of guest-physical memory that each region consists of

	Before    *Tally   `json:"before"`     // the first round's accesses, with the pages where their first touch had put them
	Settled   *Tally   `json:"settled"`    // the rounds of Plan.Settled
	Whole     *Tally   `json:"whole"`      // all rounds
	Did       Counters `json:"did"`        // over all rounds
	Steady    Counters `json:"steady"`     // over the settled rounds
	Own       Own      `json:"own"`        // as Did
	OwnSteady Own      `json:"own_steady"` // as Steady
	Seconds   float64  `json:"seconds"`    // of all rounds, by the guest's clock
	SteadyS   float64  `json:"steady_host_seconds"`
	// Balance is the policy's own account at the end, since the guest's start: it
	// tells why pages stayed where they were.
	Balance  balance.Stats `json:"balance"`
	MoveNote string        `json:"move,omitempty"` // why a move failed
}

// Point is one round.
type Point struct {
	Round    int      `json:"round"`
	Accesses uint64   `json:"accesses"` // since the workload's start
	Local    float64  `json:"local"`    // share, 0 to 1
	Counters Counters `json:"counters"` // since the workload's start
	Settled  bool     `json:"settled,omitempty"`
	HostTime float64  `json:"host_seconds"` // since the workload's start
}

// stillness is by how much the local share may rise while it is taken to be settled.
const stillness = 0.01

// rising says whether the local share rose while it was taken to be settled: the
// policy had not had its time.
func (r *Run) rising() bool {
	from := -1
	for i, p := range r.Points {
		switch {
		case !p.Settled:
			from = -1
		case from < 0:
			from = i
		case p.Local > r.Points[from].Local+stillness:
			return true
		}
	}
	return false
}

// drive has the guest at the other end of c do plan, and watches its pages.
// moveTo is where the workload moving goes half-way. tell hears of each round.
func drive(c *workload.Conn, g Guest, ram []memory.Range, all []numa.Node, plan *workload.Plan, moveTo numa.Node, tell func(Point)) (*Run, error) {
	ready, err := c.Run(plan)
	if err != nil {
		return nil, err
	}
	census, err := newCensus(plan, ready, all, ram)
	if err != nil {
		return nil, err
	}
	if err := census.look(g); err != nil {
		return nil, err
	}

	r := &Run{Workload: plan.Spec.Name, Spec: plan.Spec, Settled: NewTally(all), Whole: NewTally(all)}
	for _, frames := range ready.Regions {
		r.Pieces = append(r.Pieces, len(frames))
	}
	start, began := g.Counters(), time.Now()
	last, lastTime := Counters{}, 0.0
	own := census.own(g)
	lastOwn := own
	var moved chan error
	for index := range plan.Spec.Rounds {
		if plan.Spec.Name == "moving" && index == plan.Spec.Rounds/2 {
			moved = make(chan error, 1)
			go func() { moved <- g.Move(moveTo) }()
		}
		if err := c.Go(); err != nil {
			return nil, err
		}
		round, err := c.Round(plan, index)
		if err != nil {
			return nil, err
		}
		homes := g.Homes()
		if len(homes) < len(plan.Spec.Threads) {
			return nil, errGone
		}
		homes = homes[:len(plan.Spec.Threads)]
		if index == 0 {
			r.Before = census.tally(0, round.Spans, homes, g.Nodes())
		}
		if err := census.look(g); err != nil {
			return nil, err
		}
		t := census.tally(index, round.Spans, homes, g.Nodes())
		r.Whole.Merge(t)
		r.Seconds += float64(round.Nanos) / 1e9
		p := Point{
			Round: index, Accesses: r.Whole.Total(), Local: t.Local(), Counters: g.Counters().Less(start),
			Settled: plan.Settled(index), HostTime: time.Since(began).Seconds(),
		}
		nowOwn := census.own(g)
		if p.Settled {
			r.Settled.Merge(t)
			r.OwnSteady.Moved += nowOwn.Moved - lastOwn.Moved
			r.OwnSteady.Copied += nowOwn.Copied - lastOwn.Copied
			r.Steady = r.Steady.plus(p.Counters.Less(last))
			r.SteadyS += p.HostTime - lastTime
		}
		last, lastTime, lastOwn = p.Counters, p.HostTime, nowOwn
		r.Points, r.Did = append(r.Points, p), p.Counters
		tell(p)
	}
	r.Balance = g.Balance()
	r.Own = Own{lastOwn.Moved - own.Moved, lastOwn.Copied - own.Copied}
	if moved != nil {
		if err := <-moved; err != nil {
			r.MoveNote = err.Error()
		}
	}
	if err := c.Go(); err != nil {
		return nil, err
	}
	done, err := c.Done()
	if err != nil {
		return nil, err
	}
	if done != (workload.Done{}) {
		return r, fmt.Errorf("%w: %d loads found what nobody wrote, and the sums of increments are off by %d", ErrWrong, done.Stale, done.Lost)
	}
	return r, nil
}
