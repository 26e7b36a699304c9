package cache

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"disco/memory"
)

// File is one image in the cache. Its own methods are those of a Reader of the first
// node that wants no copies.
type File struct {
	Reader

	cache  *Cache
	base   Base
	forget func(off, n int64)
	size   int64 // bytes
	blocks int64
	stores []*store // one for each node

	// Under Cache.mu.
	streams [8]stream
	turn    int // of streams, to be forgotten next
}

// stream is somebody who reads one block after another.
type stream struct {
	next  int64
	ahead int // blocks to read at the next miss
}

// Reader is a File as it is read from one node. Its methods may be called from many
// goroutines. Those that find what they want do not allocate.
type Reader struct {
	file *File
	from atomic.Uint32 // node<<1, and 1 for copies
}

// From is a Reader on a node, which counts those of Config.Nodes; with copies, what
// other nodes have is copied to it, as far as the budget allows.
func (f *File) From(node int, copies bool) *Reader {
	r := &Reader{file: f}
	r.Move(node, copies)
	return r
}

// Move has a Reader read from another node from now on.
func (r *Reader) Move(node int, copies bool) {
	v := uint32(min(max(node, 0), len(r.file.stores)-1)) << 1
	if copies {
		v |= 1
	}
	r.from.Store(v)
}

// Size is the image's size in bytes.
func (r *Reader) Size() int64 { return r.file.size }

// ReadV fills bufs, in order, from the image at off.
func (r *Reader) ReadV(bufs [][]byte, off int64) error {
	f := r.file
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	if off < 0 || off > f.size || n > f.size-off {
		return fmt.Errorf("cache: read of %d bytes at %d of %d: %w", n, off, f.size, unix.EINVAL)
	}
	skip := 0 // bytes of bufs[0] already filled
	for n > 0 {
		first := off / BlockSize
		m := min(n, (first+mostRequest)*BlockSize-off)
		count := int((off+m-1)/BlockSize + 1 - first)
		s, err := r.hold(first, count)
		if err != nil {
			return err
		}
		src := s.arena.Bytes()[off : off+m]
		for len(src) > 0 {
			k := copy(bufs[0][skip:], src)
			src = src[k:]
			if skip += k; skip == len(bufs[0]) {
				bufs, skip = bufs[1:], 0
			}
		}
		s.release(first, count, uint64(m), 0)
		off, n = off+m, n-m
	}
	return nil
}

// ReadAt is io.ReaderAt's.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("cache: read at %d: %w", off, unix.EINVAL)
	}
	n := int(max(0, min(int64(len(p)), r.file.size-off)))
	bufs := [1][]byte{p[:n]}
	if n > 0 {
		if err := r.ReadV(bufs[:], off); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Lend finds the pages of the n bytes at off, both multiples of BlockSize within
// the image: r.N pages of r.Arena, which stay as they are until Return. They may
// be fewer than n stands for. If it is none, the next skip bytes, some at least,
// are to be read by ReadV, which will also tell why.
func (r *Reader) Lend(off, n int64) (run memory.Run, skip int64) {
	size := r.file.size
	if off < 0 || n < BlockSize || off%BlockSize != 0 || off > size || n > size-off {
		return memory.Run{}, n
	}
	first, count := off/BlockSize, int(min(n/BlockSize, mostRequest))
	s, err := r.hold(first, count)
	if err != nil {
		return memory.Run{}, int64(count) * BlockSize
	}
	return memory.Run{Arena: s.arena, Page: uint64(first), N: count}, 0
}

// Return ends a Lend. mapped is how many of the pages a guest maps now.
func (r *Reader) Return(run memory.Run, mapped int) {
	for _, s := range r.file.stores {
		if s.arena == run.Arena {
			s.release(int64(run.Page), run.N, 0, uint64(mapped)*BlockSize)
		}
	}
}

// ErrMapped says that guests map pages of an image.
var ErrMapped = errors.New("guests map pages of the image")

// Close gives the pages back. No other call may be under way. While a guest maps
// any of them (it need not be one that has read the image: guests send pages to
// each other) nothing is done, and it returns ErrMapped.
func (f *File) Close() error {
	c := f.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.stores == nil {
		return nil
	}
	for _, s := range f.stores {
		for _, k := range s.chunks {
			if k.pins > 0 || k.filling != 0 {
				panic("cache: an image is closed while it is read")
			}
			if k.used() != 0 {
				return ErrMapped
			}
		}
	}
	ring := c.ring[:0]
	for _, k := range c.ring {
		if k.store.file != f {
			ring = append(ring, k)
			continue
		}
		c.pages -= int64(bits.OnesCount64(k.valid))
	}
	clear(c.ring[len(ring):])
	c.ring, c.hand = ring, 0
	c.files--
	return f.unmap()
}

func (f *File) unmap() error {
	var errs []error
	for _, s := range f.stores {
		errs = append(errs, s.arena.Close())
	}
	f.stores = nil
	return errors.Join(errs...)
}

// part is the part of n blocks from b in b's chunk: which bits, and how many.
func part(b int64, n int) (mask uint64, m int) {
	i := int(b % chunkBlocks)
	m = min(n, chunkBlocks-i)
	return ones(m) << i, m
}

// hold has n blocks from b in memory, filled, until release by the store that it
// returns.
func (r *Reader) hold(b int64, n int) (*store, error) {
	f := r.file
	c := f.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	s := f.choose(b, n, r.from.Load())
	s.pin(b, n, 1)
	ahead := f.follow(b, n)
	missed := 0
	for i := 0; i < n; {
		mask, m := part(b+int64(i), n-i)
		k := s.chunks[(b+int64(i))/chunkBlocks]
		missing := mask &^ k.valid
		switch {
		case missing == 0:
			k.recent |= mask
			i += m
		case missing&-missing&k.filling != 0: // the first of them
			c.filled.Wait()
		default:
			first := k.index*chunkBlocks + int64(bits.TrailingZeros64(missing))
			wanted, err := s.fill(first, int(b+int64(n)-first), ahead)
			if err != nil {
				s.pin(b, n, -1)
				c.stats.Misses += uint64(n)
				return nil, err
			}
			missed += wanted
		}
	}
	c.stats.Misses += uint64(missed)
	c.stats.Hits += uint64(max(0, n-missed))
	return s, nil
}

// choose is the store for a read of n blocks from b: the reader's own node's, unless
// only another has the first of them, and there is to be no copy.
func (f *File) choose(b int64, n int, from uint32) *store {
	own := f.stores[from>>1]
	if len(f.stores) == 1 || own.has(b) || from&1 != 0 && f.cache.pages+int64(n) <= f.cache.budget {
		return own
	}
	for _, s := range f.stores {
		if s.has(b) {
			return s
		}
	}
	return own
}

// has says whether block b is there, or is being filled.
func (s *store) has(b int64) bool {
	k := s.chunks[b/chunkBlocks]
	return k != nil && (k.valid|k.filling)>>(b%chunkBlocks)&1 != 0
}

func (s *store) release(b int64, n int, copied, mapped uint64) {
	c := s.file.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	s.pin(b, n, -1)
	c.stats.BytesCopied += copied
	c.stats.BytesMapped += mapped
}

// pin keeps the chunks of n blocks from b, or (-1) lets them go again.
func (s *store) pin(b int64, n, by int) {
	for n > 0 {
		_, m := part(b, n)
		s.chunk(b).pins += by
		b, n = b+int64(m), n-m
	}
}

// chunk is that of block b, made if there is none.
func (s *store) chunk(b int64) *chunk {
	i := b / chunkBlocks
	k := s.chunks[i]
	if k == nil {
		k = &chunk{store: s, index: i}
		s.chunks[i] = k
		s.file.cache.ring = append(s.file.cache.ring, k)
	}
	return k
}

// follow notes a read of n blocks from b, and says how many to read if they have
// to be.
func (f *File) follow(b int64, n int) (ahead int) {
	for i := range f.streams {
		s := &f.streams[i]
		if s.next != b || s.next == 0 {
			continue
		}
		s.next = b + int64(n)
		s.ahead = min(max(2*s.ahead, leastAhead), mostAhead)
		return s.ahead
	}
	f.streams[f.turn] = stream{next: b + int64(n)}
	f.turn = (f.turn + 1) % len(f.streams)
	return leastFill
}

// fill fills blocks from b on: some of the n that are wanted, at least the first,
// and what follows, up to ahead in all. What another node has is copied from there,
// the rest is read. The lock is let go meanwhile.
func (s *store) fill(b int64, n, ahead int) (wanted int, err error) {
	f := s.file
	c := f.cache
	m := s.claim(b, min(max(n, ahead), mostAhead))
	other, alike := f.other(s, b, m)
	s.settle(b+int64(alike), m-alike, false)
	m = alike
	if other != nil {
		other.pin(b, m, 1)
		defer other.pin(b, m, -1)
	}
	wanted = min(n, m)
	if err := c.evict(int64(m)); err != nil {
		s.settle(b, m, false)
		return 0, err
	}
	c.pages += int64(m)
	c.mu.Unlock()
	good := m
	if other != nil {
		at := b * BlockSize
		copy(s.arena.Bytes()[at:at+int64(m)*BlockSize], other.arena.Bytes()[at:])
	} else if err = s.read(b, m); err != nil && m > wanted {
		// What was not asked for may be to blame.
		good, err = wanted, s.read(b, wanted)
	}
	if err != nil {
		good = 0
	}
	if good < m { // there may be a part
		err = errors.Join(err, s.arena.Punch(uint64(b)+uint64(good), m-good))
	}
	c.mu.Lock()
	s.settle(b, good, true)
	s.settle(b+int64(good), m-good, false)
	c.pages -= int64(m - good)
	if other != nil {
		c.stats.Copies += uint64(good)
	} else {
		c.stats.Fills++
		c.stats.BytesFilled += uint64(good) * BlockSize
	}
	if err != nil {
		return 0, err
	}
	return wanted, nil
}

// other is another store that has block b, or nil, and for how many of m blocks the
// answer is the same.
func (f *File) other(than *store, b int64, m int) (s *store, n int) {
	n = m
	for _, s := range f.stores {
		if s == than {
			continue
		}
		if have := s.run(b, m, true); have > 0 {
			return s, have
		}
		n = min(n, s.run(b, m, false))
	}
	return nil, n
}

// run is how many of m blocks from b are there, or are not there.
func (s *store) run(b int64, m int, there bool) (n int) {
	for n < m {
		mask, k := part(b+int64(n), m-n)
		others := mask
		if c := s.chunks[(b+int64(n))/chunkBlocks]; c != nil && there {
			others &^= c.valid
		} else if c != nil {
			others &= c.valid
		} else if !there {
			others = 0
		}
		if others != 0 {
			return n + bits.TrailingZeros64(others) - bits.TrailingZeros64(mask)
		}
		n += k
	}
	return n
}

// claim marks up to n blocks from b, of which the first is neither there nor
// being filled, as being filled, up to one that is.
func (s *store) claim(b int64, n int) int {
	n = int(min(int64(n), s.file.blocks-b))
	for i := 0; i < n; {
		mask, m := part(b+int64(i), n-i)
		k := s.chunk(b + int64(i))
		if taken := mask & (k.valid | k.filling); taken != 0 {
			mask &= taken&-taken - 1
			k.filling |= mask
			return i + bits.OnesCount64(mask)
		}
		k.filling |= mask
		i += m
	}
	return n
}

// settle ends claim for n blocks.
func (s *store) settle(b int64, n int, valid bool) {
	for n > 0 {
		mask, m := part(b, n)
		k := s.chunk(b)
		k.filling &^= mask
		if valid {
			k.valid |= mask
		}
		b, n = b+int64(m), n-m
	}
	s.file.cache.filled.Broadcast()
}

// read reads n blocks into their pages.
func (s *store) read(b int64, n int) error {
	f := s.file
	off := b * BlockSize
	size := min(int64(n)*BlockSize, f.size-off)
	p := s.arena.Bytes()[off : off+size]
	if got, err := f.base.ReadAt(p, off); got < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("cache: read of %d bytes at %d: %w", size, off, err)
	}
	if f.forget != nil {
		f.forget(off, size)
	}
	return nil
}
