package flow

import "time"

// ahead is for how long before it is due something may go through a Gate with a rate,
// so that there are not more waits than clocks are worth.
const ahead = 2 * time.Millisecond

// pace is a rate, kept as the time at which what went through is paid for.
type pace struct {
	rate uint64 // of cost a second; 0 for none
	due  int64  // ns of the clock; 0 before the first
}

// Owing is how long a request of a cost that has entered has to wait, before it is
// done, for the rate of a Gate that has one. Its caller waits between Enter and Done,
// so that those who come meanwhile do so for their turns. It does not allocate.
func (f *Flow) Owing(cost int64) time.Duration {
	g := f.gate
	if g.pace.rate == 0 {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := clock()
	p := &g.pace
	if p.due == 0 || p.due < now {
		p.due = now
	}
	p.due += int64(float64(max(cost, 0)) / float64(p.rate) * float64(time.Second))
	return max(0, time.Duration(p.due-now)-ahead)
}
