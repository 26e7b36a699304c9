package segment

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestSeats: the worker of a guest that sends much runs where the one is that gets
// most of it, while that is so, and not for little, or for many.
func TestSeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var went []int
		refuse := false
		b := newBenchOf(t, Config{RunOn: func(s *Seat) error {
			if refuse {
				return errors.New("refused")
			}
			if s == nil {
				went = append(went, -1)
			} else {
				went = append(went, s.CPUs[0])
			}
			return nil
		}}, PortConfig{}, PortConfig{}, PortConfig{}, PortConfig{})
		for i, n := range []int{0, 1, 2} {
			b.ports[i].Sit(&Seat{CPUs: []int{n}})
		}
		// send is so many windows with bytes to each guest.
		send := func(windows, n int, to ...int) {
			for range windows {
				for _, i := range to {
					for left := n; left > 0; left -= 32 << 10 {
						b.send(1, plain(mac(i), mac(1), string(make([]byte, 16<<10))))
					}
				}
				time.Sleep(seatTime)
				b.ports[0].Flush(0)
			}
		}
		for _, c := range []struct {
			what    string
			windows int
			bytes   int
			to      []int
			went    []int
		}{
			{"little", 10, 256 << 10, []int{2}, nil},
			{"much, not for long", seatWindows - 1, 2 << 20, []int{2}, nil},
			{"to many", 10, 2 << 20, []int{2, 3}, nil},
			{"to a guest on several nodes", 10, 2 << 20, []int{4}, nil},
			{"much", 10, 2 << 20, []int{2}, []int{1}},
			{"to another", seatWindows, 2 << 20, []int{3}, []int{2}},
			{"to many again", seatWindows, 2 << 20, []int{2, 3, 4}, []int{-1}},
		} {
			went = nil
			send(c.windows, c.bytes, c.to...)
			if !slices.Equal(went, c.went) {
				t.Errorf("%s: the worker went to %v, not %v", c.what, went, c.went)
			}
		}

		went = nil
		send(seatWindows+1, 2<<20, 3)
		b.ports[0].Detach()
		if err := b.ports[0].Attach(1, offloads, b.sinks[0]); err != nil {
			t.Fatal(err)
		}
		send(seatWindows+1, 2<<20, 3)
		if !slices.Equal(went, []int{2, 2}) {
			t.Errorf("a device that is started anew: the worker went to %v", went)
		}
		refuse = true
		send(2*seatWindows, 2<<20, 2)
		refuse = false
		send(2*seatWindows, 2<<20, 2)
		if !slices.Equal(went, []int{2, 2}) {
			t.Errorf("a worker that the host refused to move went to %v", went)
		}
	})
}
