// Package overlay keeps what a guest writes to a disk in the monitor's memory,
// over a base that it reads the rest from. It is gone when it is closed.
//
// Blocks of 4 KiB are the base's, or zero, or the overlay's own, in a sparse file
// of memory as long as the disk. The first write to a part of a block copies the
// rest from the base; zeroing and discarding whole blocks frees their memory.
//
// Each block has one of a few locks, for as long as it becomes another's. Own
// blocks are read and written with none: requests that overlap are the guest's
// own race, as on a real disk.
//
// Not done here: keeping anything (package qcow2 does), a limit of the memory
// taken, and what the base's bytes are cached in (package cache).
package overlay

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"disco/disk/vector"
	"disco/memory"
	"disco/memory/arena"
)

// BlockSize is the unit in bytes of what is the overlay's own.
const BlockSize = arena.PageSize

const sectorSize = 512

// Base is what the overlay lies over. It never changes. If it is a Lender, too,
// the overlay passes on what it lends.
type Base interface {
	Size() int64
	ReadV(bufs [][]byte, off int64) error
}

// Lender is a Base that has bytes in pages that guests can map; see cache.File.
type Lender interface {
	Lend(off, n int64) (r memory.Run, skip int64)
	Return(r memory.Run, mapped int)
}

// Of whom a block is.
const (
	ofBase   = iota
	ofNobody // zeroes
	own
	stateBits = 2
	perWord   = 64 / stateBits
)

// Overlay is a disk image in memory. Its methods but Close may be called from
// many goroutines.
type Overlay struct {
	base   Base
	lender Lender // nil if base is none
	size   int64
	pages  *arena.Arena
	state  []atomic.Uint64
	owned  atomic.Int64 // blocks
	locks  [64]sync.Mutex
	pieces sync.Pool
}

// New makes an overlay in which everything is the base's. name is shown in
// /proc/PID/maps. The caller owns it and the base, and closes the base last.
func New(base Base, name string) (*Overlay, error) {
	o := &Overlay{base: base, size: base.Size()}
	if o.size <= 0 || o.size%sectorSize != 0 {
		return nil, fmt.Errorf("overlay: a base of %d bytes, not of whole sectors of %d", o.size, sectorSize)
	}
	blocks := uint64(o.size+BlockSize-1) / BlockSize
	var err error
	if o.pages, err = arena.New(name, blocks*BlockSize, arena.HugeOff); err != nil {
		return nil, err
	}
	o.lender, _ = base.(Lender)
	o.state = make([]atomic.Uint64, (blocks+perWord-1)/perWord)
	o.pieces.New = func() any { return new([][]byte) }
	return o, nil
}

// Size is the disk's size in bytes.
func (o *Overlay) Size() int64 { return o.size }

// BlockSize is the logical block size: any sector may be written, at the price of
// the rest of its block the first time.
func (o *Overlay) BlockSize() int { return sectorSize }

// ReadOnly is false.
func (o *Overlay) ReadOnly() bool { return false }

// Memory is the bytes of memory that the overlay takes now.
func (o *Overlay) Memory() uint64 { return uint64(o.owned.Load()) * BlockSize }

// Flush does nothing: nothing is kept.
func (o *Overlay) Flush() error { return nil }

// Close forgets everything. No other call may be under way.
func (o *Overlay) Close() error {
	if o.pages == nil {
		return nil
	}
	err := o.pages.Close()
	o.pages = nil
	return err
}

func (o *Overlay) of(block int64) int {
	return int(o.state[block/perWord].Load() >> (block % perWord * stateBits) & (1<<stateBits - 1))
}

// set makes a block somebody's; its lock is held.
func (o *Overlay) set(block int64, of int) {
	was := o.of(block)
	w, shift := &o.state[block/perWord], block%perWord*stateBits
	for {
		old := w.Load()
		if w.CompareAndSwap(old, old&^((1<<stateBits-1)<<shift)|uint64(of)<<shift) {
			break
		}
	}
	switch {
	case was == own && of != own:
		o.owned.Add(-1)
	case was != own && of == own:
		o.owned.Add(1)
	}
}

func (o *Overlay) lock(block int64) *sync.Mutex { return &o.locks[block%int64(len(o.locks))] }

func (o *Overlay) check(what string, off, n int64) error {
	if off < 0 || n < 0 || off > o.size || n > o.size-off {
		return fmt.Errorf("overlay: %s of %d bytes at %d of %d: %w", what, n, off, o.size, unix.EINVAL)
	}
	return nil
}

// alike is of whom the byte at off is, and how many of the n bytes from there on
// are of the same.
func (o *Overlay) alike(off, n int64) (of int, run int64) {
	b := off / BlockSize
	of = o.of(b)
	end := off + n
	for b++; b*BlockSize < end && o.of(b) == of; b++ {
	}
	return of, min(b*BlockSize, end) - off
}

// ReadV fills bufs, in order, from the disk at off.
func (o *Overlay) ReadV(bufs [][]byte, off int64) error {
	n := vector.Len(bufs)
	if err := o.check("read", off, n); err != nil {
		return err
	}
	c := vector.New(bufs)
	for n > 0 {
		of, run := o.alike(off, n)
		switch of {
		case ofBase:
			if err := o.readBase(&c, off, run); err != nil {
				return err
			}
		case own:
			for src := o.pages.Bytes()[off : off+run]; len(src) > 0; {
				src = src[copy(c.Next(int64(len(src))), src):]
			}
		default:
			for left := run; left > 0; {
				b := c.Next(left)
				clear(b)
				left -= int64(len(b))
			}
		}
		off, n = off+run, n-run
	}
	return nil
}

// readBase fills the next n bytes of c from the base at off.
func (o *Overlay) readBase(c *vector.Vector, off, n int64) error {
	pieces := o.pieces.Get().(*[][]byte)
	defer o.pieces.Put(pieces)
	list := (*pieces)[:0]
	for n0 := n; n0 > 0; {
		b := c.Next(n0)
		list = append(list, b)
		n0 -= int64(len(b))
	}
	err := o.base.ReadV(list, off)
	clear(list)
	*pieces = list[:0]
	return err
}

// Lend passes on what the base lends of the n bytes at off, both multiples of
// BlockSize; see cache.File.Lend.
func (o *Overlay) Lend(off, n int64) (r memory.Run, skip int64) {
	if o.lender == nil || o.check("read", off, n) != nil || n == 0 {
		return memory.Run{}, n
	}
	of, run := o.alike(off, n)
	if of != ofBase {
		return memory.Run{}, run
	}
	return o.lender.Lend(off, run)
}

// Return ends a Lend.
func (o *Overlay) Return(r memory.Run, mapped int) { o.lender.Return(r, mapped) }

// WriteV writes bufs, in order, to the disk at off.
func (o *Overlay) WriteV(bufs [][]byte, off int64) error {
	n := vector.Len(bufs)
	if err := o.check("write", off, n); err != nil {
		return err
	}
	c := vector.New(bufs)
	for n > 0 {
		m := min(n, BlockSize-off%BlockSize)
		if err := o.write(&c, off, m); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// write writes the next n bytes of c, or zeroes if it is nil, within a block.
func (o *Overlay) write(c *vector.Vector, off, n int64) error {
	block := off / BlockSize
	if o.of(block) != own {
		l := o.lock(block)
		l.Lock()
		defer l.Unlock()
		if of := o.of(block); of != own {
			start := block * BlockSize
			end := min(start+BlockSize, o.size)
			page := o.pages.Bytes()[start : start+BlockSize]
			switch {
			case off == start && off+n == end:
			case of == ofBase:
				into := vector.New([][]byte{page[:end-start]})
				if err := o.readBase(&into, start, end-start); err != nil {
					return err
				}
			default:
				clear(page)
			}
			defer o.set(block, own) // when all of it is there
		}
	}
	dst := o.pages.Bytes()[off : off+n]
	if c == nil {
		clear(dst)
		return nil
	}
	for len(dst) > 0 {
		dst = dst[copy(dst, c.Next(int64(len(dst)))):]
	}
	return nil
}

// Discard makes whole blocks zero, and leaves the rest as it is.
func (o *Overlay) Discard(off, n int64) error {
	if err := o.check("discard", off, n); err != nil {
		return err
	}
	first, end := o.whole(off, n)
	return o.drop(first, end)
}

// WriteZeroes makes n bytes at off zero, and frees the memory of whole blocks.
func (o *Overlay) WriteZeroes(off, n int64, _ bool) error {
	if err := o.check("zeroing", off, n); err != nil {
		return err
	}
	first, end := o.whole(off, n)
	if first >= end {
		return o.zero(off, off+n)
	}
	if err := o.zero(off, first*BlockSize); err != nil {
		return err
	}
	if err := o.drop(first, end); err != nil {
		return err
	}
	return o.zero(min(end*BlockSize, off+n), off+n)
}

// whole are the first block that lies in a range as a whole, and the first after
// the last. The disk's last counts, though a part of it may be missing.
func (o *Overlay) whole(off, n int64) (first, end int64) {
	first, end = (off+BlockSize-1)/BlockSize, (off+n)/BlockSize
	if off+n == o.size {
		end = (off + n + BlockSize - 1) / BlockSize
	}
	return first, end
}

func (o *Overlay) zero(off, end int64) error {
	for off < end {
		m := min(end-off, BlockSize-off%BlockSize)
		if err := o.write(nil, off, m); err != nil {
			return err
		}
		off += m
	}
	return nil
}

// drop makes blocks nobody's. Those that follow one another are freed at once, so
// it takes all the locks.
func (o *Overlay) drop(first, end int64) error {
	if first >= end {
		return nil
	}
	for i := range o.locks {
		o.locks[i].Lock()
	}
	defer func() {
		for i := range o.locks {
			o.locks[i].Unlock()
		}
	}()
	for b := first; b < end; {
		of, run := o.alike(b*BlockSize, (end-b)*BlockSize)
		n := run / BlockSize
		if of == own {
			if err := o.pages.Punch(uint64(b), int(n)); err != nil {
				return err
			}
		}
		if of != ofNobody {
			for i := range n {
				o.set(b+i, ofNobody)
			}
		}
		b += n
	}
	return nil
}
