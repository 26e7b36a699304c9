package segment

import (
	"runtime"
	"time"
)

// Seat is where a guest runs.
type Seat struct {
	CPUs []int // of the host's, those of the guest's node
}

// A copy between nodes runs where the receiver is. There the sender's lines are read
// across, once, and what is written stays in the caches of the CPUs whose guest reads
// it next. On the sender's node each line of the receiver's would be fetched to be
// written, and be fetched back: twice across. (That is counted, not measured:
// docs/decisions/012.)
//
// A thread is moved for that only when it copies seatBytes or more in seatTime, three
// quarters of it to one guest.
const (
	seatTime  = 10 * time.Millisecond
	seatBytes = 1 << 20
	// seatWindows is how many windows must agree.
	seatWindows = 3
)

// seating has the worker of one transmit queue run where its copies are cheapest. It
// is the worker's.
type seating struct {
	began time.Duration // the window
	bytes int           // copied in it
	best  *Seat         // has most, if anybody has more than half (MJRTY, Boyer and Moore)
	lead  int           // by so many bytes

	next *Seat // of the last windows
	same int   // of them
	at   *Seat // where the thread is kept to; nil for nowhere
	lost bool  // the host has refused
}

// copied counts bytes for a guest, whose seat is nil if it has none.
func (s *seating) copied(n int, to *Seat) {
	s.bytes += n
	switch {
	case to == s.best:
		s.lead += n
	case s.lead < n:
		s.best, s.lead = to, n-s.lead
	default:
		s.lead -= n
	}
}

// settle moves the thread, between two batches, when a window is over.
func (s *seating) settle(now time.Duration, run func(*Seat) error) (err error) {
	took := now - s.began
	if s.bytes == 0 || took < seatTime {
		return nil
	}
	var want *Seat
	if much := int64(s.bytes)*int64(seatTime) >= seatBytes*int64(took); much && s.lead >= s.bytes/2 {
		want = s.best
	}
	s.began, s.bytes, s.best, s.lead = now, 0, nil, 0
	if want != s.next {
		s.next, s.same = want, 0
	}
	s.same = min(s.same+1, seatWindows)
	if s.same < seatWindows || want == s.at || s.lost {
		return nil
	}
	// A goroutine that ends with its thread locked takes the thread with it, wherever
	// that is kept to.
	if s.at == nil {
		runtime.LockOSThread()
	}
	if err := run(want); err != nil {
		s.lost = true
		if s.at == nil {
			runtime.UnlockOSThread()
		}
		return err
	}
	if s.at = want; want == nil {
		runtime.UnlockOSThread()
	}
	return nil
}
