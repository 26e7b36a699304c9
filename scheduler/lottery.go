package scheduler

import (
	"math/bits"
	"math/rand/v2"
)

// Lottery draws who is next: each client as likely as its weight says (OSDI'94
// §2). After n draws a client that has the part p of all weights has had n·p of
// them, give or take √(n·p·(1-p)).
//
// A client that has used the part f of a quantum since it was last drawn holds 1/f of
// its weight until it is drawn again: its compensation tickets (§3.4). It cannot gain
// by them. Here f counts what it had without being drawn too, as when the one that was
// drawn had halted, and may be more than 1. Nor is one drawn while another runs, out
// of those that are left, drawn fairly: what it then uses counts for when it next is.
// So the time between two draws of a client is, on average, what it used divided by its
// weight, and its part of all use is its weight's, whatever becomes of the quanta.
//
// With several CPUs a client that should have nearly a whole CPU gets less than that:
// even a client that is owed much is not always drawn.
//
// NewLottery's draws take O(log n) with a tree of partial sums, NewListLottery's
// look through a list, which is short when heavy clients are at its head.
type Lottery struct {
	quantum uint64
	rng     *rand.Rand
	draw    drawer
	clients int
	running int // of them, those that Next or Take took out
}

// drawer holds those who wait.
type drawer interface {
	add(c *Client)
	remove(c *Client)
	reweigh(c *Client, draws uint64)
	total() uint64
	// find is whose the ticket is: of 0 to total-1.
	find(ticket uint64) *Client
}

// maxCompensation bounds what a client that uses hardly anything is drawn with, and
// maxDebit by how many quanta one that had many is held to have had: it may have had
// them because nobody else wanted any, and is not to pay for that for long.
const (
	maxCompensation = 1 << 10
	maxDebit        = 16
)

// NewLottery makes a Policy without clients, for quanta of so much use. The same
// seed gives the same draws.
func NewLottery(quantum int64, seed uint64) *Lottery {
	return &Lottery{quantum: max(boundUse(quantum), 1), rng: newRand(seed), draw: &sums{}}
}

// NewListLottery is NewLottery with a list.
func NewListLottery(quantum int64, seed uint64) *Lottery {
	return &Lottery{quantum: max(boundUse(quantum), 1), rng: newRand(seed), draw: &list{}}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// Len implements Policy.
func (l *Lottery) Len() int { return l.clients }

// Join implements Policy.
func (l *Lottery) Join(c *Client) {
	if c.takesPart() {
		return
	}
	c.state = waiting
	l.clients++
	l.draw.add(c)
}

// Leave implements Policy. A lottery owes nothing: each draw is a new one.
func (l *Lottery) Leave(c *Client) { l.part(c, away) }

// Block implements Policy.
func (l *Lottery) Block(c *Client) { l.part(c, blocked) }

func (l *Lottery) part(c *Client, how state) {
	if !c.takesPart() {
		return
	}
	if c.state == waiting {
		l.draw.remove(c)
	} else {
		l.settle(c)
		l.running--
	}
	c.state = how
	l.clients--
}

// SetWeight implements Policy. A compensation stays what it is in time.
func (l *Lottery) SetWeight(c *Client, weight uint64) {
	weight = bound(weight)
	draws, _ := mulDiv(c.draws, weight, c.weight)
	c.weight = weight
	l.reweigh(c, draws)
}

func (l *Lottery) reweigh(c *Client, draws uint64) {
	if c.state == waiting {
		l.draw.reweigh(c, draws)
	}
	c.draws = draws
}

// Next implements Policy.
func (l *Lottery) Next() *Client {
	total := l.draw.total()
	if total == 0 {
		return nil
	}
	c := l.draw.find(l.rng.Uint64N(total))
	l.takeOut(c, l.running == 0)
	return c
}

// Take implements Policy. Who is taken was not drawn.
func (l *Lottery) Take(c *Client) bool {
	if c.state != waiting {
		return false
	}
	l.takeOut(c, false)
	return true
}

func (l *Lottery) takeOut(c *Client, drawn bool) {
	l.draw.remove(c)
	c.state, c.drawn = running, drawn
	l.running++
}

// Done implements Policy.
func (l *Lottery) Done(c *Client, used int64) {
	if c.state != running {
		return
	}
	l.Charge(c, used)
	l.settle(c)
	l.Return(c)
}

// Forgo implements Policy. Nothing is owed.
func (l *Lottery) Forgo(*Client) {}

// Return implements Policy.
func (l *Lottery) Return(c *Client) {
	if c.state == running {
		c.state = waiting
		l.running--
		l.draw.add(c)
	}
}

// Charge implements Policy. It counts when c is next drawn, and has had its quantum.
func (l *Lottery) Charge(c *Client, used int64) {
	c.had = min(c.had+boundUse(used), maxDebit*l.quantum)
}

// settle ends the quantum of a client that runs: if it was drawn, its compensation is
// that for what it has had since the last time.
func (l *Lottery) settle(c *Client) {
	if !c.drawn {
		return
	}
	had := max(c.had, l.quantum/maxCompensation, 1)
	c.draws, _ = mulDiv(c.weight, l.quantum, had)
	c.draws = max(c.draws, 1)
	c.had, c.drawn = 0, false
}

// Before implements Policy: who does not take part may be drawn like any other.
func (l *Lottery) Before(c *Client) bool { return !c.takesPart() }

// list is a drawer for few clients. Who is drawn goes to its head, so that those
// drawn often are found soon (OSDI'94 §4.2).
type list struct {
	clients []*Client
	sum     uint64
}

func (l *list) total() uint64 { return l.sum }

func (l *list) add(c *Client) {
	l.clients = append(l.clients, nil)
	copy(l.clients[1:], l.clients)
	l.clients[0] = c
	l.sum += c.draws
}

func (l *list) remove(c *Client) {
	for i, o := range l.clients {
		if o == c {
			copy(l.clients[i:], l.clients[i+1:])
			l.clients[len(l.clients)-1] = nil
			l.clients = l.clients[:len(l.clients)-1]
			l.sum -= c.draws
			return
		}
	}
}

func (l *list) reweigh(c *Client, draws uint64) { l.sum += draws - c.draws }

func (l *list) find(ticket uint64) *Client {
	for _, c := range l.clients {
		if ticket < c.draws {
			return c
		}
		ticket -= c.draws
	}
	return nil
}

// sums is a drawer for many: a complete binary tree in which every node holds
// the sum of what is below it. Node i has the children 2i and 2i+1; the leaves
// are the upper half.
type sums struct {
	node  []uint64
	leaf  []*Client // leaf[i] is node len(leaf)+i
	slots slots
}

func (s *sums) total() uint64 {
	if len(s.leaf) == 0 {
		return 0
	}
	return s.node[1]
}

func (s *sums) add(c *Client) {
	i, ok := s.slots.take(len(s.leaf))
	if !ok {
		s.grow()
		i, _ = s.slots.take(len(s.leaf))
	}
	s.leaf[i] = c
	c.at = i
	s.change(i, c.draws)
}

func (s *sums) remove(c *Client) {
	s.change(c.at, -c.draws)
	s.leaf[c.at] = nil
	s.slots.give(c.at)
	c.at = -1
}

func (s *sums) reweigh(c *Client, draws uint64) { s.change(c.at, draws-c.draws) }

// change adds to a leaf; differences below zero wrap, and come out right.
func (s *sums) change(leaf int, by uint64) {
	for i := len(s.leaf) + leaf; i > 0; i /= 2 {
		s.node[i] += by
	}
}

func (s *sums) find(ticket uint64) *Client {
	i := 1
	for i < len(s.leaf) {
		i *= 2
		// Which way it goes cannot be foreseen, so it is computed: a branch
		// would be mispredicted every other time.
		rest, left := bits.Sub64(ticket, s.node[i], 0)
		right := 1 - left
		i += int(right)
		ticket = rest&-right | ticket&-left
	}
	return s.leaf[i-len(s.leaf)]
}

// grow doubles the number of leaves.
func (s *sums) grow() {
	leaves := max(2*len(s.leaf), 8)
	old := s.leaf
	s.node = make([]uint64, 2*leaves)
	s.leaf = make([]*Client, leaves)
	copy(s.leaf, old)
	for i, c := range s.leaf {
		if c != nil {
			s.node[leaves+i] = c.draws
		}
	}
	for i := leaves - 1; i > 0; i-- {
		s.node[i] = s.node[2*i] + s.node[2*i+1]
	}
}

// slots hands out the numbers of leaves.
type slots struct {
	used int   // those below have been handed out
	free []int // and of them, these were given back
}

func (s *slots) take(leaves int) (int, bool) {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i, true
	}
	if s.used == leaves {
		return 0, false
	}
	s.used++
	return s.used - 1, true
}

func (s *slots) give(i int) { s.free = append(s.free, i) }
