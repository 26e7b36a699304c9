package host

import (
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"disco/scheduler"
)

// level is how a thread may run.
type level int

const (
	unset   level = iota
	raised        // like the monitor's own
	lowered       // when nothing else wants the CPU
	held          // not at all
)

// pool is a set of CPUs and the vCPUs that share them.
type pool struct {
	s       *Scheduler
	given   []int // CPUs
	cpus    []int // and of these, those that are there
	checked int64 // when that was looked at last; 0 if it is to be
	index   int
	policy  scheduler.Policy
	members []*VCPU
	// loose are the members that are not held: what has become of the others is
	// known without looking.
	loose []*VCPU
	next  int // the one of them with whom the next look at sleepers begins

	last       int64 // when the last tick was
	quiet      int   // ticks in a row without competition
	contested  bool  // since the last tick some went without
	chosen     []*VCPU
	line       []*scheduler.Client
	weights    []uint64
	generation uint64 // of the ledger, when it was last asked
	free       []int
	one        [1]int
	ids        map[*scheduler.Client]*VCPU

	glances []glance
	stirred uint32 // atomic: something has happened that a glance does not see

	tid  atomic.Int64
	wake chan struct{}
	done chan struct{}

	ticks atomic.Uint64
}

func newPool(s *Scheduler, cpus []int, index uint64) *pool {
	p := &pool{s: s, given: cpus, cpus: slices.Clone(cpus), index: int(index), ids: map[*scheduler.Client]*VCPU{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	q := int64(s.cfg.Quantum)
	if s.cfg.Kind == Lottery {
		p.policy = scheduler.NewLottery(q, s.cfg.Seed+index)
	} else {
		p.policy = scheduler.NewSpreadStride(q)
	}
	p.last = s.sys.now()
	return p
}

func (p *pool) add(v *VCPU) {
	v.pool = p
	p.members = append(p.members, v)
	p.ids[v.client] = v
	v.seen = p.last
	p.loosen(v)
	p.nudge()
}

// loosen notes that a member is not held, or is not to be.
func (p *pool) loosen(v *VCPU) {
	if !v.loose {
		v.loose = true
		p.loose = append(p.loose, v)
	}
}

func (p *pool) remove(v *VCPU) {
	p.asleep(v)
	p.policy.Leave(v.client)
	p.account(v, p.last)
	p.set(v, raised, anyCPU)
	p.members = slices.DeleteFunc(p.members, func(o *VCPU) bool { return o == v })
	p.loose = slices.DeleteFunc(p.loose, func(o *VCPU) bool { return o == v })
	p.chosen = slices.DeleteFunc(p.chosen, func(o *VCPU) bool { return o == v })
	delete(p.ids, v.client)
	v.pool, v.level, v.tid, v.loose = nil, unset, 0, false
}

// start begins the pool's thread.
func (p *pool) start() { go p.run() }

func (p *pool) run() {
	// Never unlocked: the thread's priority dies with it.
	runtime.LockOSThread()
	defer close(p.done)
	p.tid.Store(int64(unix.Gettid()))
	if err := urgent(); err != nil {
		p.s.cfg.Log.Warn("the scheduler's thread has no priority, so quanta may be late", "err", err)
	}
	for {
		p.s.mu.Lock()
		if p.s.closed {
			for len(p.members) > 0 {
				p.remove(p.members[0])
			}
			p.s.mu.Unlock()
			return
		}
		atomic.StoreUint32(&p.stirred, 0)
		n := p.tick(p.s.sys.now())
		p.s.mu.Unlock()
		p.ticks.Add(1)
		switch {
		case n.idle:
			<-p.wake
		case n.use > 0:
			p.rest(n.use, n.glances)
		default:
			sleepUntil(n.at)
		}
	}
}

// end waits until the thread has ended.
func (p *pool) end() {
	for {
		p.nudge()
		select {
		case <-p.done:
			return
		case <-time.After(time.Millisecond):
			interrupt(int(p.tid.Load()))
		}
	}
}

// nudge ends an idle pool's wait.
func (p *pool) nudge() {
	p.stir()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// nap is what to do until the next tick.
type nap struct {
	idle bool          // nothing until something changes
	use  time.Duration // look again after so much CPU time
	at   int64         // tick at that time

	glances int // while these find nothing new, it rests for use each time
}

// stir has the next look be more than a glance.
func (p *pool) stir() { atomic.StoreUint32(&p.stirred, 1) }

// maxQuiet bounds for how many quanta of CPU time a pool that has CPUs for all is
// not looked at.
const maxQuiet = 10

// sleepers bounds how many of those asleep a tick looks at.
const sleepers = 64

// checkTime is how often it is looked at which CPUs there are, while vCPUs compete.
const checkTime = int64(time.Second)

// check takes note of CPUs that have gone offline, or were forbidden to this process,
// and of those that have come back. If all have gone, their vCPUs run on those that
// other pools have, or wherever they may.
func (p *pool) check(now int64) {
	if age := now - p.checked; p.checked != 0 && age >= 0 && age < checkTime {
		return
	}
	p.checked = now
	there := p.s.sys.there()
	if len(there) == 0 {
		return // it cannot be known
	}
	var cpus []int
	keep := func(of []int) {
		for _, c := range of {
			if slices.Contains(there, c) {
				cpus = append(cpus, c)
			}
		}
	}
	if keep(p.given); len(cpus) == 0 {
		for _, o := range p.s.cfg.Pools {
			keep(o)
		}
	}
	if len(cpus) == 0 {
		cpus = there
	}
	if slices.Equal(cpus, p.cpus) {
		return
	}
	p.s.cfg.Log.Warn("the CPUs for vCPUs have changed", "given", p.given, "now", cpus)
	p.cpus = cpus
	p.generation = 0 // what tickets are worth depends on how many there are
	for _, v := range p.members {
		if v.cpu != noCPU {
			v.cpu = lostCPU
		}
	}
}

// tick ends a quantum and begins another.
func (p *pool) tick(now int64) nap {
	elapsed := max(0, now-p.last)
	p.last = now
	p.check(now)
	p.look(now, elapsed)
	p.reweigh()
	if (p.policy.Len() <= len(p.cpus) || !p.several(true)) && !p.limited() {
		p.calm()
		p.contested = false
		if (len(p.members) <= len(p.cpus) || !p.several(false)) && !p.limits() {
			return nap{idle: true}
		}
		p.quiet = min(p.quiet+1, maxQuiet)
		return nap{use: time.Duration(p.quiet) * p.s.cfg.Quantum * time.Duration(len(p.cpus)), glances: p.glimpse()}
	}
	p.quiet, p.contested = 0, true
	select {
	case p.s.crowded <- struct{}{}:
	default:
	}
	p.choose()
	return nap{at: now + int64(p.s.cfg.Quantum)}
}

// look finds out what all have done since the last tick, some time ago, and tells the
// policy.
func (p *pool) look(now, elapsed int64) {
	p.s.collect(now)
	p.recall()
	all := int64(0)
	for _, v := range p.chosen {
		v.idled = false
	}
	budget := sleepers
	n := len(p.loose)
	for i := range n {
		v := p.loose[(p.next+i)%n]
		v.took = 0
		if !v.awake {
			if budget == 0 {
				continue
			}
			if budget--; budget == 0 {
				p.next = (p.next + i + 1) % n
			}
		}
		p.lookAt(v, now)
		all += v.took
		v.idled = v.chosen && v.took+v.worked < elapsed/2
		p.account(v, now)
	}
	if all > elapsed*int64(len(p.cpus))*3/4 {
		// The others had what these left, whatever kept them: it need not have been
		// so just now.
		for _, v := range p.chosen {
			if v.idled {
				p.policy.Forgo(v.client)
			}
		}
	}
	if p.s.limits == 0 {
		return
	}
	for _, v := range p.members {
		if v.guest.limit != nil || v.capped {
			p.cap(v, now)
		}
	}
}

// account brings what v has waited and was worth up to a time, of which it has had
// took, and its workers worked.
func (p *pool) account(v *VCPU, now int64) {
	elapsed := max(0, now-v.seen)
	v.seen = now
	waited, asked := v.since(elapsed)
	v.waited += max(0, waited-v.took-v.worked)
	v.asked += asked
	v.took, v.worked = 0, 0
}

// since is for how long v has wanted to run in a time, and what its tickets were
// worth then.
func (v *VCPU) since(elapsed int64) (waited, asked int64) {
	if v.awake || v.capped {
		waited = elapsed
	}
	if v.awake {
		asked = int64(v.share * float64(elapsed))
	}
	return waited, asked
}

func (p *pool) lookAt(v *VCPU, now int64) {
	tid := v.thread.TID()
	used, ok := int64(0), false
	if tid != 0 {
		used, ok = p.s.sys.used(tid)
	}
	if !ok {
		p.asleep(v)
		v.tid, v.level, v.class, v.cpu = 0, unset, unset, noCPU
		return
	}
	if tid != v.tid {
		v.tid, v.level, v.class, v.cpu, v.glanced = tid, unset, unset, noCPU, used
	} else {
		v.took = max(0, used-v.clock)
		v.used += v.took
	}
	if v.took > 0 {
		v.guest.latest = v
	}
	v.clock = used
	if l := v.guest.limit; l != nil {
		l.Spend(now, v.took)
	}
	v.halted = v.thread.Halted()
	if v.chosen && v.took == 0 && !v.halted && !v.thread.Inside() {
		// It may wait for something in the monitor, or for other processes.
		v.halted = !p.s.sys.runnable(tid)
	}
	lately := max(0, used-v.glanced)
	v.glanced = used
	little := lately+v.worked < int64(p.s.cfg.Quantum)/littleUse
	switch {
	case v.chosen && v.halted && little:
		// It had its chance and slept.
		p.policy.Charge(v.client, v.took)
		p.policy.Forgo(v.client)
		p.asleep(v)
	case v.chosen:
		p.policy.Done(v.client, v.took)
		if v.halted {
			p.policy.Forgo(v.client)
		}
	case v.took > 0:
		p.policy.Charge(v.client, v.took)
	}
	if !v.awake && !(v.halted && little) {
		p.awake(v)
	}
}

// littleUse is the part of a quantum of which a vCPU has to use more to be taken
// for one that wants to run although it has halted just now.
const littleUse = 16

func (p *pool) awake(v *VCPU) {
	v.awake = true
	v.holder.Activate(true)
	p.policy.SetWeight(v.client, v.holder.Weight())
	p.policy.Join(v.client)
}

func (p *pool) asleep(v *VCPU) {
	v.awake = false
	v.holder.Activate(false)
	p.policy.Block(v.client)
}

// cap takes out who has used up its limit, and lets it in again.
func (p *pool) cap(v *VCPU, now int64) {
	over := v.guest.limit != nil && v.guest.limit.Wait(now) > 0
	switch {
	case over && !v.capped && v.awake:
		p.asleep(v)
		v.capped = true
	case !over && v.capped:
		v.capped = false
		p.awake(v)
	}
}

// limited says whether one with a limit wants to run, and limits whether there is
// one at all.
func (p *pool) limited() bool {
	return p.s.limits > 0 && slices.ContainsFunc(p.members, func(v *VCPU) bool { return v.capped || v.awake && v.guest.limit != nil })
}

func (p *pool) limits() bool {
	return p.s.limits > 0 && slices.ContainsFunc(p.members, func(v *VCPU) bool { return v.guest.limit != nil })
}

// several says whether there are vCPUs of several guests, or several guests with
// vCPUs that want to run. Those of one guest are all alike, and the kernel knows
// better when they wait for each other.
func (p *pool) several(awake bool) bool {
	var one *Guest
	for _, v := range p.members {
		if awake && !v.awake {
			continue
		}
		if one != nil && v.guest != one {
			return true
		}
		one = v.guest
	}
	return false
}

// reweigh tells the policy what everybody's tickets are worth now.
func (p *pool) reweigh() {
	if g := p.s.ledger.Generation(); g != p.generation {
		p.generation = g
		p.value()
	}
}

func (p *pool) value() {
	p.weights = p.weights[:0]
	for _, v := range p.members {
		if v.awake {
			p.weights = append(p.weights, v.holder.Weight())
		}
	}
	feasible := scheduler.Feasible(p.weights, len(p.cpus))
	var total uint64
	for _, w := range p.weights {
		total += min(w, feasible)
	}
	cpus := int64(len(p.cpus))
	for _, v := range p.members {
		p.account(v, p.last)
		v.share = 0
		if !v.awake {
			continue
		}
		w := min(v.holder.Weight(), feasible)
		if w != v.client.Weight() {
			p.policy.SetWeight(v.client, w)
		}
		v.share = min(float64(w)/float64(total)*float64(cpus), 1)
	}
}

// choose picks who runs in the next quantum, and has it so.
func (p *pool) choose() {
	for _, v := range p.chosen {
		v.chosen = false
	}
	p.chosen = p.chosen[:0]
	// Those who have halted just now, and would be next if they had not, are
	// to run as soon as they wake. They take no CPU from the others yet.
	p.line = p.line[:0]
	for n := 0; n < len(p.cpus); {
		c := p.policy.Next()
		if c == nil {
			break
		}
		v := p.ids[c]
		if n > 0 && v.guest.gang && p.gangOf(v) > len(p.cpus)-n {
			// Not all of it finds a CPU now. It is the first soon: it pays
			// nothing, and the others do.
			p.line = append(p.line, c)
			continue
		}
		n += p.elect(v)
		if v.guest.gang {
			for _, o := range v.guest.members {
				if o.pool == p && p.policy.Take(o.client) {
					n += p.elect(o)
				}
			}
		}
	}
	for _, c := range p.line {
		p.policy.Return(c)
	}
	p.line = p.line[:0]
	for range p.s.cfg.Line {
		c := p.policy.Next()
		if c == nil {
			break
		}
		p.ids[c].inLine = true
		p.line = append(p.line, c)
	}
	for _, c := range p.line {
		p.policy.Return(c)
	}
	p.assign()
	// First those who are to run, so that no CPU stands still.
	for _, v := range p.chosen {
		p.set(v, raised, v.next)
	}
	for _, c := range p.line {
		p.set(p.ids[c], lowered, anyCPU)
	}
	for _, v := range p.loose {
		switch {
		case v.chosen, v.inLine:
		case v.capped, v.awake && !v.halted && p.s.cfg.Line < Everyone:
			p.set(v, held, anyCPU)
		case v.awake: // also one that has halted just now: it had its share
			p.set(v, lowered, anyCPU)
		case v.level == unset || p.policy.Before(v.client):
			p.set(v, raised, anyCPU)
		}
	}
	for _, v := range p.chosen {
		p.loosen(v)
	}
	for _, c := range p.line {
		v := p.ids[c]
		v.inLine = false
		p.loosen(v)
	}
	p.tighten()
}

// tighten drops those who are held.
func (p *pool) tighten() {
	p.loose = slices.DeleteFunc(p.loose, func(v *VCPU) bool {
		v.loose = v.level != held
		return !v.loose
	})
}

// elect has v run in the next quantum, and is how many CPUs that takes.
func (p *pool) elect(v *VCPU) int {
	v.chosen = true
	p.chosen = append(p.chosen, v)
	if v.halted {
		return 0
	}
	v.choices++
	return 1
}

// gangOf is how many CPUs the gang of v takes: more than there are counts as those.
func (p *pool) gangOf(v *VCPU) (n int) {
	for _, o := range v.guest.members {
		if o.pool == p && o.awake && !o.halted {
			n++
		}
	}
	return min(n, len(p.cpus))
}

// assign gives each of those chosen a CPU, the one that it had if it can. Of a gang
// that has more vCPUs than there are CPUs, all share all.
func (p *pool) assign() {
	running := 0
	for _, v := range p.chosen {
		if !v.halted {
			running++
		}
	}
	if len(p.cpus) == 1 || running > len(p.cpus) {
		for _, v := range p.chosen {
			v.next = anyCPU
		}
		return
	}
	free := append(p.free[:0], p.cpus...)
	for _, v := range p.chosen {
		v.next = anyCPU
		if i := slices.Index(free, v.cpu); i >= 0 && !v.halted {
			v.next = v.cpu
			free = slices.Delete(free, i, i+1)
		}
	}
	for _, v := range p.chosen {
		if v.next == anyCPU && !v.halted {
			v.next, free = free[0], free[1:]
		}
	}
}

// calm lets all run as the kernel likes.
func (p *pool) calm() {
	for _, v := range p.chosen {
		v.chosen = false
		p.policy.Return(v.client)
	}
	p.chosen = p.chosen[:0]
	for _, v := range p.members {
		p.set(v, raised, anyCPU)
		p.loosen(v)
	}
}

// set brings a thread to a level, on a CPU or anywhere in the pool.
func (p *pool) set(v *VCPU, l level, cpu int) {
	was := v.level
	if v.tid == 0 || l == was && (cpu == v.cpu || l == held) {
		return
	}
	v.level = l
	if l == held {
		v.thread.Hold()
		return
	}
	var err error
	if cpu != v.cpu && (v.cpu != noCPU || cpu != anyCPU || p.s.cfg.Bound) {
		on := p.cpus
		if cpu != anyCPU {
			on = p.one[:]
			on[0] = cpu
		}
		err = p.s.sys.pin(v.tid, on)
		v.cpu = cpu
	}
	if l != v.class {
		if l == lowered {
			v.thread.Lower()
		} else if e := v.thread.Raise(); e != nil {
			err = e
		}
		v.class = l
	}
	if was == held {
		v.thread.Release()
	}
	if err != nil {
		p.checked = 0 // its CPU may have gone
	}
	if err != nil && p.s.troubles < maxTroubles {
		// A thread may have ended just now; anything else comes again.
		p.s.troubles++
		p.s.cfg.Log.Warn("scheduler", "guest", v.guest.name, "vcpu", v.id, "err", err)
	}
}

// maxTroubles is how often the log is told what the host refused.
const maxTroubles = 5

func (v *VCPU) usage() Usage {
	u := Usage{
		Guest: v.guest.name, VCPU: v.id, Pool: -1, Share: v.share,
		Used: time.Duration(v.used), Workers: time.Duration(v.workers), Waited: time.Duration(v.waited), Asked: time.Duration(v.asked), Choices: v.choices,
	}
	if v.pool != nil {
		u.Pool = v.pool.index
		waited, asked := v.since(max(0, v.pool.last-v.seen))
		u.Waited += time.Duration(waited)
		u.Asked += time.Duration(asked)
	}
	switch {
	case v.capped:
		u.State = Capped
	case v.chosen, v.awake && v.level == raised:
		u.State = Running
	case v.awake:
		u.State = Waiting
	}
	return u
}
