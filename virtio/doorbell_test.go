package virtio

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDoorbell: whoever waits, in whatever way, is woken by each ring, KVM's and the
// queue's own, and by silence.
func TestDoorbell(t *testing.T) {
	d, err := newDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	heard := make(chan error)
	ways := make(chan bool)
	go func() {
		defer close(heard)
		for withThread := range ways {
			heard <- d.wait(withThread)
		}
	}()
	for i := range 200 {
		ways <- i/3%2 == 1
		if i%5 == 0 {
			time.Sleep(time.Millisecond) // it waits by now
		}
		if i%2 == 0 {
			d.ring()
		} else if _, err := unix.Write(d.fd, kick[:]); err != nil {
			t.Fatal(err)
		}
		if err := <-heard; err != nil {
			t.Fatalf("ring %d: %v", i, err)
		}
	}
	for _, withThread := range []bool{true, false, true} {
		select {
		case ways <- withThread:
		case err := <-heard:
			t.Fatalf("heard %v, and nobody rang", err)
		}
		select {
		case err := <-heard:
			if !d.silent.Load() {
				t.Fatalf("heard %v, and nobody rang", err)
			} else if err == nil {
				t.Error("a silenced doorbell is heard")
			}
			continue
		case <-time.After(10 * time.Millisecond):
		}
		d.silence()
		if err := <-heard; err == nil {
			t.Error("silence ends no wait")
		}
	}
	close(ways)
	d.close()
	d.ring()
	d.silence()
	if d.wait(false) == nil || d.wait(true) == nil {
		t.Error("a closed doorbell is heard")
	}
}

// TestDoorbellWithoutDescriptors: a worker that can no longer be woken by Go's poller
// is woken all the same.
func TestDoorbellWithoutDescriptors(t *testing.T) {
	d, err := newDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	d.ring()
	if err := d.wait(true); err != nil {
		t.Fatal(err)
	}
	var most unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &most); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: most.Max}); err != nil {
		t.Fatal(err)
	}
	d.ring()
	heard := d.wait(false)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &most); err != nil {
		t.Fatal(err)
	}
	if heard != nil || d.conn != nil {
		t.Errorf("heard %v", heard)
	}
	d.ring()
	if err := d.wait(false); err != nil || d.conn == nil {
		t.Errorf("heard %v, and the poller does not listen again", err)
	}
}

// TestDoorbellDoesNotAllocate in either way.
func TestDoorbellDoesNotAllocate(t *testing.T) {
	d, err := newDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	for _, withThread := range []bool{false, true} {
		d.ring() // the first wait in a way takes that way
		_ = d.wait(withThread)
		if n := testing.AllocsPerRun(1000, func() { d.ring(); _ = d.wait(withThread) }); n != 0 {
			t.Errorf("with its thread %v: %v allocations", withThread, n)
		}
	}
}

// TestGiveWay: the policy of the thread is changed, and back, and not where it is
// another.
func TestGiveWay(t *testing.T) {
	q := &Queue{}
	done := make(chan bool)
	go func() {
		defer close(done)
		policy := func() uint32 {
			a, err := unix.SchedGetAttr(0, 0)
			if err != nil {
				t.Error(err)
				return 0
			}
			return a.Policy
		}
		before := policy()
		for range 3 {
			if err := q.GiveWay(true); err != nil || !q.givesWay || policy() != unix.SCHED_BATCH {
				t.Errorf("%v, policy %d", err, policy())
			}
			if err := q.GiveWay(false); err != nil || q.givesWay || policy() != before {
				t.Errorf("%v, policy %d", err, policy())
			}
		}
		if err := q.GiveWay(true); err != nil {
			t.Error(err)
		}
		other := &Queue{} // on a thread that gives way already
		if err := other.GiveWay(true); err == nil || other.givesWay {
			t.Error("gives way with a thread of another policy")
		}
		// The thread ends here, locked.
	}()
	<-done
}
