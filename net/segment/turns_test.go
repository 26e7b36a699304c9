package segment

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"disco/scheduler/flow"
)

// TestSharedRate: what two guests send together is divided by their weights, and a
// device that stops does not wait for its turn.
func TestSharedRate(t *testing.T) {
	g := flow.New(flow.Config{Rate: 8 << 20})
	b := newBench(t, PortConfig{Turns: g.NewFlow(3)}, PortConfig{Turns: g.NewFlow(1)}, PortConfig{})
	var enough atomic.Bool
	var all sync.WaitGroup
	sent := func(i int) uint64 { return b.ports[i].Stats().Sent.Bytes }
	for i := 1; i <= 2; i++ {
		all.Go(func() {
			for !enough.Load() {
				b.send(i, plain(mac(3), mac(i), string(make([]byte, 4000))))
			}
		})
	}
	for sent(0) < 100_000 || sent(1) < 100_000 {
		time.Sleep(time.Millisecond)
	}
	x, y := sent(0), sent(1)
	for sent(0)+sent(1)-x-y < 4<<20 {
		time.Sleep(time.Millisecond)
	}
	x, y = sent(0)-x, sent(1)-y
	enough.Store(true)
	all.Wait()
	if r := float64(x) / float64(y); r < 2.5 || r > 3.5 {
		t.Errorf("3:1 of a segment's rate: %d and %d bytes, %.2f:1", x, y, r)
	}
	if b.ports[0].Stats().Throttled == 0 {
		t.Error("nobody has waited")
	}

	slow := flow.New(flow.Config{Rate: 1})
	s := newBench(t, PortConfig{Turns: slow.NewFlow(1)}, PortConfig{Turns: slow.NewFlow(1)}, PortConfig{})
	for i := 1; i <= 2; i++ {
		all.Go(func() {
			for range 10 {
				s.send(i, plain(mac(3), mac(i), string(make([]byte, 4000))))
			}
		})
	}
	for s.ports[0].Stats().Throttled+s.ports[1].Stats().Throttled == 0 {
		time.Sleep(time.Millisecond)
	}
	s.ports[0].Detach()
	s.ports[1].Detach()
	all.Wait()
}
