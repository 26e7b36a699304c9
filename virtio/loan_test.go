package virtio_test

import (
	"strings"
	"testing"

	"disco/memory"
	"disco/virtio"
	"disco/virtio/virtiotest"
)

// TestLoans takes chains whose buffers are lent, claimed and replaced, rather than
// pinned at once.
func TestLoans(t *testing.T) {
	d, r, q := pair(t, 8, both)
	pins := d.Space.Pins()
	var c virtio.Chain
	for i := range 20 {
		add := r.Add
		if i%2 == 1 {
			add = r.AddIndirect
		}
		add([][]byte{[]byte("loans"), []byte("of two")}, []int{5, 8192})
		if !q.NextLoan(&c) {
			t.Fatal("no chain")
		}
		if len(c.Loans) != 2 || len(c.Readable) != 0 || len(c.Writable) != 0 || len(c.Room) != 2 ||
			string(c.Loans[0].Bytes)+string(c.Loans[1].Bytes) != "loansof two" || d.Space.Pins() != pins+2 {
			t.Fatalf("%d loans, %d buffers, %d pins", len(c.Loans), len(c.Room), d.Space.Pins()-pins)
		}
		var bufs [][]byte
		for j, claim := range []func([][]byte, virtio.Buffer) ([][]byte, error){c.Claim, c.Replace} {
			var err error
			if bufs, err = claim(bufs, c.Room[j]); err != nil {
				t.Fatal(err)
			}
		}
		copy(bufs[0], "12345")
		copy(bufs[1], "678")
		q.Done(&c, 8)
		q.Flush()
		if d.Space.Pins() != pins {
			t.Fatalf("%d pins are left", d.Space.Pins()-pins)
		}
		if u := r.Wait(); string(u.Data[0])+string(u.Data[1][:3]) != "12345678" {
			t.Fatalf("other bytes: %q", u.Data[0])
		}
	}
}

// TestLoansAreChecked has a driver put buffers where there is no memory, and in the
// wrong order.
func TestLoansAreChecked(t *testing.T) {
	for want, ds := range map[string][]virtiotest.Descriptor{
		memory.ErrNotRAM.Error():                   {{Addr: 8<<20 - 10, Len: 11}},
		"a readable buffer follows a writable one": {{Addr: 0x1000, Len: 10, Flags: virtiotest.Write}, {Addr: 0x2000, Len: 10}},
	} {
		d, r, q := pair(t, 8, both)
		pins := d.Space.Pins()
		var c virtio.Chain
		r.AddRaw(ds...)
		if q.NextLoan(&c) {
			t.Errorf("a chain came that should not: %s", want)
		}
		if err := d.Failed(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not %q", err, want)
		}
		if !q.Stopping() || q.Heard() || d.Space.Pins() != pins {
			t.Errorf("%s: the queue goes on, or %d pins are left", want, d.Space.Pins()-pins)
		}
	}
}

// TestListen has one goroutine wait for kicks and another take what comes.
func TestListen(t *testing.T) {
	for name, features := range map[string]uint64{"plain": 0, "event index": virtio.FeatureEventIndex} {
		t.Run(name, func(t *testing.T) {
			_, r, q := pair(t, 8, features)
			var c virtio.Chain
			take := func() {
				t.Helper()
				if !q.Next(&c) {
					t.Fatal("no chain")
				}
				q.Done(&c, 0)
				q.Flush()
				r.Wait()
			}
			for range 100 {
				if q.Listen() {
					t.Fatal("a chain in an empty ring")
				}
				heard := make(chan bool)
				go func() { heard <- q.Heard() }()
				r.Add([][]byte{{1}}, nil)
				if !r.Kick() {
					t.Fatal("the driver was not asked to kick")
				}
				if !<-heard {
					t.Fatal("stopped")
				}
				q.Ignore()
				take()
				r.Add([][]byte{{1}}, nil)
				if r.Kick() {
					t.Fatal("a kick that nobody asked for")
				}
				if !q.Listen() { // it has come before
					t.Fatal("the chain is not seen")
				}
				q.Ignore()
				take()
			}
			q.Kick()
			if !q.Heard() {
				t.Error("the device's own kick was not heard")
			}
			q.Stop()
			if q.Heard() {
				t.Error("heard after the end")
			}
		})
	}
}
