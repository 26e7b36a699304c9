// Package cache is the one buffer cache of a monitor: blocks of the images that
// its guests share, each in memory once, in pages that guests can map.
//
// A [File] is one image in the cache. Block i of it is page i of a sparse arena of
// the file's own, one for each node, so blocks that follow one another lie in pages
// that do, and a guest that reads a megabyte gets it in one run. What is not there is
// filled by one read of the image, straight into the pages, with what will probably
// be wanted next; those who want the same block meanwhile wait for that read. Over
// the budget, pages that have not been used lately are given back (CLOCK), but
// for those that guests map: they are counted by the arena, and no page of theirs
// ever changes or goes away.
//
// A block comes to the node of the [Reader] that asks first. Who asks from another
// node gets it from there, or, if it wants copies and the budget allows them, a copy
// on its own node, for all on that node.
//
// Images never change while they are in the cache, so it holds nothing that is a
// guest's own, and there is nothing to write back.
//
// There is one lock, Cache.mu. It is held for no read of an image and no copy,
// and no other lock is taken inside.
//
// Not done here: which guest memory a page is mapped to (package memory), when
// that is worth it (virtio/blk), guests' writes (disk/overlay, disk/qcow2), and
// moving what is mapped already: a guest that moves to another node, or that read
// first what others then use more, keeps the pages that it has.
package cache

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"golang.org/x/sys/unix"

	"disco/memory/arena"
)

// BlockSize is the size in bytes of what is cached: a page.
const BlockSize = arena.PageSize

const (
	chunkBlocks = 64 // as many as a word has bits

	// How many blocks are read at once at least, when reads follow one another, and
	// at most.
	leastFill   = 8
	leastAhead  = 32
	mostAhead   = 256
	mostRequest = 256 // blocks that one caller holds at once

	leastBudget = 4 * mostRequest
	mostLooked  = 512 // chunks, for room for one fill
)

// Base is an image: bytes that never change. Its methods are called from many
// goroutines. If it has a method Forget(off, n int64), that is called after every
// read, with what was read: the host need not keep it.
type Base interface {
	io.ReaderAt
	Size() int64
}

// Config says how much is cached, and where.
type Config struct {
	// Size is the budget in bytes; 0 for a quarter of the host's memory. Pages that
	// guests map count, and are not given back over it.
	Size uint64
	// Nodes are the kernel's NUMA nodes that pages are placed on. With none, or one,
	// they are made where the first reader runs.
	Nodes []int
}

// Cache is a buffer cache. Its methods may be called from many goroutines.
type Cache struct {
	nodes []int

	mu     sync.Mutex
	filled sync.Cond // some blocks were filled, or could not be
	budget int64     // pages
	pages  int64     // that there are, or are being filled
	ring   []*chunk  // the clock
	hand   int
	files  int
	stats  Stats
}

// Stats are counts since the Cache was made, and what is now where marked.
type Stats struct {
	Hits        uint64 `json:"hits"`        // blocks that were there when they were wanted
	Misses      uint64 `json:"misses"`      // blocks that were not
	Fills       uint64 `json:"fills"`       // reads of images
	BytesFilled uint64 `json:"bytesFilled"` // by them
	BytesCopied uint64 `json:"bytesCopied"` // to guests and to those above
	BytesMapped uint64 `json:"bytesMapped"` // to guests, in place of a copy
	Copies      uint64 `json:"copies"`      // of blocks that another node had, made for readers of a node
	Evictions   uint64 `json:"evictions"`   // pages
	Pages       uint64 `json:"pages"`       // now
	Budget      uint64 `json:"budget"`      // pages
}

// New makes an empty cache. It takes memory as files are read.
func New(c Config) (*Cache, error) {
	size := c.Size
	if size == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return nil, fmt.Errorf("cache: size of the host's memory: %w", err)
		}
		size = info.Totalram * uint64(info.Unit) / 4
	}
	k := &Cache{nodes: c.Nodes, budget: max(leastBudget, int64(size/BlockSize))}
	k.filled.L = &k.mu
	return k, nil
}

// Stats reads the counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Pages, s.Budget = uint64(c.pages), uint64(c.budget)
	return s
}

// Close checks that no File is open any more.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.files != 0 {
		return fmt.Errorf("cache: %d images are still open", c.files)
	}
	return nil
}

// store is what one node has of a file.
type store struct {
	file   *File
	arena  *arena.Arena
	chunks map[int64]*chunk // under Cache.mu
}

// chunk is what is known of chunkBlocks blocks of a store, aligned. It is in the
// ring as long as it is in its store's table.
type chunk struct {
	store *store
	index int64
	// A bit per block: it is there, somebody reads it, it was used since the hand
	// last came by.
	valid, filling, recent uint64
	pins                   int // who uses the blocks just now
}

// used are the blocks that guests map.
func (k *chunk) used() (mask uint64) {
	for v := k.valid; v != 0; v &= v - 1 {
		i := bits.TrailingZeros64(v)
		if k.store.arena.Users(uint64(k.index*chunkBlocks)+uint64(i)) != 0 {
			mask |= 1 << i
		}
	}
	return mask
}

// evict gives pages back until there is room for n more, or nothing goes any
// more. The lock is held.
func (c *Cache) evict(n int64) error {
	if c.pages+n <= c.budget {
		return nil
	}
	target := c.budget - n - min(mostAhead, c.budget/8) // not again at once
	// The first round forgets what was used lately.
	for left := min(2*len(c.ring), mostLooked); left > 0 && c.pages > target; left-- {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		k := c.ring[c.hand]
		if k.pins > 0 || k.filling != 0 {
			c.hand++
			continue
		}
		victims := k.valid &^ k.recent
		k.recent = 0
		if victims != 0 {
			if err := k.free(victims &^ k.used()); err != nil {
				return err
			}
		}
		if k.valid != 0 {
			c.hand++
			continue
		}
		delete(k.store.chunks, k.index)
		last := len(c.ring) - 1
		c.ring[c.hand] = c.ring[last]
		c.ring[last] = nil
		c.ring = c.ring[:last]
	}
	return nil
}

// free gives blocks back.
func (k *chunk) free(mask uint64) error {
	c := k.store.file.cache
	for mask != 0 {
		first := bits.TrailingZeros64(mask)
		n := bits.TrailingZeros64(^(mask >> first))
		if err := k.store.arena.Punch(uint64(k.index*chunkBlocks)+uint64(first), n); err != nil {
			return err
		}
		run := ones(n) << first
		mask &^= run
		k.valid &^= run
		c.pages -= int64(n)
		c.stats.Evictions += uint64(n)
	}
	return nil
}

// ones is the lowest n bits.
func ones(n int) uint64 {
	if n >= 64 {
		return ^uint64(0)
	}
	return 1<<n - 1
}

// Open puts an image into the cache. name is shown in /proc/PID/maps. The caller
// owns the File and the base, and closes them in this order, when no guest maps
// anything of it. Opened twice, an image is there twice.
func (c *Cache) Open(base Base, name string) (*File, error) {
	f := &File{cache: c, base: base, size: base.Size()}
	if f.size <= 0 {
		return nil, fmt.Errorf("cache: image of %d bytes", f.size)
	}
	f.blocks = (f.size + BlockSize - 1) / BlockSize
	if forget, ok := base.(interface{ Forget(off, n int64) }); ok {
		f.forget = forget.Forget
	}
	for i := range max(1, len(c.nodes)) {
		a, err := arena.New(name, uint64(f.blocks)*BlockSize, arena.HugeOff)
		if err != nil {
			return nil, errors.Join(err, f.unmap())
		}
		f.stores = append(f.stores, &store{file: f, arena: a, chunks: make(map[int64]*chunk)})
		if len(c.nodes) > 1 {
			if err := a.Place(arena.Preferred, c.nodes[i]); err != nil {
				return nil, errors.Join(err, f.unmap())
			}
		}
	}
	f.Reader.file = f
	c.mu.Lock()
	c.files++
	c.mu.Unlock()
	return f, nil
}
