package netdev

import (
	"testing"
	"testing/synctest"
	"time"
)

// carry has a worker carry frames for some bytes, when a MiB takes so long in either
// way, and says how much of it was carried while it gave way.
func carry(c *courtesy, bytes int, eager, giving time.Duration) (gave float64) {
	const frame = 60 << 10
	n, ways := 0, 0
	for giveWay := c.busy && c.giving; n*frame < bytes; n++ {
		took := eager
		if giveWay {
			took = giving
			ways++
		}
		time.Sleep(took * frame >> 20)
		giveWay = c.wait(frame)
	}
	return float64(ways) / float64(n)
}

// TestCourtesy: the way that is faster is found and kept, and the other one is tried
// now and then, less and less.
func TestCourtesy(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name          string
		eager, giving time.Duration
		least, most   float64
	}{
		{"giving is faster", 60 * ms, 20 * ms, 0.98, 1},
		{"giving is slower", ms, 20 * ms, 0, 0.04},
		{"no difference", ms, ms, 0, 0.04},
		{"giving is a little faster", 11 * ms, 10 * ms, 0, 0.04},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var k courtesy
				if got := carry(&k, 4<<30, c.eager, c.giving); got < c.least || got > c.most {
					t.Errorf("gave way for %.3f of the bytes, want %.2f to %.2f", got, c.least, c.most)
				}
			})
		})
	}
	t.Run("another stream", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var k courtesy
			carry(&k, 4<<30, ms, 2*ms)
			time.Sleep(2 * pause)
			if got := carry(&k, 64<<20, 30*ms, 10*ms); got < 0.9 {
				t.Errorf("gave way for %.3f of the bytes", got)
			}
		})
	})
	t.Run("what is faster changes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var k courtesy
			carry(&k, 1<<30, ms, 20*ms)
			carry(&k, 4<<30, 20*ms, ms)
			if got := carry(&k, 1<<30, 20*ms, ms); got < 0.95 {
				t.Errorf("gave way for %.3f of the bytes", got)
			}
		})
	})
}

// TestCourtesyForMessages: nothing changes for messages, however many, and it ends with
// what it was for.
func TestCourtesyForMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k courtesy
		for range 10_000 {
			if k.wait(66) {
				t.Fatal("gives way for messages")
			}
		}
		carry(&k, 64<<20, 3*time.Millisecond, time.Millisecond)
		if !k.wait(60 << 10) {
			t.Fatal("does not give way for a stream")
		}
		for range 2 * lookWaits {
			k.wait(66)
		}
		if k.wait(66) {
			t.Error("gives way for messages after a stream")
		}
		k.never = true
		if carry(&k, 1<<20, time.Millisecond, time.Millisecond) != 0 || k.wait(60<<10) {
			t.Error("gives way where it cannot")
		}
	})
	var k courtesy
	if n := testing.AllocsPerRun(1000, func() { k.wait(60 << 10) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
