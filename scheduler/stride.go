package scheduler

// passScale is how far the virtual time of weight 1 goes in one unit of use.
// With MaxWeight a microsecond still is one step, and with MinWeight the longest
// use is 2^53. Passes are compared by their difference, so they may wrap.
const passScale = 1 << 30

// virtual is a virtual time: use divided by weight. What the division leaves over
// is kept, so that errors do not add up.
type virtual struct {
	at    int64
	carry uint64 // in weight-ths
}

func (v *virtual) advance(used, weight uint64) {
	q, r := mulDiv(passScale, used, weight)
	if v.carry += r; v.carry >= weight {
		v.carry -= weight
		q++
	}
	v.at += int64(q)
}

// rescale is to be called when the weight changes.
func (v *virtual) rescale(from, to uint64) {
	if v.carry > 0 {
		v.carry, _ = mulDiv(v.carry, to, from)
	}
}

// latest is the later of two virtual times.
func latest(a, b int64) int64 {
	if a-b > 0 {
		return a
	}
	return b
}

// Stride serves who is furthest behind in virtual time (TM-528 §3): of any two
// clients that want to be served all the time, neither is ever more than one
// quantum off its share of what the two had. Next and Done take O(log n).
type Stride struct {
	quantum uint64
	total   uint64    // weights of those who take part
	clients int       // and their number
	now     virtual   // where one would stand who always had just its share
	queue   []*Client // a heap of those who wait
	turn    uint64

	spread bool   // see NewSpreadStride
	fresh  uint32 // clients that joined for the first time
}

// NewStride makes a Policy without clients, for quanta of so much use. A client
// that joins for the first time stands as if it had just had a quantum.
func NewStride(quantum int64) *Stride {
	return &Stride{quantum: max(boundUse(quantum), 1)}
}

// NewSpreadStride is NewStride, but clients that join for the first time begin
// spread over their first quantum, each elsewhere. No pair is further apart for
// that, and of many clients with the same tickets not all have their turns at
// once: 101 clients at 100:1:…:1 are within 2 quanta of their shares, not 50.
func NewSpreadStride(quantum int64) *Stride {
	s := NewStride(quantum)
	s.spread = true
	return s
}

// Len implements Policy.
func (s *Stride) Len() int { return s.clients }

// Join implements Policy.
func (s *Stride) Join(c *Client) {
	if c.takesPart() {
		return
	}
	first := s.spread && !c.known
	c.pass.at = c.arrival(s.now.at, s.quantum)
	if first {
		// Multiples of the golden ratio are as far from each other as can be.
		const golden = 2654435769 // of 1<<32
		s.fresh += golden
		c.pass.at = s.now.at + mulDivSigned(c.stride(s.quantum), uint64(s.fresh), 1<<32)
	}
	c.state, c.known = waiting, true
	s.weigh(s.total + c.weight)
	s.clients++
	s.push(c)
}

// arrival is the pass with which c would join at virtual time now.
func (c *Client) arrival(now int64, quantum uint64) int64 {
	switch {
	case !c.known:
		return now + c.stride(quantum)
	case c.state == blocked:
		return latest(c.pass.at, now+min(c.remain, 0))
	}
	return now + c.remain
}

func (s *Stride) weigh(total uint64) {
	s.now.rescale(s.total, total)
	s.total = total
}

// Leave implements Policy.
func (s *Stride) Leave(c *Client) { s.part(c, away) }

// Block implements Policy.
func (s *Stride) Block(c *Client) { s.part(c, blocked) }

func (s *Stride) part(c *Client, how state) {
	if !c.takesPart() {
		return
	}
	if c.state == waiting {
		s.remove(c.at)
	}
	c.state = how
	c.remain = c.pass.at - s.now.at
	s.weigh(s.total - c.weight)
	s.clients--
}

// SetWeight implements Policy.
func (s *Stride) SetWeight(c *Client, weight uint64) {
	weight = bound(weight)
	was := c.weight
	if weight == was {
		return
	}
	c.weight, c.draws = weight, weight
	c.pass.rescale(was, weight)
	if !c.takesPart() {
		owing := c.pass.at - s.now.at
		c.remain = mulDivSigned(c.remain, was, weight)
		c.pass.at = s.now.at + mulDivSigned(owing, was, weight)
		return
	}
	c.pass.at = s.now.at + mulDivSigned(c.pass.at-s.now.at, was, weight)
	s.weigh(s.total - was + weight)
	if c.state == waiting {
		s.fix(c.at)
	}
}

// Next implements Policy.
func (s *Stride) Next() *Client {
	if len(s.queue) == 0 {
		return nil
	}
	c := s.queue[0]
	s.remove(0)
	c.state = running
	return c
}

// Take implements Policy.
func (s *Stride) Take(c *Client) bool {
	if c.state != waiting {
		return false
	}
	s.remove(c.at)
	c.state = running
	return true
}

// Done implements Policy.
func (s *Stride) Done(c *Client, used int64) {
	if c.state != running {
		return
	}
	s.charge(c, used)
	c.state = waiting
	s.push(c)
}

// Forgo implements Policy. What lapses counts as used, for all: who had it instead
// would else be in debt for it to nobody, until c uses it after all.
func (s *Stride) Forgo(c *Client) {
	lapsed := s.now.at - c.stride(s.quantum) - c.pass.at
	if !c.takesPart() || lapsed <= 0 {
		return
	}
	c.pass.at += lapsed
	s.now.at += mulDivSigned(lapsed, c.weight, s.total)
	if c.state == waiting {
		s.fix(c.at)
	}
}

// stride is what one quantum adds to the client's pass.
func (c *Client) stride(quantum uint64) int64 {
	q, _ := mulDiv(passScale, quantum, c.weight)
	return int64(q)
}

// Return implements Policy.
func (s *Stride) Return(c *Client) {
	if c.state == running {
		c.state = waiting
		s.insert(c)
	}
}

// Charge implements Policy.
func (s *Stride) Charge(c *Client, used int64) {
	s.charge(c, used)
	if c.state == waiting {
		s.fix(c.at)
	}
}

// charge lets time go by for c and for all.
func (s *Stride) charge(c *Client, used int64) {
	u := boundUse(used)
	if c.takesPart() {
		c.pass.advance(u, c.weight)
		s.now.advance(u, s.total)
		return
	}
	c.pass.at = c.arrival(s.now.at, s.quantum)
	c.known = true
	owed := s.now.at - c.pass.at
	c.pass.advance(u, c.weight)
	if owed > 0 {
		// That it has had now, and the others went without as if it took part. What
		// it has beyond it is in debt for to nobody, as that is forgotten.
		owed -= max(0, s.now.at-c.pass.at)
		s.now.at += mulDivSigned(owed, c.weight, s.total+c.weight)
	}
	c.remain = c.pass.at - s.now.at
}

// Before implements Policy.
func (s *Stride) Before(c *Client) bool {
	return !c.takesPart() && (len(s.queue) == 0 || c.arrival(s.now.at, s.quantum)-s.queue[0].pass.at < 0)
}

// The heap. Of equal passes the one that was queued first is first.

func (s *Stride) less(a, b *Client) bool {
	if d := a.pass.at - b.pass.at; d != 0 {
		return d < 0
	}
	return a.turn < b.turn
}

func (s *Stride) push(c *Client) {
	s.turn++
	c.turn = s.turn
	s.insert(c)
}

func (s *Stride) insert(c *Client) {
	c.at = len(s.queue)
	s.queue = append(s.queue, c)
	s.up(c.at)
}

func (s *Stride) remove(i int) {
	last := len(s.queue) - 1
	s.queue[i].at = -1
	if i != last {
		s.place(i, s.queue[last])
	}
	s.queue[last] = nil
	s.queue = s.queue[:last]
	if i != last {
		s.fix(i)
	}
}

func (s *Stride) place(i int, c *Client) {
	s.queue[i] = c
	c.at = i
}

func (s *Stride) fix(i int) {
	if !s.down(i) {
		s.up(i)
	}
}

func (s *Stride) up(i int) {
	c := s.queue[i]
	for i > 0 {
		parent := (i - 1) / 2
		if !s.less(c, s.queue[parent]) {
			break
		}
		s.place(i, s.queue[parent])
		i = parent
	}
	s.place(i, c)
}

func (s *Stride) down(i int) (moved bool) {
	c := s.queue[i]
	for {
		child := 2*i + 1
		if child >= len(s.queue) {
			break
		}
		if child+1 < len(s.queue) && s.less(s.queue[child+1], s.queue[child]) {
			child++
		}
		if !s.less(s.queue[child], c) {
			break
		}
		s.place(i, s.queue[child])
		i, moved = child, true
	}
	s.place(i, c)
	return moved
}
