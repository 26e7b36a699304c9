package cache

import (
	"errors"
	"fmt"
	"io"
	"math/bits"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/memory/arena"
)

// File is one image in the cache. Its methods but Close may be called from many
// goroutines. Those that find what they want do not allocate.
type File struct {
	cache  *Cache
	base   Base
	forget func(off, n int64)
	size   int64 // bytes
	blocks int64
	arena  *arena.Arena

	// Under Cache.mu.
	chunks  map[int64]*chunk
	streams [8]stream
	turn    int // of streams, to be forgotten next
}

// stream is somebody who reads one block after another.
type stream struct {
	next  int64
	ahead int // blocks to read at the next miss
}

// Size is the image's size in bytes.
func (f *File) Size() int64 { return f.size }

// ReadV fills bufs, in order, from the image at off.
func (f *File) ReadV(bufs [][]byte, off int64) error {
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
		if err := f.hold(first, count); err != nil {
			return err
		}
		src := f.arena.Bytes()[off : off+m]
		for len(src) > 0 {
			k := copy(bufs[0][skip:], src)
			src = src[k:]
			if skip += k; skip == len(bufs[0]) {
				bufs, skip = bufs[1:], 0
			}
		}
		f.release(first, count, uint64(m), 0)
		off, n = off+m, n-m
	}
	return nil
}

// ReadAt is io.ReaderAt's.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("cache: read at %d: %w", off, unix.EINVAL)
	}
	n := int(max(0, min(int64(len(p)), f.size-off)))
	bufs := [1][]byte{p[:n]}
	if n > 0 {
		if err := f.ReadV(bufs[:], off); err != nil {
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
func (f *File) Lend(off, n int64) (r memory.Run, skip int64) {
	if off < 0 || n < BlockSize || off%BlockSize != 0 || off > f.size || n > f.size-off {
		return memory.Run{}, n
	}
	first, count := off/BlockSize, int(min(n/BlockSize, mostRequest))
	if f.hold(first, count) != nil {
		return memory.Run{}, int64(count) * BlockSize
	}
	return memory.Run{Arena: f.arena, Page: uint64(first), N: count}, 0
}

// Return ends a Lend. mapped is how many of the pages a guest maps now.
func (f *File) Return(r memory.Run, mapped int) {
	f.release(int64(r.Page), r.N, 0, uint64(mapped)*BlockSize)
}

// Close gives the pages back. No other call may be under way, and no guest map
// any of them.
func (f *File) Close() error {
	c := f.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.arena == nil {
		return nil
	}
	ring := c.ring[:0]
	for _, k := range c.ring {
		if k.file != f {
			ring = append(ring, k)
			continue
		}
		if k.pins > 0 || k.filling != 0 || k.used() != 0 {
			panic("cache: an image is closed while it is in use")
		}
		c.pages -= int64(bits.OnesCount64(k.valid))
	}
	clear(c.ring[len(ring):])
	c.ring, c.hand = ring, 0
	c.files--
	a := f.arena
	f.arena, f.chunks = nil, nil
	return a.Close()
}

// part is the part of n blocks from b in b's chunk: which bits, and how many.
func part(b int64, n int) (mask uint64, m int) {
	i := int(b % chunkBlocks)
	m = min(n, chunkBlocks-i)
	return ones(m) << i, m
}

// hold has n blocks from b in memory, filled, until release.
func (f *File) hold(b int64, n int) error {
	c := f.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	f.pin(b, n, 1)
	ahead := f.follow(b, n)
	missed := 0
	for i := 0; i < n; {
		mask, m := part(b+int64(i), n-i)
		k := f.chunks[(b+int64(i))/chunkBlocks]
		missing := mask &^ k.valid
		switch {
		case missing == 0:
			k.recent |= mask
			i += m
		case missing&-missing&k.filling != 0: // the first of them
			c.filled.Wait()
		default:
			first := k.index*chunkBlocks + int64(bits.TrailingZeros64(missing))
			wanted, err := f.fill(first, int(b+int64(n)-first), ahead)
			if err != nil {
				f.pin(b, n, -1)
				c.stats.Misses += uint64(n)
				return err
			}
			missed += wanted
		}
	}
	c.stats.Misses += uint64(missed)
	c.stats.Hits += uint64(max(0, n-missed))
	return nil
}

func (f *File) release(b int64, n int, copied, mapped uint64) {
	c := f.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	f.pin(b, n, -1)
	c.stats.BytesCopied += copied
	c.stats.BytesMapped += mapped
}

// pin keeps the chunks of n blocks from b, or (-1) lets them go again.
func (f *File) pin(b int64, n, by int) {
	for n > 0 {
		_, m := part(b, n)
		f.chunk(b).pins += by
		b, n = b+int64(m), n-m
	}
}

// chunk is that of block b, made if there is none.
func (f *File) chunk(b int64) *chunk {
	i := b / chunkBlocks
	k := f.chunks[i]
	if k == nil {
		k = &chunk{file: f, index: i}
		f.chunks[i] = k
		f.cache.ring = append(f.cache.ring, k)
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

// fill reads blocks from b on: some of the n that are wanted, at least the first,
// and what follows, up to ahead in all. The lock is let go meanwhile.
func (f *File) fill(b int64, n, ahead int) (wanted int, err error) {
	c := f.cache
	m := f.claim(b, min(max(n, ahead), mostAhead))
	wanted = min(n, m)
	if err := c.evict(int64(m)); err != nil {
		f.settle(b, m, false)
		return 0, err
	}
	c.pages += int64(m)
	c.mu.Unlock()
	good, err := m, f.read(b, m)
	if err != nil && m > wanted {
		// What was not asked for may be to blame.
		good, err = wanted, f.read(b, wanted)
	}
	if err != nil {
		good = 0
	}
	if good < m { // there may be a part
		err = errors.Join(err, f.arena.Punch(uint64(b)+uint64(good), m-good))
	}
	c.mu.Lock()
	f.settle(b, good, true)
	f.settle(b+int64(good), m-good, false)
	c.pages -= int64(m - good)
	c.stats.Fills++
	c.stats.BytesFilled += uint64(good) * BlockSize
	if err != nil {
		return 0, err
	}
	return wanted, nil
}

// claim marks up to n blocks from b, of which the first is neither there nor
// being filled, as being filled, up to one that is.
func (f *File) claim(b int64, n int) int {
	n = int(min(int64(n), f.blocks-b))
	for i := 0; i < n; {
		mask, m := part(b+int64(i), n-i)
		k := f.chunk(b + int64(i))
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
func (f *File) settle(b int64, n int, valid bool) {
	for n > 0 {
		mask, m := part(b, n)
		k := f.chunk(b)
		k.filling &^= mask
		if valid {
			k.valid |= mask
		}
		b, n = b+int64(m), n-m
	}
	f.cache.filled.Broadcast()
}

// read reads n blocks into their pages.
func (f *File) read(b int64, n int) error {
	off := b * BlockSize
	size := min(int64(n)*BlockSize, f.size-off)
	p := f.arena.Bytes()[off : off+size]
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
