package sample

import (
	"math/bits"
	"slices"
	"time"

	"disco/memory"
	"disco/numa"
)

// inquiry is a look under way.
type inquiry struct {
	used   bool
	narrow bool // two probes only
	block  int
	since  time.Duration // the touch that began it
	start  time.Duration // of this phase
	last   time.Duration // when count grew last
	span   time.Duration // in which the users came back
	count  int
	probe  [Probes]int16 // page of the block; -1
	home   [Probes]int8  // place of that page's node; -1
	armed  [Probes]Mask  // Views it is watched in
	asked  int           // pages guarded
	bad    bool          // some pages of it could not be helped
	said   opinion
	from   int8             // place of the node that the block is on, -1
	parts  bool             // it is handed out in parts
	before [MaxNodes]uint16 // pages that each node had then
}

// inquiry is the one into block i, nil if there is none.
func (s *Sampler) inquiry(i int) *inquiry {
	for k := range s.looks {
		if l := &s.looks[k]; l.used && l.block == i {
			return l
		}
	}
	return nil
}

// begin opens an inquiry into block i; nil if too many are open.
func (s *Sampler) begin(i int, p phase, now time.Duration) *inquiry {
	if len(s.free) == 0 {
		return nil
	}
	l := &s.looks[s.free[len(s.free)-1]]
	s.free = s.free[:len(s.free)-1]
	*l = inquiry{used: true, block: i, since: now, start: now, last: now, from: -1}
	s.blocks[i].phase = p
	return l
}

// end closes l.
func (s *Sampler) end(l *inquiry) {
	b := &s.blocks[l.block]
	b.phase = idle
	s.release(b)
	for k := range s.looks {
		if &s.looks[k] == l {
			s.free = append(s.free, uint16(k))
		}
	}
	l.used = false
}

// pending says whether an idle block needs a visit now.
func (s *Sampler) pending(b *block, now time.Duration) bool {
	switch {
	case b.copied.Load() > 0 && b.writes.Load() > 0:
		return true
	case b.held:
		return now >= b.due
	default:
		return b.anyTouched()
	}
}

// visit does what is due at such a block.
func (s *Sampler) visit(i int, now time.Duration) {
	b := &s.blocks[i]
	b.age(now, s.cfg.Decay)
	switch {
	case b.copied.Load() > 0 && b.writes.Load() > 0:
		s.broken(i, now)
	case b.held && b.stuck:
		if s.recheck < 1 || !s.solvent() {
			return
		}
		if l := s.begin(i, look, now); l != nil {
			s.recheck--
			b.held = false
			l.narrow = b.level > 1
			s.ask(l, now)
		}
	case b.held:
		b.held = false
		b.due = now
	case !s.solvent():
		s.stats.Late++
	default:
		l := s.begin(i, survey, now)
		switch {
		case l == nil:
		case s.notable(l):
			s.ask(l, now)
		default:
			s.watch(l, false)
		}
	}
}

// scan looks for pages that came without a touch, as a node's first touch of a
// page that was placed elsewhere does, and watches some.
func (s *Sampler) scan(i int, now time.Duration) {
	b := &s.blocks[i]
	b.due = now + scanning<<b.idles
	b.idles = min(b.idles+1, maxIdles)
	for k := range Probes {
		if b.posted>>k&1 != 0 {
			continue
		}
		if f := s.find(i, k); f.page >= 0 && f.state == memory.Private {
			s.post(i)
			return
		}
	}
	if b.posted == 0 {
		b.idles = min(b.idles, 1) // it may come to life any time
	}
}

// post watches probes from afar, without an inquiry.
func (s *Sampler) post(i int) {
	l := inquiry{block: i}
	s.watch(&l, false)
}

// locate reads nodes and states of the pages of block i into homes and states.
func (s *Sampler) locate(i int) bool {
	b := &s.blocks[i]
	n := int(b.pages)
	if s.mem.Locate(s.homes[:n], first(i)) != nil {
		return false
	}
	s.inspect(i)
	for k := n; k < BlockPages; k++ {
		s.homes[k] = -1
	}
	return true
}

// inspect reads the states of the pages of block i into states.
func (s *Sampler) inspect(i int) {
	n := s.blocks[i].pages
	if s.mem.States(s.states[:n], first(i)) != nil {
		clear(s.states[:n]) // Private: nothing is guarded or copied that is known
	}
}

// usable says whether page k of the block just located can be probed.
func (s *Sampler) usable(k int) bool {
	return s.homes[k] >= 0 && s.states[k] != memory.Shared
}

// found is a page that can be a probe.
type found struct {
	page  int // of the block; -1 if there is none
	home  int // place of its node
	state memory.State
}

// find finds a page at random in stratum k of block i, a Private one if there is
// any: others cannot be watched.
func (s *Sampler) find(i, k int) found {
	f := found{page: -1, home: -1}
	n := min(int(s.blocks[i].pages)-k*stratum, stratum)
	if n <= 0 {
		return f
	}
	from := s.pick(n)
	for _, run := range [2]struct{ first, n int }{{from, 1}, {0, n}} {
		at := k*stratum + run.first
		homes, states := s.homes[at:at+run.n], s.states[at:at+run.n]
		if s.mem.Locate(homes, first(i)+memory.PPN(at)) != nil || s.mem.States(states, first(i)+memory.PPN(at)) != nil {
			return f
		}
		for o := range run.n {
			page := k*stratum + (from+o)%n
			if s.usable(page) && (f.page < 0 || s.states[page] == memory.Private) {
				f = found{page, s.place(s.homes[page]), s.states[page]}
				if f.state == memory.Private {
					return f
				}
			}
		}
	}
	return f
}

// choose fills in probes, one in each stratum, or in two of them.
func (s *Sampler) choose(l *inquiry) {
	skip := 0
	if l.narrow {
		skip = s.pick(stratum)
	}
	for k := range Probes {
		l.probe[k], l.home[k], l.armed[k] = -1, -1, 0
		if l.narrow && (k+skip)%(Probes/2) != 0 {
			continue
		}
		f := s.find(l.block, k)
		l.probe[k], l.home[k] = int16(f.page), int8(f.home)
	}
}

// watch watches new probes in the Views from afar, and at home too if asked to.
// What was touched before is forgotten.
func (s *Sampler) watch(l *inquiry, home bool) {
	b := &s.blocks[l.block]
	s.choose(l)
	// Probes of before would add up, and all fault on the day when another node
	// takes the block.
	for _, n := range s.nodes {
		_ = s.mem.Unwatch(first(l.block), int(b.pages), n)
	}
	b.clear()
	b.posted = 0
	for k, page := range l.probe {
		if page < 0 {
			continue
		}
		if !b.alive {
			b.alive = true
			s.alive++
		}
		if s.states[page] != memory.Private {
			continue
		}
		b.posted |= 1 << k
		b.homes[k] = l.home[k]
		for v, n := range s.nodes {
			if (home || v != int(l.home[k])) && s.mem.Watch(first(l.block)+memory.PPN(page), 1, n) == nil {
				l.armed[k] |= only(v)
			}
		}
	}
}

// notable says whether enough strata were touched from afar to ask further.
func (s *Sampler) notable(l *inquiry) bool {
	b := &s.blocks[l.block]
	var strata, afar int
	for k := range Probes {
		home, known := int(b.homes[k]), b.posted>>k&1 != 0
		if u := b.users(k); !known && u != 0 {
			f := s.find(l.block, k)
			home, known = f.home, f.page >= 0
		}
		if known {
			strata++
			if b.users(k)&^only(home) != 0 {
				afar++
			}
		}
	}
	// One alone is enough where there is no more than one.
	return afar >= b.trigger() || afar > 0 && afar == strata && b.posted != 0
}

// ask begins the look itself.
func (s *Sampler) ask(l *inquiry, now time.Duration) {
	s.blocks[l.block].phase = look
	l.start, l.last, l.count = now, now, 0
	s.watch(l, true)
	s.stats.Looks++
}

// advance sees how far an inquiry has come.
func (s *Sampler) advance(l *inquiry, now time.Duration) {
	b := &s.blocks[l.block]
	if b.phase != judged && b.copied.Load() > 0 && b.writes.Load()>>8 >= rush {
		s.unguard(l.block)
		s.end(l) // the next visit sees to it
		return
	}
	switch b.phase {
	case survey:
		if b.anyTouched() && s.notable(l) {
			s.ask(l, now)
		} else if now-l.start >= s.cfg.MaxWindow {
			s.stray(l, now)
		}
	case look:
		t0, t1 := b.touched[0].Load(), b.touched[1].Load()
		if s.quiet(l, bits.OnesCount64(t0)+bits.OnesCount64(t1), l.since, now) || s.plain(l, now) {
			l.span = l.last - l.since
			s.judge(l, now)
		}
	case guard, guardAll:
		s.guarded(l, now)
	case fine, fineHome, fineGuard:
		s.advanceFine(l, now)
	}
}

// quiet says whether an inquiry whose touches are now count in number has heard
// all that it will: for twice as long as it took since the first touch for the
// last one to come, there came no other.
func (s *Sampler) quiet(l *inquiry, count int, since, now time.Duration) bool {
	if count > l.count {
		l.count, l.last = count, now
	}
	if now-l.start >= s.cfg.MaxWindow {
		return true
	}
	// Who moved lately is asked with more patience: perhaps its users take turns.
	wait := max(s.cfg.Window<<min(s.blocks[l.block].moves, 4), 2*(l.last-since))
	if l.count < few {
		wait = max(wait, s.cfg.MaxWindow/2) // too few to know their pace
	}
	return now-max(l.last, l.start) >= wait
}

// plain says whether more touches would make no difference to a look: everyone
// was seen, or all that can come have come.
func (s *Sampler) plain(l *inquiry, now time.Duration) bool {
	b := &s.blocks[l.block]
	all := true
	for k := range l.probe {
		all = all && l.armed[k]&^b.users(k) == 0
	}
	return all || now-l.start >= s.cfg.Window && s.opinion(l).everyone
}

// opinion is what the probes of a look say together.
type opinion struct {
	touched int  // probes
	strata  int  // probes watched
	shared  int  // probes of several users
	local   int  // probes of no user but where they are
	lone    Mask // users of the other probes
	users   Mask
	use     [MaxNodes]uint16
	alone   [MaxNodes]uint16 // probes that no other node used
	copies  Mask
	stored  int // probes with stores that are sure
	uses    int // pairs of a probe and a user
	afar    int // those of them from afar
	// everyone is whether each node was seen to use most of the probes, and most
	// are shared.
	everyone bool
}

// apart is how many probes one remote node has for itself: what a closer look
// would find.
func (o *opinion) apart() int { return o.touched - o.shared - o.local }

// mostly is the place of the node that has two thirds of the touched probes for
// itself; -1 if none has.
func (o *opinion) mostly() int {
	for v, n := range o.alone {
		if n > 0 && int(n)*3 >= o.touched*2 {
			return v
		}
	}
	return -1
}

// rate notes which part of a block's uses is remote.
func (s *Sampler) rate(b *block, remote int) {
	s.remote += remote - int(b.remote)
	b.remote = uint8(remote)
}

func (s *Sampler) opinion(l *inquiry) (o opinion) {
	b := &s.blocks[l.block]
	stores := b.writes.Load()
	for k, page := range l.probe {
		if page < 0 {
			continue
		}
		if l.armed[k] != 0 {
			o.strata++
		}
		o.copies |= Mask(s.mem.Replicas(first(l.block) + memory.PPN(page)))
		u := b.users(k)
		if u == 0 {
			continue
		}
		o.touched++
		o.users |= u
		for v := range s.nodes {
			if u.Has(v) {
				o.use[v]++
			}
		}
		o.uses += u.Count()
		o.afar += (u &^ only(int(l.home[k]))).Count()
		switch {
		case u.Count() > 1:
			o.shared++
		case u == only(int(l.home[k])):
			o.local++
			fallthrough
		default:
			o.lone |= u
			o.alone[u.First()]++
		}
		if stores>>k&1 != 0 {
			o.stored++
		}
	}
	o.everyone = min(o.shared, int(slices.Min(o.use[:len(s.nodes)])))*8 >= o.strata*5 && o.strata > 0
	return o
}

// judge ends a look: with heat, or with a closer look.
func (s *Sampler) judge(l *inquiry, now time.Duration) {
	b := &s.blocks[l.block]
	l.said = s.opinion(l)
	o := &l.said
	if o.uses > 0 {
		s.rate(b, o.afar*allRemote/o.uses)
	}
	switch {
	case l.narrow && (o.shared > 0 || o.touched > 0 && s.cfg.GuardSole) && s.cfg.Guard:
		s.guardSome(l, now)
	case l.narrow && o.shared > 0:
		s.whole(l, Unknown)
	case l.narrow:
		s.widen(l, now)
	case o.touched < min(b.trigger(), o.strata) || o.local == o.touched:
		s.changed(l.block, now)
		s.stray(l, now)
	case o.shared == 0 && o.lone.Count() == 1 && (s.cfg.GuardSole || o.copies != 0):
		s.guardSome(l, now)
	case o.shared == 0 && o.lone.Count() == 1:
		s.changed(l.block, now)
		s.whole(l, Unknown)
	case s.coarse && o.copies == 0 && o.mostly() >= 0 && !s.cfg.GuardSole:
		// It moves whole or not at all; who has but little of it does not count.
		v := o.mostly()
		use := o.use[v]
		o.users, o.use = only(v), [MaxNodes]uint16{}
		o.use[v] = use
		s.whole(l, Unknown)
	case o.apart()*4 >= o.touched && !s.coarse && o.copies == 0 && !(o.shared*2 >= o.touched && (s.cfg.Guard || o.everyone)):
		s.beginFine(l, now)
	case o.shared*2 < o.touched:
		s.stray(l, now) // mostly local
	case s.cfg.Guard:
		s.guardSome(l, now)
	default:
		s.whole(l, Unknown)
	}
}

// widen goes on from two probes, which only say that all is as it was, to eight.
func (s *Sampler) widen(l *inquiry, now time.Duration) {
	l.narrow = false
	l.since = now
	s.ask(l, now)
}

// whole hands out one heat for all of the block.
func (s *Sampler) whole(l *inquiry, w Writes) {
	if !s.room() {
		return // asked again in the next Step
	}
	b := &s.blocks[l.block]
	o := &l.said
	b.stuck = o.shared > 0 || w == Written
	home := l.majority()
	if b.moves > 0 && o.users == only(int(b.from)) && l.since-b.moved < regret {
		b.turns = min(b.turns+turnDecay, maxTurns*turnDecay)
	}
	l.from = int8(home)
	s.heats = append(s.heats, Heat{
		First: first(l.block), Pages: int(b.pages), Home: s.node(home),
		Users: o.users, Use: o.use, Copies: o.copies, Writes: w, Moves: b.count(),
	})
	b.phase = judged
}

// room says whether a block's heat can be handed out, however many runs it has.
func (s *Sampler) room() bool { return cap(s.heats)-len(s.heats) >= BlockPages }

// majority is the place of the node that most probes are on; -1 if it is none of
// the guest's.
func (l *inquiry) majority() int {
	best, most := -1, 0
	for k, home := range l.home {
		n := 0
		for j, other := range l.home {
			if l.probe[j] >= 0 && other == home {
				n++
			}
		}
		if l.probe[k] >= 0 && n > most {
			best, most = int(home), n
		}
	}
	return best
}

// node is the node at a place.
func (s *Sampler) node(place int) numa.Node {
	if place < 0 {
		return -1
	}
	return s.nodes[place]
}

// stray ends an inquiry that found nothing that would pay.
func (s *Sampler) stray(l *inquiry, now time.Duration) {
	s.stats.Strays++
	i := l.block
	s.end(l)
	s.recount(i)
	s.hold(&s.blocks[i], now)
	s.post(i)
}

// hold leaves a block alone for a time.
func (s *Sampler) hold(b *block, now time.Duration) {
	s.stats.Holds++
	wait := s.cfg.MaxHold
	if b.level < 16 {
		wait = min(wait, s.cfg.Hold<<b.level)
		b.level++
	}
	b.due = now + wait
	b.held = true
	b.clear()
	b.posted = 0 // who knows what is still watched then
	b.idles = 0
}

// changed has the neighbours of a block that is no longer written by
// those who use it looked at soon: what was freed and used anew is seldom one block.
func (s *Sampler) changed(i int, now time.Duration) {
	if !s.blocks[i].stuck {
		return
	}
	s.blocks[i].stuck = false
	s.blocks[i].level = 0
	for k := max(0, i-8); k < min(len(s.blocks), i+9); k++ {
		if b := &s.blocks[k]; b.held && b.stuck {
			b.stuck, b.level, b.due = false, 0, now
		}
	}
}

// broken sees what stores have left of a block's copies.
func (s *Sampler) broken(i int, now time.Duration) {
	b := &s.blocks[i]
	stores := b.writes.Swap(0) >> 8
	had := b.copied.Load()
	copies, lost := s.recount(i)
	if !lost {
		return // the stores were to other pages
	}
	if left := b.copied.Load(); left == 0 || stores < rush && left*4 >= had*3 || !s.room() {
		s.hold(b, now)
		return
	}
	if l := s.begin(i, judged, now); l != nil {
		l.bad = true
		s.heats = append(s.heats, Heat{First: first(i), Pages: int(b.pages), Home: -1, Copies: copies, Writes: Broken, Moves: b.count()})
	}
}

// recount counts the pages of block i that have copies, and says in which Views,
// and whether stores have taken some since they were counted last.
func (s *Sampler) recount(i int) (copies Mask, lost bool) {
	b := &s.blocks[i]
	var n uint32
	s.inspect(i)
	for k, st := range s.states[:b.pages] {
		if st == memory.Replicated {
			n++
			copies |= Mask(s.mem.Replicas(first(i) + memory.PPN(k)))
		}
	}
	if lost = n < b.copied.Load(); lost {
		b.wrong = min(b.wrong+1, maxWrong)
	}
	b.copied.Store(n)
	return copies, lost
}

// dragged is how many pages of a block are on other nodes than before it was
// moved in parts.
func (s *Sampler) dragged(l *inquiry) (n int) {
	if !s.locate(l.block) {
		return 0
	}
	after := s.count()
	for v := range s.nodes {
		n += max(0, int(after[v])-int(l.before[v]))
	}
	return n
}

// count is how many pages of the block just located are on each node.
func (s *Sampler) count() (on [MaxNodes]uint16) {
	for _, n := range s.homes {
		if v := s.place(n); v >= 0 {
			on[v]++
		}
	}
	return on
}

// Outcome is what became of all the heat of a block.
type Outcome struct {
	Moved     int  // pages that changed their node
	Copied    int  // pages that got a copy, by node
	Collapsed int  // pages that lost their copies
	Bad       bool // there is more that could not be helped
}

// Finish ends the inquiry into the block of p, of which all heat has been seen to.
func (s *Sampler) Finish(p memory.PPN, o Outcome) {
	now := s.now()
	i := int(p / BlockPages)
	b := &s.blocks[i]
	l := s.inquiry(i)
	if l == nil || b.phase != judged {
		return
	}
	s.unguard(i) // what did not get copies after all
	bad, from := l.bad || o.Bad, l.from
	if l.parts && o.Moved > 0 && s.dragged(l) > o.Moved {
		s.coarse = true
		bad = true
	}
	s.end(l)
	if o.Moved > 0 {
		b.moves = min(b.moves+1, 100)
		b.from, b.moved = from, now
	}
	for v := range s.nodes {
		s.earn(v, float64(o.Moved+o.Copied)/2)
	}
	if o.Collapsed > 0 {
		b.copied.Store(0) // they were not lost, but given up
	}
	s.recount(i)
	if bad {
		if o.Moved+o.Copied == 0 {
			b.level++ // nothing at all came of it
		}
		s.hold(b, now)
		return
	}
	b.stuck = false
	s.rate(b, 0)
	b.idles = 0
	b.due = now + scanning
	s.post(i)
}
