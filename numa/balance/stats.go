package balance

import "time"

// Stats are the daemon's counters. All are totals since New, unless they say
// otherwise.
type Stats struct {
	Policy Policy `json:"policy"`
	Paused bool   `json:"paused,omitempty"`

	// LocalShare is an estimate for a person to look at, from 0 to 1: the part of
	// the probes' uses that was local when each block was last looked at, where a
	// block at which nothing remote was seen counts as local. It is not weighted by
	// how often a page is used.
	LocalShare float64 `json:"local_share"`

	Faults          uint64  `json:"faults"`            // reported: for samples, guards and stores to copies
	Writes          uint64  `json:"writes"`            // those of them that were stores, or may have been
	FaultsPerSecond float64 `json:"faults_per_second"` // lately, of all nodes
	MovesPerSecond  float64 `json:"moves_per_second"`  // pages moved and copied, lately

	Migrated   uint64 `json:"migrated"`   // pages
	Replicated uint64 `json:"replicated"` // pages, counted for each copy
	Collapsed  uint64 `json:"collapsed"`  // pages whose copies the daemon gave up as they were written
	Reclaimed  uint64 `json:"reclaimed"`  // pages whose copies were given back as memory was short
	Failed     uint64 `json:"failed"`     // acts that memory refused or broke off

	Looks   uint64 `json:"looks"`   // blocks of which it was asked who uses them
	Fine    uint64 `json:"fine"`    // page by page
	Guarded uint64 `json:"guarded"` // and whether they are written
	Strays  uint64 `json:"strays"`  // looked at for too little
	Holds   uint64 `json:"holds"`   // left alone for a time
	Late    uint64 `json:"late"`    // visits put off to keep to the budget

	Left struct { // runs that were left where they are
		Local  uint64 `json:"local"`
		Cold   uint64 `json:"cold"`
		Shared uint64 `json:"shared"`
		Capped uint64 `json:"capped"`
		NoRoom uint64 `json:"no_room"`
		Short  uint64 `json:"short"`
	} `json:"left"`

	// CPU time that sampling and moving took.
	Sampling time.Duration `json:"sampling_ns"`
	Moving   time.Duration `json:"moving_ns"`
}

// left counts a run that is left.
func (s *Stats) left(why Reason) {
	switch why {
	case Local:
		s.Left.Local++
	case Cold:
		s.Left.Cold++
	case Shared:
		s.Left.Shared++
	case Capped:
		s.Left.Capped++
	case NoRoom:
		s.Left.NoRoom++
	case Short:
		s.Left.Short++
	}
}
