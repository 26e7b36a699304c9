package scheduler

// Limit caps what a client uses over time, whatever its tickets: it earns use at
// a rate, up to a burst, and waits when it has spent it.
type Limit struct {
	part, whole uint64 // so much use in so much time
	burst       int64
	level       int64
	carry       uint64
	at          int64
}

// maxDebt bounds for how many bursts a client may have to wait.
const maxDebt = 16

// NewLimit allows part in whole units of time: 1, 2 is half a CPU. The client
// begins with a burst, which is what it may use beyond its rate after a rest.
func NewLimit(part, whole, burst int64) *Limit {
	burst = max(burst, 1)
	return &Limit{part: max(boundUse(part), 1), whole: max(boundUse(whole), 1), burst: burst, level: burst}
}

// Spend counts a use that ended at time now. If now is before the last one, as
// after a clock step, nothing was earned in between.
func (l *Limit) Spend(now, used int64) {
	l.earn(now)
	l.level = max(l.level-int64(boundUse(used)), -maxDebt*l.burst)
}

func (l *Limit) earn(now int64) {
	if now <= l.at {
		l.at = now
		return
	}
	elapsed := uint64(now - l.at)
	l.at = now
	q, r := mulDiv(min(elapsed, MaxUse), l.part, l.whole)
	if l.carry += r; l.carry >= l.whole {
		l.carry -= l.whole
		q++
	}
	l.level = min(l.level+int64(q), l.burst)
}

// Wait is how long after now the client has to wait; 0 if it may go on.
func (l *Limit) Wait(now int64) int64 {
	l.earn(now)
	if l.level > 0 {
		return 0
	}
	q, _ := mulDiv(uint64(1-l.level), l.whole, l.part)
	return int64(q) + 1
}
