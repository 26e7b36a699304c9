package virtio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"disco/memory"
	"disco/virtio"
	"disco/virtio/virtiotest"
)

// pair is a queue with both sides in the test's hands.
func pair(t testing.TB, size uint16, features uint64) (*virtiotest.Driver, *virtiotest.Ring, *virtio.Queue) {
	t.Helper()
	d := virtiotest.New(t, virtiotest.Options{Memory: 8 << 20})
	d.Features = features
	r := d.NewRing(size, features)
	q := d.Queue(r, 0)
	t.Cleanup(q.Close)
	return d, r, q
}

const both = virtio.FeatureEventIndex | virtio.FeatureIndirect

func TestChains(t *testing.T) {
	for name, features := range map[string]uint64{"plain": 0, "event index": virtio.FeatureEventIndex, "indirect": both} {
		t.Run(name, func(t *testing.T) {
			_, r, q := pair(t, 8, features)
			add := r.Add
			if features&virtio.FeatureIndirect != 0 {
				add = r.AddIndirect
			}
			var c virtio.Chain
			if q.Next(&c) {
				t.Fatal("a chain in an empty ring")
			}
			n := 2000
			if features == virtio.FeatureEventIndex {
				n = 70000 // so that the indexes wrap
			}
			for i := range n {
				want := fmt.Appendf(nil, "chain %d", i)
				id := add([][]byte{want[:3], want[3:]}, []int{5, 100})
				if !q.Next(&c) {
					t.Fatalf("chain %d does not come", i)
				}
				if len(c.Readable) != 2 || len(c.Writable) != 2 || virtio.Len(c.Writable) != 105 {
					t.Fatalf("chain %d is %d+%d buffers", i, len(c.Readable), len(c.Writable))
				}
				var got [64]byte
				n := c.Read(got[:])
				if !bytes.Equal(got[:n], want) {
					t.Fatalf("read %q, not %q", got[:n], want)
				}
				if n := c.Write(want); n != len(want) {
					t.Fatalf("wrote %d", n)
				}
				q.Done(&c, uint32(len(want)))
				if _, ok := r.Take(); ok {
					t.Fatal("the driver sees a chain before Flush")
				}
				q.Flush()
				u, ok := r.Take()
				if !ok || u.ID != id || int(u.Written) != len(want) {
					t.Fatalf("used %+v, %v; chain %d", u, ok, id)
				}
				if data := append(u.Data[0], u.Data[1]...); !bytes.Equal(data[:len(want)], want) {
					t.Fatalf("written %q", data[:len(want)])
				}
				if r.Interrupts() != uint64(i+1) {
					t.Fatalf("%d interrupts after chain %d", r.Interrupts(), i)
				}
			}
		})
	}
}

func TestOutOfOrder(t *testing.T) {
	_, r, q := pair(t, 8, both)
	var cs [4]virtio.Chain
	for i := range cs {
		r.Add(nil, []int{10 + i})
		if !q.Next(&cs[i]) {
			t.Fatal("no chain")
		}
	}
	for _, i := range []int{2, 0, 3, 1} {
		q.Done(&cs[i], uint32(i))
	}
	q.Flush()
	for _, i := range []int{2, 0, 3, 1} {
		if u, ok := r.Take(); !ok || int(u.Written) != i || len(u.Data[0]) != 10+i {
			t.Fatalf("used %+v, %v", u, ok)
		}
	}
	if r.Interrupts() != 1 {
		t.Errorf("%d interrupts for one flush", r.Interrupts())
	}
}

func TestInterruptSuppression(t *testing.T) {
	for _, features := range []uint64{0, virtio.FeatureEventIndex} {
		_, r, q := pair(t, 8, features)
		var c virtio.Chain
		one := func() {
			r.Add(nil, []int{1})
			q.Next(&c)
			q.Done(&c, 1)
			q.Flush()
		}
		r.Quiet(true)
		for range 3 {
			one()
		}
		if r.Interrupts() != 0 {
			t.Errorf("features %#x: interrupts though quiet", features)
		}
		for range 3 {
			r.Take()
		}
		r.Quiet(false)
		one()
		if r.Interrupts() != 1 {
			t.Errorf("features %#x: %d interrupts, not 1", features, r.Interrupts())
		}
		q.Flush()
		if r.Interrupts() != 1 {
			t.Errorf("features %#x: an empty flush interrupts", features)
		}
	}
}

// TestShow: what is shown can be taken, and is interrupted for by the next Flush
// unless the driver has taken it.
func TestShow(t *testing.T) {
	_, r, q := pair(t, 8, virtio.FeatureEventIndex)
	show := func(n int) {
		var c virtio.Chain
		for range n {
			r.Add(nil, []int{1})
			q.Next(&c)
			q.Done(&c, 1)
		}
		q.Show()
	}
	for _, c := range []struct {
		shown, taken int
		interrupts   uint64
	}{{1, 1, 0}, {1, 0, 1}, {2, 3, 1}, {3, 2, 2}} {
		show(c.shown)
		for range c.taken {
			if _, ok := r.Take(); !ok {
				t.Fatal("a chain was not shown")
			}
		}
		q.Flush()
		if r.Interrupts() != c.interrupts {
			t.Fatalf("%d shown, %d taken: %d interrupts in all, not %d", c.shown, c.taken, r.Interrupts(), c.interrupts)
		}
		if n := q.Untold(); n != 0 {
			t.Fatalf("%d chains that the driver was not told of after a flush", n)
		}
	}
	r.Take()
	show(2)
	if n := q.Untold(); n != 2 {
		t.Errorf("%d chains untold, not 2", n)
	}
	r.Take()
	if n := q.Untold(); n != 1 {
		t.Errorf("%d chains untold when one was taken, not 1", n)
	}
}

func TestKickSuppression(t *testing.T) {
	for _, features := range []uint64{0, virtio.FeatureEventIndex} {
		_, r, q := pair(t, 8, features)
		waits := make(chan bool)
		go func() { waits <- q.Wait() }()
		time.Sleep(10 * time.Millisecond)
		r.Add(nil, []int{1})
		if !r.Kick() {
			t.Errorf("features %#x: no kick while the device waits", features)
		}
		if !<-waits {
			t.Errorf("features %#x: Wait is false", features)
		}
		r.Add(nil, []int{1})
		if r.Kick() {
			t.Errorf("features %#x: a kick while the device is busy", features)
		}
	}
}

// TestNoKickLost has a driver that kicks only when it is asked to, against a
// device that sleeps as often as it can.
func TestNoKickLost(t *testing.T) {
	n := 20000
	if testing.Short() {
		n = 2000
	}
	for name, features := range map[string]uint64{"flags": 0, "event index": both} {
		t.Run(name, func(t *testing.T) {
			_, r, q := pair(t, 16, features)
			done := make(chan struct{})
			go func() {
				defer close(done)
				q.Serve(func(c *virtio.Chain) uint32 {
					var p [8]byte
					return uint32(c.Write(p[:c.Read(p[:])]))
				})
			}()
			rnd := rand.New(rand.NewPCG(7, 7))
			kicks, sent, got := 0, 0, 0
			var p [8]byte
			for got < n {
				for burst := rnd.IntN(4); burst >= 0 && sent < n && r.Free() >= 2; burst-- {
					binary.LittleEndian.PutUint64(p[:], uint64(sent))
					r.Add([][]byte{p[:]}, []int{8})
					sent++
				}
				if r.Kick() {
					kicks++
				}
				for u := r.Wait(); ; {
					if v := binary.LittleEndian.Uint64(u.Data[0]); v != uint64(got) {
						t.Fatalf("chain %d came back as %d", v, got)
					}
					got++
					var ok bool
					if u, ok = r.Take(); !ok {
						break
					}
				}
				for range rnd.IntN(50) {
					_ = rnd.Uint64() // so that the device falls asleep at times
				}
			}
			t.Logf("%d chains, %d kicks, %d interrupts", n, kicks, r.Interrupts())
			q.Stop()
			<-done
		})
	}
}

func TestStop(t *testing.T) {
	for range 200 {
		d, r, q := pair(t, 8, both)
		waits := make(chan bool)
		go func() { waits <- q.Wait() }()
		if rand.IntN(2) == 0 {
			time.Sleep(100 * time.Microsecond)
		}
		q.Stop()
		if <-waits {
			t.Fatal("Wait is true after Stop")
		}
		r.Add(nil, []int{1})
		r.Kick()
		var c virtio.Chain
		if q.Next(&c) || q.Wait() {
			t.Fatal("Next or Wait is true after Stop")
		}
		q.Close()
		q.Kick()
		d.Stop()
	}
}

func TestDoneAfterFailure(t *testing.T) {
	d, r, q := pair(t, 8, both)
	r.Add(nil, []int{4})
	var c virtio.Chain
	if !q.Next(&c) {
		t.Fatal("no chain")
	}
	before := d.Space.Pins()
	q.Fail(errors.New("bad request"))
	q.Fail(errors.New("again"))
	q.Done(&c, 4)
	q.Flush()
	if d.Space.Pins() != before-1 {
		t.Error("the chain is still pinned")
	}
	if _, ok := r.Take(); ok || r.Interrupts() != 0 {
		t.Error("a failed queue answers")
	}
	if err := d.Failed(); err == nil || err.Error() != "queue 0: bad request" {
		t.Errorf("failed with %v", err)
	}
}

func TestMisuse(t *testing.T) {
	_, r, q := pair(t, 8, both)
	mustPanic := func(name string, f func()) {
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", name)
			}
		}()
		f()
	}
	var c virtio.Chain
	mustPanic("Done without Next", func() { q.Done(&c, 0) })
	r.Add(nil, []int{1})
	q.Next(&c)
	mustPanic("Next without Done", func() { q.Next(&c) })
	q.Done(&c, 0)
}

// TestBadChains are drivers that break the rules of virtio 1.2 §2.7.
func TestBadChains(t *testing.T) {
	type D = virtiotest.Descriptor
	const (
		next, write, indirect = virtiotest.Next, virtiotest.Write, virtiotest.Indirect

		table = 0x200000
		end   = 8 << 20
	)
	for name, c := range map[string]struct {
		chain    []D
		table    []D
		features uint64
		prepare  func(r *virtiotest.Ring)
		want     string // of the error; none if it is fine
		segments int
	}{
		"fine":                      {chain: []D{{Addr: 0x1000, Len: 16}, {Addr: 0x2000, Len: 16, Flags: write}}, segments: 2},
		"the last byte":             {chain: []D{{Addr: end - 1, Len: 1}}, segments: 1},
		"empty buffer":              {chain: []D{{Addr: 1 << 60}, {Addr: 0x1000, Len: 1}}, segments: 1},
		"outside RAM":               {chain: []D{{Addr: end, Len: 1}}, want: "not guest RAM"},
		"over the end":              {chain: []D{{Addr: end - 1, Len: 2}}, want: "not guest RAM"},
		"wraps":                     {chain: []D{{Addr: ^memory.GPA(0) - 7, Len: 16}}, want: "not guest RAM"},
		"huge":                      {chain: []D{{Addr: 0x1000, Len: 0xffffffff}}, want: "not guest RAM"},
		"second is bad":             {chain: []D{{Addr: 0x1000, Len: 16}, {Addr: end, Len: 1}}, want: "not guest RAM"},
		"readable last":             {chain: []D{{Addr: 0x1000, Len: 16, Flags: write}, {Addr: 0x2000, Len: 16}}, want: "follows"},
		"loop":                      {chain: []D{{Addr: 0x1000, Len: 16, Flags: next, Next: 0}}, want: "loops"},
		"next too large":            {chain: []D{{Addr: 0x1000, Len: 16, Flags: next, Next: 8}}, want: "descriptor 8 of 8"},
		"head too large":            {prepare: func(r *virtiotest.Ring) { r.Offer(0xffff) }, want: "descriptor 65535 of 8"},
		"index jumps":               {prepare: func(r *virtiotest.Ring) { r.SetAvailable(9) }, want: "available index 9"},
		"index goes back":           {prepare: func(r *virtiotest.Ring) { r.SetAvailable(0xffff) }, want: "available index 65535"},
		"table":                     {features: both, chain: []D{{Addr: table, Len: 32, Flags: indirect}}, table: []D{{Addr: 0x1000, Len: 16, Flags: next, Next: 1}, {Addr: 0x2000, Len: 16, Flags: write}}, segments: 2},
		"table said to be writable": {features: both, chain: []D{{Addr: table, Len: 16, Flags: indirect | write}}, table: []D{{Addr: 0x1000, Len: 16}}, segments: 1},
		"table at an odd address":   {features: both, chain: []D{{Addr: table + 3, Len: 16, Flags: indirect}}, segments: 0},
		"buffer, then table":        {features: both, chain: []D{{Addr: 0x1000, Len: 16}, {Addr: table, Len: 16, Flags: indirect}}, table: []D{{Addr: 0x1000, Len: 16, Flags: write}}, segments: 2},
		"table not negotiated":      {chain: []D{{Addr: table, Len: 16, Flags: indirect}}, want: "without the feature"},
		"table and next":            {features: both, chain: []D{{Addr: table, Len: 16, Flags: indirect | next}}, want: "next"},
		"table in a table":          {features: both, chain: []D{{Addr: table, Len: 16, Flags: indirect}}, table: []D{{Addr: table, Len: 16, Flags: indirect}}, want: "inside"},
		"empty table":               {features: both, chain: []D{{Addr: table, Flags: indirect}}, want: "0 bytes"},
		"table of 17 bytes":         {features: both, chain: []D{{Addr: table, Len: 17, Flags: indirect}}, want: "17 bytes"},
		"table outside RAM":         {features: both, chain: []D{{Addr: end, Len: 16, Flags: indirect}}, want: "not guest RAM"},
		"table wraps":               {features: both, chain: []D{{Addr: ^memory.GPA(0) - 15, Len: 32, Flags: indirect}}, want: "not guest RAM"},
		"loop in a table":           {features: both, chain: []D{{Addr: table, Len: 16, Flags: indirect}}, table: []D{{Addr: 0x1000, Len: 1, Flags: next}}, want: "loops"},
		"next outside a table":      {features: both, chain: []D{{Addr: table, Len: 16, Flags: indirect}}, table: []D{{Addr: 0x1000, Len: 1, Flags: next, Next: 1}}, want: "descriptor 1 of an indirect table of 1"},
		"4 GiB": {features: both, chain: []D{{Addr: table, Len: 16 * 5, Flags: indirect}}, table: []D{
			{Addr: 0, Len: 8 << 20, Flags: next, Next: 1}, {Addr: 0, Len: 8 << 20, Flags: next, Next: 2}, {Addr: 0, Len: 8 << 20}}, segments: 3},
	} {
		t.Run(name, func(t *testing.T) {
			d, r, q := pair(t, 8, c.features)
			pins := d.Space.Pins()
			for i, e := range c.table {
				d.PutDescriptor(table, i, e)
			}
			if c.prepare != nil {
				c.prepare(r)
			} else {
				r.AddRaw(c.chain...)
			}
			var got virtio.Chain
			ok := q.Next(&got)
			err := d.Failed()
			switch {
			case c.want == "":
				if !ok || err != nil {
					t.Fatalf("Next %v, failed with %v", ok, err)
				}
				if n := len(got.Readable) + len(got.Writable); n != c.segments {
					t.Errorf("%d segments, not %d", n, c.segments)
				}
				q.Done(&got, 0)
			case ok:
				t.Fatal("no error")
			case err == nil || !strings.Contains(err.Error(), c.want):
				t.Fatalf("error %v, not %q", err, c.want)
			case q.Next(&got) || q.Wait():
				t.Error("the queue goes on after a failure")
			}
			if d.Space.Pins() != pins {
				t.Error("a pin is left")
			}
		})
	}
}

// TestChainTooLong: more than 4 GiB in all, every buffer fine by itself.
func TestChainTooLong(t *testing.T) {
	d, r, q := pair(t, 1024, both)
	pins := d.Space.Pins()
	const table = 0x400000
	for i := range 513 {
		d.PutDescriptor(table, i, virtiotest.Descriptor{Addr: 0, Len: 8 << 20, Flags: virtiotest.Next, Next: uint16(i + 1)})
	}
	r.AddRaw(virtiotest.Descriptor{Addr: table, Len: 16 * 513, Flags: virtiotest.Indirect})
	var c virtio.Chain
	if q.Next(&c) || !strings.Contains(d.Failed().Error(), "4 GiB") {
		t.Errorf("failed with %v", d.Failed())
	}
	if d.Space.Pins() != pins {
		t.Error("a pin is left")
	}
}

func TestRingsAnywhere(t *testing.T) {
	// Every alignment that is allowed, and rings over page boundaries.
	for _, at := range []memory.GPA{0, 2, 4, 6, 0xffc, 0xffe} {
		d := virtiotest.New(t, virtiotest.Options{Memory: 1 << 20})
		failed := error(nil)
		q, err := virtio.NewQueue(virtio.QueueConfig{
			Size: 512, Desc: 0x10ff0, Avail: 0x20000 + at, Used: 0x30000 + at&^3,
			Space: d.Space, Interrupt: func() {}, Failed: func(err error) { failed = err },
		})
		if err != nil {
			t.Fatal(err)
		}
		var c virtio.Chain
		for i := range 1024 {
			d.PutDescriptor(0x10ff0, i%512, virtiotest.Descriptor{Addr: memory.GPA(i) * 8, Len: 8})
			d.Put(0x20000+at+4+2*memory.GPA(i%512), binary.LittleEndian.AppendUint16(nil, uint16(i%512)))
			d.Put(0x20000+at+2, binary.LittleEndian.AppendUint16(nil, uint16(i+1)))
			if !q.Next(&c) {
				t.Fatalf("offset %#x: chain %d: %v", at, i, failed)
			}
			q.Done(&c, 7)
			q.Flush()
			used := d.Get(0x30000+at&^3, 4+8*512)
			if e := used[4+8*(i%512):]; binary.LittleEndian.Uint16(used[2:]) != uint16(i+1) || e[0] != byte(i) || e[4] != 7 {
				t.Fatalf("offset %#x: used %d: %x", at, i, e[:8])
			}
		}
		q.Close()
	}
}

func TestQueueAllocs(t *testing.T) {
	for _, features := range []uint64{0, both} {
		d, _, _ := pair(t, 16, features)
		// By hand, because the test driver allocates.
		q, err := virtio.NewQueue(virtio.QueueConfig{
			Size: 16, Desc: 0x1000, Avail: 0x2000, Used: 0x3000, Features: features,
			Space: d.Space, Interrupt: func() {}, Failed: func(err error) { t.Error(err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 16 {
			d.PutDescriptor(0x1000, i, virtiotest.Descriptor{Addr: 0x5000, Len: 64})
			if features != 0 {
				d.PutDescriptor(0x1000, i, virtiotest.Descriptor{Addr: 0x4000, Len: 32, Flags: virtiotest.Indirect})
			}
		}
		d.PutDescriptor(0x4000, 0, virtiotest.Descriptor{Addr: 0x5000, Len: 64, Flags: virtiotest.Next, Next: 1})
		d.PutDescriptor(0x4000, 1, virtiotest.Descriptor{Addr: 0x6000, Len: 64, Flags: virtiotest.Write})
		var c virtio.Chain
		var index [2]byte
		offer := func() {
			binary.LittleEndian.PutUint16(index[:], binary.LittleEndian.Uint16(index[:])+1)
			if err := d.Space.WriteAt(index[:], 0x2002); err != nil {
				t.Fatal(err)
			}
		}
		if n := testing.AllocsPerRun(1000, func() {
			offer()
			if !q.Wait() || !q.Next(&c) {
				t.Fatal("no chain")
			}
			q.Done(&c, 0)
			q.Flush()
		}); n != 0 {
			t.Errorf("features %#x: %v allocations", features, n)
		}
		// The same through a sleep.
		wake, awake := make(chan struct{}), make(chan struct{})
		go func() {
			for range wake {
				offer()
				q.Kick()
			}
			close(awake)
		}()
		if n := testing.AllocsPerRun(1000, func() {
			wake <- struct{}{}
			if !q.Wait() || !q.Next(&c) {
				t.Fatal("no chain")
			}
			q.Done(&c, 0)
			q.Flush()
		}); n >= 1 {
			t.Errorf("features %#x: %v allocations with a sleep", features, n)
		}
		close(wake)
		<-awake
		q.Close()
	}
}

func BenchmarkQueue(b *testing.B) {
	d := virtiotest.New(b, virtiotest.Options{Memory: 1 << 20})
	q, err := virtio.NewQueue(virtio.QueueConfig{
		Size: 256, Desc: 0x1000, Avail: 0x2000, Used: 0x3000, Features: both,
		Space: d.Space, Interrupt: func() {}, Failed: func(err error) { b.Error(err) },
	})
	if err != nil {
		b.Fatal(err)
	}
	defer q.Close()
	for i := range 256 {
		d.PutDescriptor(0x1000, i, virtiotest.Descriptor{Addr: 0x5000, Len: 64})
	}
	var c virtio.Chain
	var index [2]byte
	for i := 0; b.Loop(); i++ {
		binary.LittleEndian.PutUint16(index[:], uint16(i+1))
		_ = d.Space.WriteAt(index[:], 0x2002)
		if !q.Next(&c) {
			b.Fatal("no chain")
		}
		q.Done(&c, 0)
		q.Flush()
	}
}

// FuzzQueue is a driver that puts anything into rings, tables and indexes, all
// of it in a small guest so that addresses meet RAM at times.
func FuzzQueue(f *testing.F) {
	const ram = 64 << 10
	seed := func(ds ...virtiotest.Descriptor) []byte {
		var b []byte
		for _, d := range ds {
			b = binary.LittleEndian.AppendUint64(b, uint64(d.Addr))
			b = binary.LittleEndian.AppendUint32(b, d.Len)
			b = binary.LittleEndian.AppendUint16(b, d.Flags)
			b = binary.LittleEndian.AppendUint16(b, d.Next)
		}
		return b
	}
	f.Add(uint16(1), true, seed(virtiotest.Descriptor{Addr: 0x8000, Len: 16}))
	f.Add(uint16(8), true, seed(virtiotest.Descriptor{Addr: 0x1000, Len: 64, Flags: 4}, virtiotest.Descriptor{Addr: 0x8000, Len: 16, Flags: 2}))
	f.Add(uint16(3), false, seed(virtiotest.Descriptor{Addr: 0x8000, Len: 16, Flags: 1, Next: 0}))
	f.Add(uint16(9), true, []byte{1, 2, 3})
	f.Add(uint16(2), true, seed(virtiotest.Descriptor{Addr: ram - 8, Len: 16, Flags: 2}))
	f.Fuzz(func(t *testing.T, index uint16, event bool, memoryImage []byte) {
		space, err := memory.New("fuzz", []memory.Range{{Start: 0, Size: ram / 2}, {Start: ram, Size: ram}})
		if err != nil {
			t.Fatal(err)
		}
		defer space.Close()
		features := virtio.FeatureIndirect
		if event {
			features |= virtio.FeatureEventIndex
		}
		failures := 0
		q, err := virtio.NewQueue(virtio.QueueConfig{
			Size: 8, Desc: 0x1000, Avail: 0x1080, Used: 0x2000, Features: features,
			Space: space, Interrupt: func() {}, Failed: func(error) { failures++ },
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = space.WriteAt(memoryImage[:min(len(memoryImage), 0x1000)], 0x1000)
		_ = space.WriteAt(binary.LittleEndian.AppendUint16(nil, index), 0x1082)
		var c virtio.Chain
		for n := 0; q.Next(&c); n++ {
			if n > 8 {
				t.Fatal("more chains than the queue has")
			}
			if virtio.Len(c.Writable)+virtio.Len(c.Readable) > 1<<32 {
				t.Fatal("more than 4 GiB")
			}
			for _, b := range c.Readable {
				_ = bytes.Count(b, []byte{0}) // faults if it is not there
			}
			for _, b := range c.Writable {
				for i := range b {
					b[i] = byte(n)
				}
			}
			q.Done(&c, 1)
			q.Flush()
		}
		if failures > 1 {
			t.Fatalf("%d failures", failures)
		}
		q.Close()
		if n := space.Pins(); n != 0 {
			t.Fatalf("%d pins are left", n)
		}
	})
}
