package virtio

// Queue is the device's side of one split virtqueue (virtio 1.2 §2.7).
type Queue struct{}

// Index is the queue's number on its device.
func (q *Queue) Index() int { panic("being written") }

// Size is the number of descriptors.
func (q *Queue) Size() uint16 { panic("being written") }

// Next takes the next available chain. It returns false when there is none. If
// the driver broke the ring, the device stops (NEEDS_RESET) and Next returns
// false from then on.
func (q *Queue) Next(c *Chain) bool { panic("being written") }

// Done gives a chain back to the driver, written bytes of its writable buffers
// filled, and unpins it. The driver is told by the next Flush.
func (q *Queue) Done(c *Chain, written uint32) { panic("being written") }

// Flush interrupts the driver if chains were given back since the last Flush
// and it wants to know (virtio 1.2 §2.7.7.2, §2.7.10).
func (q *Queue) Flush() { panic("being written") }

// Wait blocks until a chain may be available, and returns false when the
// device is stopping. It enables the driver's kicks only while it waits.
func (q *Queue) Wait() bool { panic("being written") }

// Serve runs a worker: it hands each chain to handle, gives it back with the
// count that handle returns, and flushes after each batch, until Stop.
func (q *Queue) Serve(handle func(c *Chain) (written uint32)) { panic("being written") }

// Fail stops the device because its driver misbehaved: NEEDS_RESET is set, the
// configuration interrupt raised, and err logged once.
func (q *Queue) Fail(err error) { panic("being written") }
