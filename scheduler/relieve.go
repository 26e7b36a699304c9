package scheduler

// Place is a set of CPUs with a queue of its own, a NUMA node's as a rule, and what
// was used of them over a while.
type Place struct {
	CPUs int
	Used float64 // of CPUs, on average
}

// Mover is what can be moved to another Place at once: a vCPU, or a whole guest.
type Mover struct {
	Place  int     // index of the one where it is
	To     []int   // and of those where it may go
	VCPUs  int     // how many CPUs it can use
	Used   float64 // CPUs that it had on average,
	Waited float64 // and that it would have used besides
	// Cost is the CPU time that moving it takes, in s, and Slow by how much slower
	// it runs afterwards: 0.1 is 10 %.
	Cost, Slow float64
}

const (
	// relieveTime is how long a move is expected to last, in s: what it gains over
	// that time has to be more than it costs.
	relieveTime = 10
	// relieveLeast is the least gain, in CPUs.
	relieveLeast = 0.1
)

// Relieve is who had best move where, if it pays at all: from a Place where many
// wait to one where CPUs stand still. What counts is what all do together: what the
// mover gets there, at the pace it has there, less what it had, and what those who
// wait for the same CPUs get of that. It does not move one guest to make room for
// another, nor do tickets count; shares are a matter of each Place.
func Relieve(places []Place, movers []Mover) (who, to int, ok bool) {
	waited := make([]float64, len(places))
	for _, m := range movers {
		waited[m.Place] += m.Waited
	}
	best := 0.0
	for i, m := range movers {
		if m.Waited <= 0 {
			continue
		}
		left := min(m.Used, waited[m.Place]-m.Waited)
		for _, p := range m.To {
			if p == m.Place {
				continue
			}
			idle := float64(places[p].CPUs) - places[p].Used
			there := min(float64(m.VCPUs), m.Used+m.Waited, idle)
			gain := there/(1+m.Slow) - m.Used + left
			if net := gain*relieveTime - m.Cost; gain >= relieveLeast && net > best {
				who, to, ok, best = i, p, true, net
			}
		}
	}
	return who, to, ok
}
