package lan

import (
	"errors"
	"fmt"
	"sync"

	"disco/net/frame"
	"disco/net/segment"
)

// Backend is what is at the far end of a Cable: that of a virtio network device
// (netdev.Backend), of which the first queue is used.
type Backend interface {
	Offloads() frame.Offloads
	Attach(n int, accept frame.Offloads) error
	ReadFrame(queue int, bufs [][]byte, wait bool) (int, error)
	WriteFrame(queue int, bufs [][]byte) error
	Interrupt()
}

// Cable carries frames between a station of a segment and a Backend.
type Cable struct {
	station *segment.Station
	backend Backend
	reader  sync.WaitGroup

	once sync.Once
	err  error // of Close
}

// Plug makes a station by c, whose Offloads and Deliver it sets, and carries its
// frames to the Backend and the Backend's to it. The Backend stays the caller's, who
// closes it after the Cable.
func Plug(s *segment.Segment, c segment.StationConfig, b Backend) (*Cable, error) {
	cable := &Cable{backend: b}
	c.Offloads = b.Offloads()
	var parts [2][]byte
	c.Deliver = func(f []byte) {
		if len(f) < frame.HeaderLen {
			return
		}
		parts[0], parts[1] = f[:frame.HeaderLen], f[frame.HeaderLen:]
		_ = b.WriteFrame(0, parts[:]) // a frame that is not taken is lost, as frames are
		parts = [2][]byte{}
	}
	if err := b.Attach(1, b.Offloads()); err != nil {
		return nil, fmt.Errorf("station %s: %w", c.Name, err)
	}
	var err error
	if cable.station, err = s.Station(c); err != nil {
		return nil, fmt.Errorf("station %s: %w", c.Name, err)
	}
	cable.reader.Go(cable.read)
	return cable, nil
}

// read carries frames of the Backend until that is interrupted or fails.
func (c *Cable) read() {
	b := make([]byte, frame.HeaderLen+frame.MaxLen)
	bufs := [][]byte{b}
	for {
		n, err := c.backend.ReadFrame(0, bufs, true)
		if err != nil {
			return
		}
		if n > frame.HeaderLen {
			_ = c.station.Send(b[:n]) // counted there if it is refused
		}
	}
}

// Close unplugs both ends. Closing twice is harmless.
func (c *Cable) Close() error {
	c.once.Do(func() {
		c.backend.Interrupt()
		c.reader.Wait()
		if c.err = c.station.Close(); c.err != nil {
			c.err = errors.Join(errors.New("station"), c.err)
		}
	})
	return c.err
}
