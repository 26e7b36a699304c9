package netdev

import (
	"testing"
	"testing/synctest"
	"time"

	"disco/virtio"
	"disco/virtio/virtiotest"
)

// newTransmitRing is a driver's ring and the device's side of it.
func newTransmitRing(t *testing.T, features uint64) (*virtiotest.Ring, *virtio.Queue) {
	d := virtiotest.New(t, virtiotest.Options{})
	d.Features = features
	r := d.NewRing(64, features)
	return r, d.Queue(r, 0)
}

// sendOne has the driver send a frame, and the worker give it back.
func sendOne(t *testing.T, r *virtiotest.Ring, q *virtio.Queue, m *moderation) {
	t.Helper()
	var chain virtio.Chain
	r.Add([][]byte{{1}}, nil)
	if !q.Next(&chain) {
		t.Fatal("no frame")
	}
	q.Done(&chain, 0)
	m.show(q)
}

// TestModeration: a driver that finds out by itself that its frame was sent is not
// interrupted for it, one that does not is a little later, and from then on at once
// for a while.
func TestModeration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, q := newTransmitRing(t, virtio.FeatureEventIndex)
		defer q.Close()
		var m moderation
		defer m.end(q)
		send := func() { t.Helper(); sendOne(t, r, q, &m) }
		free := func(n int) {
			t.Helper()
			for range n {
				if _, ok := r.Take(); !ok {
					t.Fatal("a frame was not given back")
				}
			}
		}
		interrupts := func(want uint64, when string) {
			t.Helper()
			if got := r.Interrupts(); got != want {
				t.Fatalf("%s: %d interrupts, not %d", when, got, want)
			}
		}

		for range 10 {
			send()
			free(1)
			time.Sleep(3 * moderateTime)
			synctest.Wait()
			if !q.Heard() {
				t.Fatal("the worker was not woken")
			}
			m.look(q)
		}
		interrupts(0, "a driver that looks")

		send()
		m.look(q)
		interrupts(0, "before its time")
		send()
		interrupts(1, "a second frame that the driver does not know of")
		free(2)

		send()
		time.Sleep(moderateTime)
		synctest.Wait()
		m.look(q)
		interrupts(2, "after its time")
		free(1)
		for i := range uint64(leastPenalty) {
			send()
			interrupts(3+i, "after one that waited in vain")
			free(1)
		}
		send()
		interrupts(2+leastPenalty, "once more")
		m.end(q)
		interrupts(3+leastPenalty, "at the end")
	})
}

// TestModerationTrusts: after many interrupts that were saved the worker looks less
// often, until one was put off in vain.
func TestModerationTrusts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, q := newTransmitRing(t, virtio.FeatureEventIndex)
		defer q.Close()
		var m moderation
		defer m.end(q)
		for range moderateTrust {
			sendOne(t, r, q, &m)
			r.Take()
			m.look(q)
		}
		time.Sleep(2 * moderateTime)
		sendOne(t, r, q, &m)
		time.Sleep(2 * moderateTime)
		m.look(q)
		if got := r.Interrupts(); got != 0 {
			t.Fatalf("%d interrupts, and the driver has looked %d times by itself", got, moderateTrust)
		}
		time.Sleep(moderateLong)
		m.look(q)
		if got := r.Interrupts(); got != 1 {
			t.Fatalf("%d interrupts for a frame that the driver does not look for", got)
		}
		r.Take()
		if m.patience() != moderateTime {
			t.Error("it is trusted still")
		}
	})
}

// TestModerationWithoutEvents: a driver that can not say what it knows is interrupted at
// once.
func TestModerationWithoutEvents(t *testing.T) {
	r, q := newTransmitRing(t, 0)
	defer q.Close()
	var m moderation
	defer m.end(q)
	for i := range uint64(4) {
		sendOne(t, r, q, &m)
		if r.Interrupts() != i+1 {
			t.Fatalf("%d interrupts after %d frames", r.Interrupts(), i+1)
		}
	}
}
