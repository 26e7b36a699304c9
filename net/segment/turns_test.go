package segment

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"disco/scheduler/flow"
)

// TestSharedRate: what two guests send together is divided by their weights. The
// time is a bubble's: a sender that the machine keeps from its CPU has nothing to
// send, and its part goes to the other.
func TestSharedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := flow.New(flow.Config{Rate: 8 << 20})
		b := newBench(t, PortConfig{Turns: g.NewFlow(3)}, PortConfig{Turns: g.NewFlow(1)}, PortConfig{})
		var enough atomic.Bool
		var all sync.WaitGroup
		for i := 1; i <= 2; i++ {
			all.Go(func() {
				for !enough.Load() {
					b.send(i, plain(mac(3), mac(i), string(make([]byte, 4000))))
				}
			})
		}
		time.Sleep(time.Second)
		enough.Store(true)
		all.Wait()
		x, y := b.ports[0].Stats().Sent.Bytes, b.ports[1].Stats().Sent.Bytes
		if r := float64(x) / float64(y); r < 2.9 || r > 3.1 {
			t.Errorf("3:1 of a segment's rate: %d and %d bytes, %.2f:1", x, y, r)
		}
		if sum := float64(x + y); sum < 0.98*(8<<20) || sum > 1.02*(8<<20) {
			t.Errorf("%.0f bytes were sent in a second of %d a second", sum, 8<<20)
		}
		if b.ports[0].Stats().Throttled == 0 {
			t.Error("nobody has waited")
		}
	})
}

// TestDetachWhileWaiting: a device that stops does not wait for its turn.
func TestDetachWhileWaiting(t *testing.T) {
	slow := flow.New(flow.Config{Rate: 1})
	b := newBench(t, PortConfig{Turns: slow.NewFlow(1)}, PortConfig{Turns: slow.NewFlow(1)}, PortConfig{})
	var all sync.WaitGroup
	for i := 1; i <= 2; i++ {
		all.Go(func() {
			for range 10 {
				b.send(i, plain(mac(3), mac(i), string(make([]byte, 4000))))
			}
		})
	}
	for b.ports[0].Stats().Throttled+b.ports[1].Stats().Throttled == 0 {
		time.Sleep(time.Millisecond)
	}
	b.ports[0].Detach()
	b.ports[1].Detach()
	all.Wait()
}
