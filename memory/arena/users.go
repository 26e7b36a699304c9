package arena

import "sync"

// users counts, by page, who has pages of an arena mapped in other places than
// its own: guests that they are shared with. Most arenas have none.
type users struct {
	mu    sync.Mutex
	count map[uint64]int
}

// Hold notes one more user of each of n pages from page on. They must not
// change or be freed while they have users.
func (a *Arena) Hold(page uint64, n int) {
	a.users.mu.Lock()
	defer a.users.mu.Unlock()
	if a.users.count == nil {
		a.users.count = make(map[uint64]int)
	}
	for i := range uint64(n) {
		a.users.count[page+i]++
	}
}

// Release ends Hold for one page.
func (a *Arena) Release(page uint64) {
	a.users.mu.Lock()
	defer a.users.mu.Unlock()
	switch n := a.users.count[page]; n {
	case 0:
		panic("arena: Release without Hold")
	case 1:
		delete(a.users.count, page)
	default:
		a.users.count[page] = n - 1
	}
}

// Users is how many users a page has.
func (a *Arena) Users(page uint64) int {
	a.users.mu.Lock()
	defer a.users.mu.Unlock()
	return a.users.count[page]
}
