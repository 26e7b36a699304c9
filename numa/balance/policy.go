// Package balance makes a guest's accesses local. What a sampler found out about
// pages goes into Decide, which is pure and holds the rules of Disco (SOSP'97
// §4.2): a page used from one remote node migrates there, a page that several
// nodes read and none writes is replicated, a page that several write stays where
// it is, and no page moves often. A Daemon for each guest applies what is
// decided, under a budget.
//
// Not done here: how a page is moved or a fault answered (memory), which vCPU
// runs where, and guests that share pages with each other.
package balance

import (
	"fmt"
	"strings"
)

// Policy says which of Disco's remedies the daemon may use.
type Policy int

const (
	// Off is no daemon, no samples, no faults: memory stays where it was first
	// touched.
	Off Policy = iota
	// Migrate moves pages to the node that uses them, and never copies one.
	Migrate
	// Replicate gives each node that reads a page a copy, and never moves one.
	Replicate
	// Full does both.
	Full
)

var policies = [...]string{Off: "off", Migrate: "migrate", Replicate: "replicate", Full: "full"}

// String is the word for p on a command line.
func (p Policy) String() string {
	if p < 0 || int(p) >= len(policies) {
		return fmt.Sprintf("Policy(%d)", int(p))
	}
	return policies[p]
}

// ParsePolicy is the Policy of a word on a command line.
func ParsePolicy(word string) (Policy, error) {
	for p, w := range policies {
		if w == word {
			return Policy(p), nil
		}
	}
	return Off, fmt.Errorf("%q is no policy: choose %s", word, strings.Join(policies[:], ", "))
}

// MarshalText is p's word.
func (p Policy) MarshalText() ([]byte, error) {
	if p < 0 || int(p) >= len(policies) {
		return nil, fmt.Errorf("no policy %d", int(p))
	}
	return []byte(policies[p]), nil
}

// UnmarshalText is [ParsePolicy].
func (p *Policy) UnmarshalText(word []byte) (err error) {
	*p, err = ParsePolicy(string(word))
	return err
}

// migrates and replicates say what p allows.
func (p Policy) migrates() bool   { return p == Migrate || p == Full }
func (p Policy) replicates() bool { return p == Replicate || p == Full }
