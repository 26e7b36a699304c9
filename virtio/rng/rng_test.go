package rng_test

import (
	"bytes"
	"testing"

	"disco/memory"
	"disco/virtio"
	"disco/virtio/rng"
	"disco/virtio/virtiotest"
)

func TestFill(t *testing.T) {
	for _, refuse := range []uint64{0, virtio.FeatureEventIndex} {
		d := virtiotest.Start(t, rng.New(), virtiotest.Options{Refuse: refuse})
		r := d.Rings[0]
		for i := range 100 {
			u := r.Do(nil, []int{64, 4096})
			if u.Written != 64+4096 {
				t.Fatalf("%d bytes written", u.Written)
			}
			for _, b := range u.Data {
				if bytes.Count(b, []byte{0}) > len(b)/4 {
					t.Fatalf("request %d is not random: %x", i, b)
				}
			}
		}
		if r.Interrupts() == 0 {
			t.Error("no interrupts")
		}
		if d.Paid() == 0 {
			t.Error("the guest paid for nothing")
		}
	}
}

func TestBounded(t *testing.T) {
	d := virtiotest.Start(t, rng.New(), virtiotest.Options{})
	u := d.Rings[0].Do(nil, []int{rng.MaxRequest - 100, 1000, 1 << 20})
	if u.Written != rng.MaxRequest {
		t.Fatalf("%d bytes written, not %d", u.Written, rng.MaxRequest)
	}
	if rest := append(u.Data[1][100:], u.Data[2]...); len(bytes.Trim(rest, "\x00")) != 0 {
		t.Fatal("bytes beyond the limit were written")
	}
	if u := d.Rings[0].Do([][]byte{{1, 2, 3}}, nil); u.Written != 0 {
		t.Fatalf("%d bytes written to a chain without room", u.Written)
	}
}

func TestMisbehaviour(t *testing.T) {
	d := virtiotest.Start(t, rng.New(), virtiotest.Options{})
	d.Rings[0].AddRaw(virtiotest.Descriptor{Addr: memory.GPA(1) << 40, Len: 100, Flags: virtiotest.Write})
	d.Rings[0].Kick()
	d.WaitFailed()
}

func TestRestart(t *testing.T) {
	dev := rng.New()
	d := virtiotest.Start(t, dev, virtiotest.Options{})
	for range 10 {
		d.Rings[0].Do(nil, []int{16})
		d.Stop()
		d.Restart(dev, virtiotest.Options{})
	}
}

func TestQueueDisabled(t *testing.T) {
	virtiotest.Start(t, rng.New(), virtiotest.Options{Disabled: []int{0}}).Stop()
}
