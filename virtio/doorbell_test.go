package virtio

import (
	"runtime"
	"sync/atomic"
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
			heard <- d.wait(withThread, nil)
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
	if d.wait(false, nil) == nil || d.wait(true, nil) == nil {
		t.Error("a closed doorbell is heard")
	}
}

// TestDoorbellUnread: whoever asks for kicks, and looks at what there is, misses none,
// though nobody reads what kicks came while nobody waited; nor what the doorbell was
// rung for.
func TestDoorbellUnread(t *testing.T) {
	d, err := newDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	const n = 20000
	var made, rings atomic.Int64
	var asked atomic.Bool
	progress := make(chan int64, 1)
	go func() { // the driver: kicks if it is asked to
		for i := range int64(n) {
			made.Add(1)
			if asked.Swap(false) {
				if _, err := unix.Write(d.fd, kick[:]); err != nil {
					t.Error(err)
				}
			}
			switch {
			case i%7 == 0:
				rings.Add(1)
				d.ring()
			case i%11 == 0:
				time.Sleep(time.Microsecond) // the other waits by now
			case i%64 == 0:
				runtime.Gosched()
			}
		}
	}()
	go func() {
		defer close(progress)
		var seen, heard int64
		there := func() bool {
			asked.Store(true)
			return made.Load() != seen
		}
		for i := 0; seen < n; i++ {
			if err := d.wait(i/500%4 == 3, there); err != nil {
				t.Error(err)
				return
			}
			asked.Store(false)
			seen, heard = made.Load(), rings.Load()
		}
		progress <- heard
	}()
	select {
	case <-progress:
	case <-time.After(time.Minute):
		t.Fatalf("asleep, with %d made", made.Load())
	}

	// Without anything to look for, rings alone are heard, also those that came before.
	for range 100 {
		d.ring()
		if err := d.wait(false, never); err != nil {
			t.Fatal(err)
		}
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
	if err := d.wait(true, nil); err != nil {
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
	heard := d.wait(false, nil)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &most); err != nil {
		t.Fatal(err)
	}
	if heard != nil || d.conn != nil {
		t.Errorf("heard %v", heard)
	}
	d.ring()
	if err := d.wait(false, nil); err != nil || d.conn == nil {
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
		_ = d.wait(withThread, nil)
		if n := testing.AllocsPerRun(1000, func() { d.ring(); _ = d.wait(withThread, nil) }); n != 0 {
			t.Errorf("with its thread %v: %v allocations", withThread, n)
		}
		if n := testing.AllocsPerRun(1000, func() { d.ring(); _ = d.wait(withThread, never) }); n != 0 {
			t.Errorf("with its thread %v, unread: %v allocations", withThread, n)
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
