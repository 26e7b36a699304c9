package scheduler

import "slices"

// Feasible is the greatest weight that a client may have on so many CPUs if all
// are to get what their weights say: a client cannot use more than one CPU, so
// weights above it count as it (OSDI'00 §2.1). Without it, one that asks for more
// than a CPU would seem to be owed ever more, and have it all at once when
// another joins. It is MaxWeight where no weight is too great; with no more
// clients than CPUs it is the least weight, since all get a CPU. It sorts
// weights.
func Feasible(weights []uint64, cpus int) uint64 {
	if len(weights) == 0 {
		return MaxWeight
	}
	var rest, most uint64
	for _, w := range weights {
		rest += w
		most = max(most, w)
	}
	if len(weights) > cpus && most <= rest/uint64(cpus) {
		return MaxWeight
	}
	slices.SortFunc(weights, func(a, b uint64) int {
		switch {
		case a > b:
			return -1
		case a < b:
			return 1
		}
		return 0
	})
	if len(weights) <= cpus {
		return weights[len(weights)-1]
	}
	for i, w := range weights[:cpus] {
		left := uint64(cpus - i)
		if w <= rest/left {
			if i == 0 {
				return MaxWeight
			}
			return rest / left
		}
		rest -= w
	}
	// All CPUs but the last are taken by clients too heavy: unreachable, as the
	// last CPU's share is all the rest.
	return rest
}
