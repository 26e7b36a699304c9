package sample

import (
	"math/bits"

	"disco/memory"
	"disco/numa"
)

// MaxNodes is how many nodes a guest may run on: a mask of them is 16 bits.
const MaxNodes = 16

// Mask is a set of nodes, by their place in the list that [New] was given.
type Mask uint16

// Has says whether the node at place i is in m.
func (m Mask) Has(i int) bool { return i >= 0 && m>>i&1 != 0 }

// Count is how many nodes are in m.
func (m Mask) Count() int { return bits.OnesCount16(uint16(m)) }

// First is the lowest place in m, -1 if it is empty.
func (m Mask) First() int {
	if m == 0 {
		return -1
	}
	return bits.TrailingZeros16(uint16(m))
}

// only is the set of the node at place i; none for -1.
func only(i int) Mask {
	if i < 0 {
		return 0
	}
	return 1 << i
}

// Writes is what is known of stores to a run of pages.
type Writes uint8

const (
	// Unknown is a run that nobody looked at for stores.
	Unknown Writes = iota
	// Written is a run of which pages were written while it was looked at.
	Written
	// Unwritten is a run of which no page was written while all were guarded.
	Unwritten
	// Broken is a run of which stores have taken copies away.
	Broken
)

// Heat is what was seen of a run of pages, all within one block.
type Heat struct {
	First memory.PPN
	Pages int
	// Home is the node that most of the sampled pages are on; it need not be one
	// that the guest runs on.
	Home numa.Node
	// Users are the nodes seen to use it, and Use the number of probes that each
	// was seen to touch.
	Users Mask
	Use   [MaxNodes]uint16
	// Copies are the nodes that have copies of pages of it.
	Copies Mask
	// Joins is whether pages next to it have copies: with copies of it, too, there
	// are fewer mappings, not more.
	Joins  bool
	Writes Writes
	// Moves is how often the block was moved lately.
	Moves int
}
