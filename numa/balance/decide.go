package balance

import (
	"math"

	"disco/memory"
	"disco/numa"
	"disco/numa/sample"
)

// Verb is what to do with a run of pages.
type Verb uint8

const (
	// ToLeave is nothing, for an Action's Why.
	ToLeave Verb = iota
	// ToMigrate moves the pages to a node.
	ToMigrate
	// ToReplicate gives a node copies of them.
	ToReplicate
	// ToCollapse gives up all copies.
	ToCollapse
)

// Reason is why pages are left where they are.
type Reason uint8

const (
	// Local is a run that its own node uses alone, or that all its users have.
	Local Reason = iota
	// Cold is a run that nobody was seen to use.
	Cold
	// Shared is a run that several nodes use and write, or that the Policy has no
	// remedy for.
	Shared
	// Capped is a run that was moved too often lately.
	Capped
	// NoRoom is a run whose users' nodes have no memory left for it.
	NoRoom
	// Short is a run that has too few pages for the mappings that copies of it
	// would take.
	Short
	reasons
)

// Action is one decision about a run of pages, all within one block.
type Action struct {
	Do    Verb
	Why   Reason // of ToLeave
	First memory.PPN
	Pages int
	To    numa.Node // of ToMigrate and ToReplicate
}

// Budget is what Decide may spend, and for whom.
type Budget struct {
	Policy   Policy
	Nodes    []numa.Node // that the guest runs on, in the order of sample.Mask
	MaxMoves int
	// Room is the pages that each of Nodes may still take. Decide takes from it
	// what its actions will.
	Room []int
	// MinRun is the pages that a run must have to be copied: mappings are scarce.
	MinRun int
}

// noise is the part of the probes of a run's most frequent user below which
// another does not count as a user. A quarter is the sharing threshold that
// Verghese et al. found good (ASPLOS'96, §5).
const noise = 4

// Decide appends to dst what is to be done about heat, in its order: at least one
// Action for each Heat. It allocates only if dst is too short. The rules are
// Disco's (SOSP'97 §4.2), applied to runs:
//
//   - used from one node that it is not on: migrate there;
//   - read from several and not written: copies on each of those nodes but its own;
//   - written from several: leave, unless its own node is not among them: then it
//     migrates to the one that uses it most, as none loses by that;
//   - copies, some of which were written: collapse;
//   - moved MaxMoves times lately: leave.
func Decide(t *numa.Topology, heat []sample.Heat, b Budget, dst []Action) []Action {
	for i := range heat {
		dst = decide(t, &heat[i], &b, dst)
	}
	return dst
}

func decide(t *numa.Topology, h *sample.Heat, b *Budget, dst []Action) []Action {
	leave := func(why Reason) []Action {
		return append(dst, Action{Do: ToLeave, Why: why, First: h.First, Pages: h.Pages})
	}
	if h.Writes == sample.Broken {
		return append(dst, Action{Do: ToCollapse, First: h.First, Pages: h.Pages})
	}
	users := heavy(h)
	home := place(b.Nodes, h.Home)
	switch {
	case users == 0:
		return leave(Cold)
	case users.Count() == 1 && users.Has(home):
		return leave(Local)
	case users.Count() > 1 && h.Writes == sample.Unwritten && b.Policy.replicates():
		return replicate(h, users, home, b, dst)
	case users.Count() == 1 && h.Writes == sample.Unwritten && !b.Policy.migrates():
		return replicate(h, users, home, b, dst)
	case users.Has(home), !b.Policy.migrates(), h.Copies != 0:
		return leave(Shared)
	case h.Moves >= b.MaxMoves:
		return leave(Capped)
	}
	to := best(t, h, users, b)
	if to < 0 {
		return leave(NoRoom)
	}
	b.Room[to] -= h.Pages
	return append(dst, Action{Do: ToMigrate, First: h.First, Pages: h.Pages, To: b.Nodes[to]})
}

// replicate gives copies to the users that have none and have room.
func replicate(h *sample.Heat, users sample.Mask, home int, b *Budget, dst []Action) []Action {
	before, why := len(dst), Local
	for v, n := range b.Nodes {
		switch {
		case !users.Has(v) || v == home || h.Copies.Has(v):
		case h.Pages < b.MinRun && !h.Joins:
			why = Short
		case b.Room[v] < h.Pages:
			why = NoRoom
		default:
			b.Room[v] -= h.Pages
			dst = append(dst, Action{Do: ToReplicate, First: h.First, Pages: h.Pages, To: n})
		}
	}
	if len(dst) == before || why != Local {
		dst = append(dst, Action{Do: ToLeave, Why: why, First: h.First, Pages: h.Pages})
	}
	return dst
}

// heavy is the users of h that count.
func heavy(h *sample.Heat) sample.Mask {
	var most uint16
	for v, n := range h.Use {
		if h.Users.Has(v) {
			most = max(most, n)
		}
	}
	users := h.Users
	for v, n := range h.Use {
		if n*noise < most {
			users &^= 1 << v
		}
	}
	return users
}

// best is the user with room that uses h most; of equals, the one from which the
// others are nearest; then the lowest. -1 if none has room.
func best(t *numa.Topology, h *sample.Heat, users sample.Mask, b *Budget) int {
	to, use, far := -1, uint16(0), math.MaxInt
	for v, n := range b.Nodes {
		if !users.Has(v) || b.Room[v] < h.Pages {
			continue
		}
		d := 0
		for w, other := range b.Nodes {
			if users.Has(w) {
				d += int(h.Use[w]) * t.Distance(other, n)
			}
		}
		if h.Use[v] > use || h.Use[v] == use && d < far {
			to, use, far = v, h.Use[v], d
		}
	}
	return to
}

// place is the index of n in nodes, -1 if it is not there.
func place(nodes []numa.Node, n numa.Node) int {
	for i, m := range nodes {
		if m == n {
			return i
		}
	}
	return -1
}
