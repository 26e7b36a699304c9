// Package scheduler divides a resource by tickets: who holds a tenth of the
// tickets that compete gets a tenth of the time.
//
//   - [Ledger] says what a client's tickets are worth: currencies, transfers,
//     inflation.
//   - [Lottery] draws the next client at random, [Stride] the one whose virtual
//     time is least, [Hierarchy] likewise in a tree, which spreads a heavy client
//     evenly among many light ones. All three are a [Policy].
//   - [Feasible] is for several CPUs, on which no client can use more than one.
//   - [Limit] caps a client whatever its tickets.
//   - [Relieve] is for several sets of CPUs: who had best move to another.
//
// Time here is what the caller says it is: the package has no clock, no threads
// and no randomness but a seeded one, and computes in integers, so that all it
// does can be written as a table. Units are nanoseconds of use, but any will do.
//
// Sources: Waldspurger and Weihl, "Lottery Scheduling" (OSDI'94), and "Stride
// Scheduling" (MIT/LCS/TM-528, 1995); Chandra et al., "Surplus Fair Scheduling"
// (OSDI'00) for several CPUs.
//
// Not done here: threads, CPUs and clocks (package scheduler/host), and disks
// and networks, which may divide their bytes by the same means.
//
// Nothing here locks. A Policy, its Clients and a Ledger belong to one goroutine
// at a time.
package scheduler

import (
	"fmt"
	"math/bits"
)

const (
	// MaxTickets is the most that one ticket can be for.
	MaxTickets = 1 << 20
	// One is the weight of one ticket of the base currency.
	One = 1 << 20
	// MinWeight and MaxWeight bound a client's weight: a thousandth of a
	// ticket, and what a thousand clients may have without their sum
	// overflowing.
	MinWeight = One / 1024
	MaxWeight = MaxTickets * One
	// MaxUse is the most that can be charged at once; more counts as so much.
	MaxUse = 1 << 33
)

// CheckTickets refuses a number of tickets that cannot be had.
func CheckTickets(n int64) error {
	switch {
	case n == 0:
		return fmt.Errorf("0 tickets would never be served: use 1 to %d", MaxTickets)
	case n < 0:
		return fmt.Errorf("%d tickets: use 1 to %d", n, MaxTickets)
	case n > MaxTickets:
		return fmt.Errorf("%d tickets: at most %d; only the ratio to others' counts", n, MaxTickets)
	}
	return nil
}

// Policy decides who is next. A Client takes part from Join to Leave or Block.
// Next takes it out of the queue, and Done puts it back.
type Policy interface {
	// Join has c take part. It is owed, or owes, what it did when it left.
	Join(c *Client)
	// Leave ends that. It stands still for c until it joins again (TM-528 §3.2).
	Leave(c *Client)
	// Block is a Leave of one that has nothing to do: what it has had too much
	// is forgotten as time goes on, and what it is owed is kept.
	Block(c *Client)
	// SetWeight changes c's weight, whether it takes part or not. What it is
	// owed is kept as time.
	SetWeight(c *Client, weight uint64)
	// Next is who is to run, or nil. It is not chosen again before Done.
	Next() *Client
	// Take is a Next that chooses c whoever's turn it is, or false if c does not
	// wait. What it uses it has used up of its next turns.
	Take(c *Client) bool
	// Done says that c, which Next chose, has used so much and wants more.
	Done(c *Client, used int64)
	// Forgo says that c left unused some of what it could have had: what it is
	// owed beyond a quantum lapses.
	Forgo(c *Client)
	// Return puts back c, which Next chose, as if it had not been.
	Return(c *Client)
	// Charge says that c has used so much without having been chosen.
	Charge(c *Client, used int64)
	// Before says whether c, which does not take part, would be served before
	// all others if it joined now.
	Before(c *Client) bool
	// Len is the number of those who take part.
	Len() int
}

// Client is one who wants to be served. It belongs to one Policy at a time.
type Client struct {
	// ID is the caller's own.
	ID int

	weight uint64
	state  state
	known  bool // has taken part before
	at     int  // place in the Policy's queue or tree; -1 for none

	// Of strides:
	pass   virtual // while it takes part, and while it is blocked
	remain int64   // while it does not take part: pass less the virtual time then
	turn   uint64  // when it was queued, to break ties

	// Of lotteries:
	draws uint64 // weight with compensation
	had   uint64 // use since it was drawn
	drawn bool   // it runs since it was, among all others
}

type state uint8

const (
	away    state = iota // left
	blocked              // left by Block
	waiting
	running
)

// NewClient makes a client of a weight, which is tickets times One or what a
// Ledger says; it is brought within bounds.
func NewClient(id int, weight uint64) *Client {
	w := bound(weight)
	return &Client{ID: id, weight: w, draws: w, at: -1}
}

// Weight is the client's weight.
func (c *Client) Weight() uint64 { return c.weight }

func (c *Client) takesPart() bool { return c.state >= waiting }

func bound(weight uint64) uint64 { return min(max(weight, MinWeight), MaxWeight) }

func boundUse(used int64) uint64 { return uint64(min(max(used, 0), MaxUse)) }

// mulDiv is a·b/c and the remainder. The quotient must fit.
func mulDiv(a, b, c uint64) (quo, rem uint64) {
	hi, lo := bits.Mul64(a, b)
	return bits.Div64(hi, lo, c)
}

// mulDivSigned is a·b/c, rounded towards zero.
func mulDivSigned(a int64, b, c uint64) int64 {
	if a < 0 {
		q, _ := mulDiv(uint64(-a), b, c)
		return -int64(q)
	}
	q, _ := mulDiv(uint64(a), b, c)
	return int64(q)
}
