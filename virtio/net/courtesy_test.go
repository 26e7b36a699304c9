package netdev

import (
	"testing"
	"testing/synctest"
	"time"
)

// pair are the workers at the ends of a stream.
type pair [2]courtesy

func newPair(m *Manners) *pair { return &pair{{manners: m}, {manners: m}} }

// carry has the workers carry frames for some bytes, when a MiB takes so long in either
// way, and says how much of it was carried while both gave way. One alone that does
// gains nothing.
func (p *pair) carry(bytes int, eager, giving time.Duration) (gave float64) {
	const frame = 60 << 10
	n, ways := 0, 0
	for ; n*frame < bytes; n++ {
		took := eager
		if p[0].giving && p[1].giving {
			took = giving
			ways++
		}
		time.Sleep(took * frame >> 20)
		for i := range p {
			p[i].wait(frame)
		}
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
				if got := newPair(new(Manners)).carry(4<<30, c.eager, c.giving); got < c.least || got > c.most {
					t.Errorf("gave way for %.3f of the bytes, want %.2f to %.2f", got, c.least, c.most)
				}
			})
		})
	}
	t.Run("another stream", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := newPair(new(Manners))
			k.carry(4<<30, ms, 2*ms)
			time.Sleep(2 * pause)
			if got := k.carry(64<<20, 30*ms, 10*ms); got < 0.9 {
				t.Errorf("gave way for %.3f of the bytes", got)
			}
		})
	})
	t.Run("what is faster changes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := newPair(new(Manners))
			k.carry(1<<30, ms, 20*ms)
			k.carry(4<<30, 20*ms, ms)
			if got := k.carry(1<<30, 20*ms, ms); got < 0.95 {
				t.Errorf("gave way for %.3f of the bytes", got)
			}
		})
	})
}

// TestMannersTogether: both ends of a stream try the other way at the same time, though
// one of them has carried something else before.
func TestMannersTogether(t *testing.T) {
	const ms = time.Millisecond
	for before := range 16 {
		synctest.Test(t, func(t *testing.T) {
			k := newPair(new(Manners))
			for range before * lookWaits {
				time.Sleep(10 * ms)
				k[1].wait(300 << 10)
			}
			if got := k.carry(64<<20, 60*ms, 20*ms); got < 0.8 {
				t.Errorf("after %d MiB of another's, gave way for %.3f of the bytes", before, got)
			}
		})
	}
}

// TestCourtesyForMessages: nothing changes for messages, however many, and it ends with
// what it was for.
func TestCourtesyForMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(new(Manners))
		k := &p[0]
		for range 10_000 {
			if k.wait(66) {
				t.Fatal("gives way for messages")
			}
		}
		p.carry(64<<20, 3*time.Millisecond, time.Millisecond)
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
		if k.wait(60 << 10) {
			t.Error("gives way where it cannot")
		}
	})
	k := courtesy{manners: new(Manners)}
	if n := testing.AllocsPerRun(1000, func() { k.wait(60 << 10) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
