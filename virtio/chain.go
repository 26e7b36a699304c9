package virtio

import (
	"errors"
	"fmt"
	"math"

	"disco/memory"
)

// Chain is one descriptor chain taken from a queue: a request. Its buffers are
// pinned guest memory, bounds-checked, and stay valid until Queue.Done. A Chain
// is reused from request to request and belongs to one goroutine.
type Chain struct {
	// Readable are the buffers that the driver filled for the device.
	Readable [][]byte
	// Writable are the buffers that the device fills for the driver.
	Writable [][]byte
	// Room, of a chain that was taken by NextRoom or NextLoan, are those buffers in place of
	// Writable: guest memory, but not pinned.
	Room []Buffer
	// Loans, of a chain that was taken by NextLoan, are in place of Readable. They
	// are given back by Queue.Done.
	Loans []memory.Loan

	space    *memory.Space
	roomy    bool // from NextRoom
	lent     bool // from NextLoan
	head     uint16
	taken    bool     // from Next to Done
	segments [][]byte // behind Readable, then Writable
	readable int      // how many of segments are Readable
	total    uint64   // bytes
	pins     []pin
}

// Buffer is a piece of guest memory.
type Buffer struct {
	Addr memory.GPA
	Len  int // bytes
}

// Claim pins a part of Room to be written, until Queue.Done, and appends its
// bytes to dst. It does not allocate when dst has room.
func (c *Chain) Claim(dst [][]byte, b Buffer) ([][]byte, error) {
	return c.claim(dst, b, memory.Write)
}

// Replace is Claim for a device that has no need of what the part holds, and of
// which it may leave any bytes as zeros.
func (c *Chain) Replace(dst [][]byte, b Buffer) ([][]byte, error) {
	return c.claim(dst, b, memory.Overwrite)
}

func (c *Chain) claim(dst [][]byte, b Buffer, acc memory.Access) ([][]byte, error) {
	dst, err := c.space.Pin(dst, b.Addr, b.Len, acc)
	if err != nil {
		return dst, fmt.Errorf("buffer %#x+%#x: %w", uint64(b.Addr), b.Len, err)
	}
	c.pins = append(c.pins, pin{b.Addr, b.Len, acc})
	return dst, nil
}

// add pins one descriptor's buffer. A driver puts the writable buffers after
// the readable ones, and no more than 2^32 bytes in all (virtio 1.2 §2.7.4.2,
// §2.7.5.2).
func (c *Chain) add(d descriptor) error {
	acc := memory.Read
	if d.flags&flagWrite != 0 {
		acc = memory.Write
	} else if c.readable < len(c.segments) || len(c.Room) > 0 {
		return errors.New("a readable buffer follows a writable one")
	}
	if d.len == 0 {
		return nil
	}
	if c.total += uint64(d.len); c.total > math.MaxUint32 {
		return errors.New("the chain is longer than 4 GiB")
	}
	if acc == memory.Write && c.roomy {
		if err := c.space.Check(d.addr, int(d.len)); err != nil {
			return fmt.Errorf("buffer %#x+%#x: %w", uint64(d.addr), d.len, err)
		}
		c.Room = append(c.Room, Buffer{d.addr, int(d.len)})
		return nil
	}
	if acc == memory.Read && c.lent {
		loans, err := c.space.Borrow(c.Loans, d.addr, int(d.len))
		if err != nil {
			return fmt.Errorf("buffer %#x+%#x: %w", uint64(d.addr), d.len, err)
		}
		c.Loans = loans
		return nil
	}
	segments, err := c.space.Pin(c.segments, d.addr, int(d.len), acc)
	if err != nil {
		return fmt.Errorf("buffer %#x+%#x: %w", uint64(d.addr), d.len, err)
	}
	c.segments = segments
	c.pins = append(c.pins, pin{d.addr, int(d.len), acc})
	if acc == memory.Read {
		c.readable = len(segments)
	}
	return nil
}

// clear unpins everything.
func (c *Chain) clear() {
	for _, p := range c.pins {
		c.space.Unpin(p.addr, p.n, p.acc)
	}
	for _, l := range c.Loans {
		c.space.Return(l)
	}
	*c = Chain{segments: c.segments[:0], pins: c.pins[:0], Room: c.Room[:0], Loans: c.Loans[:0]}
}

type pin struct {
	addr memory.GPA
	n    int
	acc  memory.Access
}

// Len sums the lengths of buffers.
func Len(buffers [][]byte) int {
	n := 0
	for _, b := range buffers {
		n += len(b)
	}
	return n
}

// Read copies the next bytes of the readable buffers to p, takes them off the
// chain, and says how many there were: less than len(p) when it ran out.
func (c *Chain) Read(p []byte) int {
	n := 0
	for n < len(p) && len(c.Readable) > 0 {
		m := copy(p[n:], c.Readable[0])
		n += m
		if c.Readable[0] = c.Readable[0][m:]; len(c.Readable[0]) == 0 {
			c.Readable = c.Readable[1:]
		}
	}
	return n
}

// Write copies p to the next bytes of the writable buffers, takes them off the
// chain, and says how many fitted.
func (c *Chain) Write(p []byte) int {
	n := 0
	for n < len(p) && len(c.Writable) > 0 {
		m := copy(c.Writable[0], p[n:])
		n += m
		if c.Writable[0] = c.Writable[0][m:]; len(c.Writable[0]) == 0 {
			c.Writable = c.Writable[1:]
		}
	}
	return n
}
