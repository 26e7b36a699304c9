package arena

import (
	"sync"
	"sync/atomic"
)

// users counts, by page, who has pages of an arena mapped in other places than
// its own: guests that they are shared with. Most arenas have none, and no table.
type users struct {
	once  sync.Once
	count atomic.Pointer[[]atomic.Int32]
}

// Hold notes one more user of each of n pages from page on. They must not
// change or be freed while they have users. It allocates the first time only.
func (a *Arena) Hold(page uint64, n int) {
	a.users.once.Do(func() {
		table := make([]atomic.Int32, a.size/PageSize)
		a.users.count.Store(&table)
	})
	table := *a.users.count.Load()
	for i := range table[page : page+uint64(n)] {
		table[page+uint64(i)].Add(1)
	}
}

// Release ends Hold for n pages from page on.
func (a *Arena) Release(page uint64, n int) {
	table := a.users.count.Load()
	if table == nil {
		panic("arena: Release without Hold")
	}
	for i := range (*table)[page : page+uint64(n)] {
		if (*table)[page+uint64(i)].Add(-1) < 0 {
			panic("arena: Release without Hold")
		}
	}
}

// Users is how many users a page has.
func (a *Arena) Users(page uint64) int {
	table := a.users.count.Load()
	if table == nil {
		return 0
	}
	return int((*table)[page].Load())
}
