package segment_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/net/frame"
	"disco/net/segment"
	"disco/net/tap"
	netdev "disco/virtio/net"
	"disco/virtio/virtiotest"
)

// BenchmarkCarrying is what carries frames of 60 KiB from one guest's transmit queue to
// the other's receive queue, workers and all, without the guests: a segment, and two
// taps on a bridge of the host. The taps are this monitor's own, which copies as
// often as vhost-net does; QEMU without that copies once more.
func BenchmarkCarrying(b *testing.B) {
	const pages = 15
	for _, c := range []struct {
		name string
		make func(b *testing.B) *pair
	}{
		{"copied", func(b *testing.B) *pair { return newPair(b, segment.MapNever, pages) }},
		{"mapped", func(b *testing.B) *pair { return newPair(b, segment.MapAlways, pages) }},
		{"taps", func(b *testing.B) *pair { return tapped(b, pages) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := c.make(b)
			b.SetBytes(int64(len(p.frames) * pages * page))
			before := cpu(b)
			n := 0
			for b.Loop() {
				p.carry(len(p.frames) * (frame.HeaderLen + 66 + pages*page))
				n += len(p.frames)
			}
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(n), "cpu-ns/frame")
		})
	}
}

// carry sends all frames once, and waits until so many bytes have come.
func (p *pair) carry(bytes int) {
	for _, f := range p.frames {
		p.tx.offer(f)
	}
	p.tx.kick()
	for sent, got := 0, 0; sent < len(p.frames) || got < bytes; {
		if _, _, ok := p.tx.next(); ok {
			sent++
			continue
		}
		if n := p.recycle(); n > 0 {
			got += n
			continue
		}
		// The workers are measured, and not who waits for them.
		time.Sleep(20 * time.Microsecond)
	}
}

// tapped is a pair whose frames the host's kernel carries, in a network that ends with
// the thread.
func tapped(b *testing.B, pages int) *pair {
	b.Helper()
	a := pool(b, 256)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatalf("a network namespace needs root: %v", err)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		b.Fatal(err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		b.Fatal(err)
	}
	var guests []*guest
	for i, name := range []string{"one", "two"} {
		t, err := tap.Open(tap.Config{Name: name, Bridge: "bridge"})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := t.Close(); err != nil {
				b.Error(err)
			}
		})
		guests = append(guests, build(b, i+1, nil, netdev.Config{Backend: t}, virtiotest.Options{}, memory.Options{Sharing: true}))
	}
	return pairOf(b, a, guests[0], guests[1], pages)
}
