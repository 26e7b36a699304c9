package netdev

// lookWaits and lookBytes: after so many waits it is looked at how much was carried, and
// from so many bytes on that is much.
const (
	lookWaits = 4
	lookBytes = 64 << 10
)

// courtesy decides when the worker of one queue gives way (virtio.Queue.GiveWay): while
// much is carried, if that is the manners of its network. For a few messages it is not
// worth changing a thread's policy. It is the worker's.
type courtesy struct {
	never   bool // it cannot
	manners *Manners

	waits, bytes int  // since it was looked at
	giving       bool // much is carried, and it gives way
}

// wait says whether to give way in the wait that is next, when so many bytes were
// carried since the last one.
func (c *courtesy) wait(bytes int) bool {
	if c.never {
		return false
	}
	c.bytes += bytes
	if c.waits++; c.waits < lookWaits {
		return c.giving
	}
	bytes = c.bytes
	c.waits, c.bytes = 0, 0
	c.giving = bytes >= lookBytes && c.manners.carried(bytes)
	return c.giving
}
