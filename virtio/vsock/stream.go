package vsock

import (
	"net"

	"disco/devices"
)

const (
	// What one stream holds of each direction. bufAlloc is the credit that the
	// guest gets.
	bufAlloc = 128 << 10
	inSize   = 64 << 10
	pumpSize = 32 << 10
)

// name tells the streams of one guest apart.
type name struct{ guest, host uint32 } // ports

// Things to tell the guest.
const (
	tellRequest = 1 << iota
	tellResponse
	tellCredit
	askCredit
)

// stream is one connection between the guest and a UNIX socket. Its fields
// below the first group are guarded by its service's mu.
//
// It lives while it is routed (the guest's packets find it) or something works
// for it: a goroutine that connects it, or those that carry its bytes.
type stream struct {
	s    *service
	name name
	out  *devices.Pipe // guest to host
	in   *devices.Pipe // host to guest
	// answer gets the guest's answer to a stream that the host began.
	answer chan bool

	sock   *net.UnixConn // nil while it is being connected
	ours   bool          // the host began it
	open   bool          // both sides have agreed
	routed bool
	users  int  // goroutines
	queued bool // in service.ready
	tell   uint8

	guestShut uint32 // what the guest does no more
	hostShut  uint32 // what the host does no more
	toldShut  uint32 // what the guest has been told of that

	// Credit towards the guest (virtio 1.2 §5.10.6.3). All counts wrap.
	sent     uint32
	guestBuf uint32
	guestFwd uint32
	asked    bool

	// Credit from the guest: what came, and how much of it the guest has been
	// told is out of our buffer.
	received uint32
	toldFwd  uint32
}

// credit is how much the guest has room for. A guest that claims to have
// forwarded more than it was sent has none.
func (c *stream) credit() uint32 {
	if used := c.sent - c.guestFwd; used <= c.guestBuf {
		return c.guestBuf - used
	}
	return 0
}

// forwarded is how much of what came is out of our buffer.
func (c *stream) forwarded() uint32 { return c.received - uint32(c.out.Len()) }

// sendable is how much can go to the guest now.
func (c *stream) sendable() uint32 {
	if !c.open {
		return 0
	}
	return min(uint32(c.in.Len()), c.credit())
}

// shutdowns are those to tell now: the host's end of sending only after its
// last byte.
func (c *stream) shutdowns() uint32 {
	v := c.hostShut &^ c.toldShut
	if c.in.Len() > 0 {
		v &^= shutdownSend
	}
	return v
}

// wants says whether there is a packet to send. The guest is told its credit when
// it knows of less than half of our buffer and more is free: at whatever moment
// that becomes true, by bytes that came or by bytes that went.
func (c *stream) wants() bool {
	if c.open && c.received-c.toldFwd > bufAlloc/2 && c.forwarded() != c.toldFwd {
		c.tell |= tellCredit
	}
	if c.open && c.in.Len() > 0 && c.credit() == 0 && !c.asked {
		c.asked = true
		c.tell |= askCredit
	}
	return c.tell != 0 || c.sendable() > 0 || c.open && c.shutdowns() != 0
}

// pumpOut carries the guest's bytes to the socket until the guest is done. When
// the socket takes no more they are dropped, so that the guest learns it
// from us and not from a buffer that stays full.
func (c *stream) pumpOut() {
	defer c.s.leave(c)
	deaf := false
	for buf := make([]byte, pumpSize); ; {
		n := c.out.Take(buf, c.s.stop)
		if n == 0 {
			break
		}
		c.s.moved(c)
		if deaf {
			continue
		}
		if _, err := c.sock.Write(buf[:n]); err != nil {
			deaf = true
			c.s.hostDone(c, shutdownReceive)
		}
	}
	_ = c.sock.CloseWrite()
}

// pumpIn carries the socket's bytes to the guest until either is done.
func (c *stream) pumpIn() {
	defer c.s.leave(c)
	for buf := make([]byte, pumpSize); ; {
		n, err := c.sock.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			m := c.in.Put(p, c.s.stop)
			if m == 0 { // the guest does not read any more
				_ = c.sock.CloseRead()
				return
			}
			p = p[m:]
			c.s.moved(c)
		}
		if err != nil {
			c.s.hostDone(c, shutdownSend)
			return
		}
	}
}
