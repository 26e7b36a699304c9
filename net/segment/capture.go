package segment

import (
	"slices"
	"sync"
	"time"

	"disco/net/frame"
)

// capture is somebody who sees all frames.
type capture struct {
	mu  sync.RWMutex // held while see is called
	see func(time.Time, [][]byte)
	off bool
}

// Capture has see called with every frame that is accepted from a port or
// station, before it is delivered: bufs are its frame.Header, then its bytes. It
// is called on the goroutines that send, several at once, and must not keep bufs.
// stop ends it, and returns when see is not called any more.
func (s *Segment) Capture(see func(t time.Time, bufs [][]byte)) (stop func()) {
	c := &capture{see: see}
	s.mu.Lock()
	list := append(slices.Clone(*s.captures.Load()), c)
	s.captures.Store(&list)
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		list := slices.DeleteFunc(slices.Clone(*s.captures.Load()), func(o *capture) bool { return o == c })
		s.captures.Store(&list)
		s.mu.Unlock()
		c.mu.Lock()
		c.off = true
		c.mu.Unlock()
	}
}

// show shows a frame to all who capture.
func (s *Segment) show(list []*capture, d *feed, f *frame.Frame) {
	var head [frame.HeaderLen]byte
	f.Header.Put(head[:])
	d.bufs = append(d.bufs[:0], head[:])
	for i := range f.Pieces {
		d.bufs = append(d.bufs, f.Pieces[i].Bytes)
	}
	now := time.Now()
	for _, c := range list {
		c.mu.RLock()
		if !c.off {
			c.see(now, d.bufs)
		}
		c.mu.RUnlock()
	}
	clear(d.bufs)
}
