package scheduler

import "math/bits"

// Hierarchy is stride scheduling in a binary tree (TM-528 §4): an inner node has
// the weight of all that is below it and chooses between its two children. A
// heavy client's turns are spread evenly among those of many light ones: no
// client is ever more than about log₂ n quanta off its share, where Stride lets
// it be n/2. Next and Done take O(log n).
//
// It is for one CPU: with several, those who run are no longer there to be
// chosen, and a light sibling takes a heavy client's turn.
type Hierarchy struct {
	start   uint64 // use with which a client begins
	clients int
	node    []branch // node 1 is the root; node i has the children 2i and 2i+1
	leaf    []*Client
	slots   slots
}

// branch is a node of the tree.
type branch struct {
	weight uint64  // of the clients below that take part
	pass   virtual // beside its sibling's
	ahead  int64   // while the weight is 0: the use by which it was ahead of its share
	now    virtual // of the contest between its children
	ready  int     // clients below that wait
}

// NewHierarchy makes a Policy without clients, for quanta of so much use. A client
// that joins for the first time stands as if it had had half a quantum, so that
// clients are as far ahead of their shares as behind: TM-528's whole quantum has
// all of them behind, and adds half a quantum to the greatest error.
func NewHierarchy(quantum int64) *Hierarchy {
	h := &Hierarchy{start: max(boundUse(quantum)/2, 1)}
	h.grow()
	return h
}

// Len implements Policy.
func (h *Hierarchy) Len() int { return h.clients }

func (h *Hierarchy) root() *branch { return &h.node[1] }

// Join implements Policy.
func (h *Hierarchy) Join(c *Client) {
	if c.takesPart() {
		return
	}
	slot, ok := h.slots.take(len(h.leaf))
	if !ok {
		h.grow()
		slot, _ = h.slots.take(len(h.leaf))
	}
	now := h.root().now.at
	owing := c.arrival(now, h.start) - now
	i := h.balanced(slot)
	h.leaf[i] = c
	c.at = len(h.leaf) + i
	h.weigh(c.at, c.weight)
	h.node[c.at].pass = virtual{at: h.node[c.at/2].now.at + owing}
	c.state, c.known = waiting, true
	h.clients++
	h.ready(c.at, 1)
}

// Leave implements Policy.
func (h *Hierarchy) Leave(c *Client) { h.part(c, away) }

// Block implements Policy.
func (h *Hierarchy) Block(c *Client) { h.part(c, blocked) }

func (h *Hierarchy) part(c *Client, how state) {
	if !c.takesPart() {
		return
	}
	if c.state == waiting {
		h.ready(c.at, -1)
	}
	c.state = how
	c.remain = h.node[c.at].pass.at - h.node[c.at/2].now.at
	c.pass = virtual{at: h.root().now.at + c.remain}
	h.weigh(c.at, 0)
	h.leaf[c.at-len(h.leaf)] = nil
	h.slots.give(h.balanced(c.at - len(h.leaf)))
	c.at = -1
	h.clients--
}

// SetWeight implements Policy.
func (h *Hierarchy) SetWeight(c *Client, weight uint64) {
	weight = bound(weight)
	was := c.weight
	c.weight, c.draws = weight, weight
	switch {
	case weight == was:
	case c.takesPart():
		h.weigh(c.at, weight)
	default:
		now := h.root().now.at
		c.remain = mulDivSigned(c.remain, was, weight)
		c.pass.at = now + mulDivSigned(c.pass.at-now, was, weight)
	}
}

// Next implements Policy.
func (h *Hierarchy) Next() *Client {
	if h.root().ready == 0 {
		return nil
	}
	i := 1
	for i < len(h.leaf) {
		i *= 2
		a, b := &h.node[i], &h.node[i+1]
		if a.ready == 0 || b.ready > 0 && b.before(a) {
			i++
		}
	}
	c := h.leaf[i-len(h.leaf)]
	c.state = running
	h.ready(i, -1)
	return c
}

// Take implements Policy.
func (h *Hierarchy) Take(c *Client) bool {
	if c.state != waiting {
		return false
	}
	c.state = running
	h.ready(c.at, -1)
	return true
}

// Done implements Policy.
func (h *Hierarchy) Done(c *Client, used int64) {
	if c.state != running {
		return
	}
	h.Charge(c, used)
	h.Return(c)
}

// Forgo implements Policy.
func (h *Hierarchy) Forgo(c *Client) {
	if c.takesPart() {
		n := &h.node[c.at]
		n.pass.at = latest(n.pass.at, h.node[c.at/2].now.at-c.stride(2*h.start))
	}
}

// Return implements Policy.
func (h *Hierarchy) Return(c *Client) {
	if c.state == running {
		c.state = waiting
		h.ready(c.at, 1)
	}
}

// Charge implements Policy.
func (h *Hierarchy) Charge(c *Client, used int64) {
	u := boundUse(used)
	if !c.takesPart() {
		now := h.root().now.at
		c.pass.at = c.arrival(now, h.start)
		c.known = true
		c.pass.advance(u, c.weight)
		c.remain = c.pass.at - now
		return
	}
	for i := c.at; i > 0; i /= 2 {
		n := &h.node[i]
		n.pass.advance(u, n.weight)
		n.now.advance(u, n.weight)
	}
}

// Before implements Policy: a client would if it is owed something.
func (h *Hierarchy) Before(c *Client) bool {
	now := h.root().now.at
	return !c.takesPart() && (h.root().ready == 0 || c.arrival(now, h.start)-now <= 0)
}

// before chooses between siblings; at equal passes the lighter one, which has its
// turn less often.
func (b *branch) before(o *branch) bool {
	d := b.pass.at - o.pass.at
	return d < 0 || d == 0 && b.weight < o.weight
}

func (h *Hierarchy) ready(i, by int) {
	for ; i > 0; i /= 2 {
		h.node[i].ready += by
	}
}

// weigh sets the weight of a leaf. Along the path to the root what each node is
// ahead or behind is kept as time.
func (h *Hierarchy) weigh(leaf int, weight uint64) {
	change := weight - h.node[leaf].weight
	for i := leaf; i > 0; i /= 2 {
		n := &h.node[i]
		was := n.weight
		n.weight += change
		n.now.rescale(was, n.weight)
		n.pass.rescale(was, n.weight)
		if i == 1 {
			return
		}
		now := h.node[i/2].now.at
		switch {
		case was == 0:
			n.pass.at = now + mulDivSigned(n.ahead, passScale, n.weight)
		case n.weight == 0:
			n.ahead = mulDivSigned(n.pass.at-now, was, passScale)
		default:
			n.pass.at = now + mulDivSigned(n.pass.at-now, was, n.weight)
		}
	}
}

// balanced is the leaf of a slot, and the slot of a leaf: the number with its
// bits reversed. Slots that are filled one after another fill the tree evenly,
// and a leaf of the tree is the left child of its old place when the tree grows.
func (h *Hierarchy) balanced(i int) int {
	depth := bits.Len(uint(len(h.leaf))) - 1
	return int(bits.Reverse64(uint64(i)) >> (64 - depth))
}

// grow gives each leaf two children, of which it becomes the left one.
func (h *Hierarchy) grow() {
	leaves := max(2*len(h.leaf), 2)
	old := h.leaf
	h.leaf = make([]*Client, leaves)
	node := make([]branch, 2*leaves)
	copy(node, h.node)
	for i := max(len(h.node), 1); i < len(node); i++ {
		node[i].ahead = int64(h.start)
	}
	h.node = node
	for i, c := range old {
		if c == nil {
			continue
		}
		h.leaf[2*i] = c
		c.at *= 2
		h.node[c.at] = h.node[c.at/2]
		h.node[c.at].pass = h.node[c.at].now
	}
}
