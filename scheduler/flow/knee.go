package flow

// knee finds the number of requests at once beyond which more do not get more done.
// It keeps how long a unit of cost takes with so many at once, and prefers the fewest
// that do nearly as much as the most.
type knee struct {
	took    [MaxDepth + 1]int64 // ns of 1<<16 units, by how many at once; 0 for not known
	service int64               // ns of a request
	seen    int                 // requests in this window
	windows int
	depth   int64 // 0 before the first window
	trying  int64 // what is added to depth in this window
}

const (
	window  = 32 // requests
	explore = 64 // one more, and one less, are tried in one window of so many
	unit    = 1 << 16
	recent  = 8 // a value counts an eighth of those before it
)

// learn notes a request that took so long beside others, so many in all when it was
// let through and when it was done. If those differ, it says nothing about either.
func (k *knee) learn(first, last, took, cost int64) {
	if took <= 0 {
		took = 1
	}
	k.service = mean(k.service, took)
	if first == last {
		level := min(max(first, 1), MaxDepth)
		k.took[level] = mean(k.took[level], max(1, int64(float64(took)*unit/float64(max(cost, 1)))))
	}
	if k.seen++; k.seen >= window {
		k.seen = 0
		k.choose()
	}
}

func mean(was, now int64) int64 {
	if was == 0 {
		return now
	}
	return was + (now-was)/recent
}

// choose sets depth to the least level at which nine tenths of the most is done.
func (k *knee) choose() {
	best, last := 0.0, int64(0)
	done := func(level int64) float64 {
		if k.took[level] == 0 {
			return 0
		}
		return float64(level) / float64(k.took[level])
	}
	for l := int64(1); l <= MaxDepth; l++ {
		if d := done(l); d > 0 {
			best, last = max(best, d), l
		}
	}
	for l := int64(1); l <= MaxDepth; l++ {
		if done(l) >= 0.9*best {
			k.depth = l
			break
		}
	}
	k.windows++
	switch {
	case k.depth > 1 && (k.took[k.depth-1] == 0 || k.windows%explore == explore/2):
		k.trying = -1
	case k.depth == last || k.windows%explore == 0:
		k.trying = 1
	default:
		k.trying = 0
	}
}

// room is how many may be served at once.
func (k *knee) room() int64 {
	if k.depth == 0 || k.service < int64(Short) {
		return MaxDepth
	}
	return min(k.depth+k.trying, MaxDepth)
}
