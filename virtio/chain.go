package virtio

import "disco/memory"

// Chain is one descriptor chain taken from a queue: a request. Its buffers are
// pinned guest memory, bounds-checked, and stay valid until Queue.Done. A Chain
// is reused from request to request and belongs to one goroutine.
type Chain struct {
	// Readable are the buffers that the driver filled for the device.
	Readable [][]byte
	// Writable are the buffers that the device fills for the driver.
	Writable [][]byte

	head uint16
	pins []pin
}

type pin struct {
	addr memory.GPA
	n    int
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
