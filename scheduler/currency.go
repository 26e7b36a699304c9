package scheduler

import (
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// Ledger says what tickets are worth (OSDI'94 §3.3, §4.3). A [Ticket] is an
// amount of a [Currency], held by a [Holder] or by another currency, which it
// backs: what a currency's backing is worth is divided among the tickets that it
// issued and that compete. So what is issued in a currency moves shares within
// it and nowhere else. The base currency's tickets are worth their amount.
//
// A ticket competes while its holder is active, or while a ticket of the currency
// that it backs competes.
type Ledger struct {
	base Currency
	// generation counts changes, so that values are computed once after each.
	generation uint64
}

// Currency is a unit of its own, a guest's or a group's.
type Currency struct {
	ledger  *Ledger
	name    string
	backing []*Ticket // what it is worth
	issued  int       // tickets
	active  uint64    // sum of those that compete

	known uint64 // generation of worth
	worth uint64 // in 1/One of base tickets
}

// Holder is what is served: it wants to be while it is active.
type Holder struct {
	ledger *Ledger
	name   string
	held   []*Ticket
	active bool
}

// Ticket is an amount of a currency. It has one owner: a holder or a currency.
type Ticket struct {
	amount uint64
	in     *Currency
	holder *Holder
	backs  *Currency
}

// NewLedger has nothing but a base currency.
func NewLedger() *Ledger {
	l := &Ledger{generation: 1}
	l.base = Currency{ledger: l, name: "base"}
	return l
}

// Generation changes whenever what any ticket is worth may have changed.
func (l *Ledger) Generation() uint64 { return l.generation }

// Base is the currency in which all others are worth something.
func (l *Ledger) Base() *Currency { return &l.base }

// NewCurrency makes one that is worth nothing yet.
func (l *Ledger) NewCurrency(name string) *Currency { return &Currency{ledger: l, name: name} }

// NewHolder makes one without tickets, not active.
func (l *Ledger) NewHolder(name string) *Holder { return &Holder{ledger: l, name: name} }

// Name is what the currency was made with.
func (c *Currency) Name() string { return c.name }

// Name is what the holder was made with.
func (h *Holder) Name() string { return h.name }

// Issue gives h a ticket of the currency.
func (c *Currency) Issue(h *Holder, amount int64) (*Ticket, error) {
	if err := c.check(h.ledger, amount); err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	t := &Ticket{amount: uint64(amount), in: c, holder: h}
	c.issued++
	h.take(t)
	return t, nil
}

// Back makes a ticket of the currency that backs another one, which may not back
// it in turn, directly or not.
func (c *Currency) Back(other *Currency, amount int64) (*Ticket, error) {
	if err := c.check(other.ledger, amount); err != nil {
		return nil, fmt.Errorf("currency %s: %w", other.name, err)
	}
	if other == &c.ledger.base {
		return nil, errors.New("the base currency is backed by nothing")
	}
	if c.restsOn(other, map[*Currency]bool{}) {
		return nil, fmt.Errorf("currency %s cannot be backed by %s, which rests on it itself: currencies may not form a cycle", other.name, c.name)
	}
	t := &Ticket{amount: uint64(amount), in: c, backs: other}
	c.issued++
	other.backing = append(other.backing, t)
	if other.active > 0 {
		t.compete(true)
	}
	c.ledger.generation++
	return t, nil
}

func (c *Currency) check(l *Ledger, amount int64) error {
	if c.ledger != l {
		return fmt.Errorf("currency %s is of another ledger", c.name)
	}
	return CheckTickets(amount)
}

// restsOn says whether c is other, or is backed by it directly or not.
func (c *Currency) restsOn(other *Currency, seen map[*Currency]bool) bool {
	if seen[c] {
		return false
	}
	seen[c] = true
	return c == other || slices.ContainsFunc(c.backing, func(t *Ticket) bool { return t.in.restsOn(other, seen) })
}

// Close gives up a currency that has issued nothing any more, and its backing.
func (c *Currency) Close() error {
	if c.issued > 0 {
		return fmt.Errorf("currency %s: %d of its tickets are held", c.name, c.issued)
	}
	for len(c.backing) > 0 {
		c.backing[0].Destroy()
	}
	return nil
}

// Activate has the holder's tickets compete, or not.
func (h *Holder) Activate(active bool) {
	if h.active == active {
		return
	}
	h.active = active
	for _, t := range h.held {
		t.compete(active)
	}
	h.ledger.generation++
}

// Active says whether the holder competes.
func (h *Holder) Active() bool { return h.active }

// Close destroys the holder's tickets.
func (h *Holder) Close() {
	h.Activate(false)
	for len(h.held) > 0 {
		h.held[0].Destroy()
	}
}

func (h *Holder) take(t *Ticket) {
	t.holder = h
	h.held = append(h.held, t)
	if h.active {
		t.compete(true)
	}
	h.ledger.generation++
}

// compete adds a ticket to what competes in its currency, or takes it out; the
// backing follows when it is the first or the last.
func (t *Ticket) compete(yes bool) {
	c := t.in
	first := c.active == 0
	if yes {
		c.active += t.amount
	} else {
		c.active -= t.amount
	}
	if first || c.active == 0 {
		for _, b := range c.backing {
			b.compete(yes)
		}
	}
}

func (t *Ticket) competes() bool {
	if t.holder != nil {
		return t.holder.active
	}
	return t.backs.active > 0
}

// Amount is the ticket's amount, in its currency.
func (t *Ticket) Amount() int64 { return int64(t.amount) }

// Set changes the ticket's amount: inflation or deflation.
func (t *Ticket) Set(amount int64) error {
	if err := CheckTickets(amount); err != nil {
		return err
	}
	if t.competes() {
		t.in.active += uint64(amount) - t.amount
	}
	t.amount = uint64(amount)
	t.in.ledger.generation++
	return nil
}

// Lend transfers the ticket to another holder, as one that waits for another
// does (OSDI'94 §3.1). Lending it back ends that.
func (t *Ticket) Lend(to *Holder) error {
	if t.holder == nil {
		return errors.New("a ticket that backs a currency cannot be lent")
	}
	if to.ledger != t.in.ledger {
		return fmt.Errorf("%s is of another ledger", to.name)
	}
	t.leave()
	to.take(t)
	return nil
}

// leave takes the ticket from its owner.
func (t *Ticket) leave() {
	if t.competes() {
		t.compete(false)
	}
	var all *[]*Ticket
	if t.holder != nil {
		all = &t.holder.held
	} else {
		all = &t.backs.backing
	}
	i := slices.Index(*all, t)
	*all = slices.Delete(*all, i, i+1)
	t.in.ledger.generation++
}

// Destroy ends a ticket. It may not be used again.
func (t *Ticket) Destroy() {
	t.leave()
	t.in.issued--
}

// Weight is what the holder's tickets are worth, or would be if it were active,
// in 1/One of a base ticket and rounded down in each currency on the way; a
// [Client]'s weight. It is 0 where no path leads to the base currency. It does not
// allocate.
func (h *Holder) Weight() uint64 {
	var sum uint64
	for _, t := range h.held {
		sum += t.worth()
	}
	return sum
}

func (t *Ticket) worth() uint64 {
	if t.in == &t.in.ledger.base {
		return t.amount * One
	}
	active := t.in.active
	if !t.competes() {
		active += t.amount
	}
	q, _ := mulDiv(t.in.value(), t.amount, active)
	return q
}

// value is what the currency's backing is worth.
func (c *Currency) value() uint64 {
	if c.known != c.ledger.generation {
		c.worth = 0
		for _, b := range c.backing {
			c.worth += b.worth()
		}
		c.known = c.ledger.generation
	}
	return c.worth
}

// Value is Weight without rounding, in base tickets.
func (h *Holder) Value() *big.Rat {
	known := map[*Currency]*big.Rat{}
	sum := new(big.Rat)
	for _, t := range h.held {
		sum.Add(sum, t.value(known))
	}
	return sum
}

func (t *Ticket) value(known map[*Currency]*big.Rat) *big.Rat {
	amount := new(big.Rat).SetInt64(int64(t.amount))
	if t.in == &t.in.ledger.base {
		return amount
	}
	all, ok := known[t.in]
	if !ok {
		all = new(big.Rat)
		for _, b := range t.in.backing {
			all.Add(all, b.value(known))
		}
		known[t.in] = all
	}
	active := t.in.active
	if !t.competes() {
		active += t.amount
	}
	amount.Quo(amount, new(big.Rat).SetInt64(int64(active)))
	return amount.Mul(amount, all)
}
