package user

import (
	"net/netip"
	"sync"
)

// slots counts what is under way, up to a bound for all and one for each guest.
type slots struct {
	all, each int

	mu   sync.Mutex
	used int
	by   map[netip.Addr]int
}

// newSlots makes so many slots, of which one guest has at most a part.
func newSlots(all, part int) *slots {
	return &slots{all: all, each: all / part, by: map[netip.Addr]int{}}
}

// take takes a slot for a guest, if there is one.
func (s *slots) take(who netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used == s.all || s.by[who] == s.each {
		return false
	}
	s.used++
	s.by[who]++
	return true
}

// give gives a slot back that was taken for the same guest.
func (s *slots) give(who netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.by[who]--; s.by[who] == 0 {
		delete(s.by, who)
	}
}
