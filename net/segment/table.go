package segment

import (
	"fmt"
	"time"
)

// addr is an Ethernet address.
type addr [6]byte

func (a addr) group() bool { return a[0]&1 != 0 }

func (a addr) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", a[0], a[1], a[2], a[3], a[4], a[5])
}

const (
	// maxLearned bounds the addresses that are learned.
	maxLearned = 4096
	// maxAge is for how long an address is known that sends nothing.
	maxAge = 5 * time.Minute
	// freshAge is for how long it need not be noted that an address has sent.
	freshAge = time.Second
)

// table is where addresses are: those that ends were given, which stay, and those
// that were seen behind trusted ends.
type table struct {
	entries map[addr]entry
	learned int
	swept   time.Duration // when old ones were last looked for
}

type entry struct {
	end  *end
	own  bool
	seen time.Duration // if it was learned
}

func newTable() table { return table{entries: make(map[addr]entry)} }

// owner is the end that was given an address.
func (t *table) owner(a addr) *end {
	if e := t.entries[a]; e.own {
		return e.end
	}
	return nil
}

func (t *table) own(e *end) {
	t.remove(e.mac)
	t.entries[e.mac] = entry{end: e, own: true}
}

func (t *table) remove(a addr) {
	if e, ok := t.entries[a]; ok {
		if !e.own {
			t.learned--
		}
		delete(t.entries, a)
	}
}

// forget removes all addresses of an end.
func (t *table) forget(e *end) {
	for a, entry := range t.entries {
		if entry.end == e {
			t.remove(a)
		}
	}
}

// find is the end of an address, nil if it is not known.
func (t *table) find(a addr, now time.Duration) *end {
	if e, ok := t.entries[a]; ok && (e.own || now-e.seen < maxAge) {
		return e.end
	}
	return nil
}

// stale says whether learn would change anything.
func (t *table) stale(a addr, from *end, now time.Duration) bool {
	e, ok := t.entries[a]
	return !ok || !e.own && (e.end != from || now-e.seen > freshAge)
}

// learn notes that an address has sent from behind an end. The addresses of ends
// stay where they are, and a table that is full stays as it is.
func (t *table) learn(a addr, from *end, now time.Duration) {
	e, ok := t.entries[a]
	switch {
	case ok && e.own || a.group():
		return
	case !ok:
		if t.learned >= maxLearned {
			t.sweep(now)
		}
		if t.learned >= maxLearned {
			return
		}
		t.learned++
	}
	t.entries[a] = entry{end: from, seen: now}
}

// sweep removes what is too old, not more than once a second.
func (t *table) sweep(now time.Duration) {
	if t.swept != 0 && now-t.swept < freshAge {
		return
	}
	t.swept = now
	for a, e := range t.entries {
		if !e.own && now-e.seen >= maxAge {
			t.remove(a)
		}
	}
}

func (s *Segment) find(a addr) *end {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.table.find(a, s.now())
}

func (s *Segment) learn(a addr, from *end) {
	now := s.now()
	s.mu.RLock()
	stale := s.table.stale(a, from, now)
	s.mu.RUnlock()
	if stale {
		s.mu.Lock()
		s.table.learn(a, from, now)
		s.mu.Unlock()
	}
}
