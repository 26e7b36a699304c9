package frame

import "disco/memory"

// HeadLen is how many bytes at least, if a frame has so many, are in its head:
// those of Ethernet and ARP.
const HeadLen = 42

// Frame is a frame that its sender lends to whoever carries it.
type Frame struct {
	// Header was checked.
	Header Header
	// Pieces are the bytes of the frame, without the header, and none is empty. The
	// first is its head: HeadLen bytes or more, or the whole frame, that do not
	// change any more. The others may be a guest's, who changes them at any time.
	Pieces []memory.Loan
	// Len is how many bytes they are, MinLen to MaxLen.
	Len int
	// Done is called once for a frame that was kept, when it is not needed any
	// more. It comes on any goroutine and with locks held: it must neither block nor
	// call back.
	Done func()
}

// Sink is a device's receiving side: guest memory that a switch puts frames
// into. Calls for one queue come one at a time.
type Sink interface {
	// Deliver puts a frame into the next buffers of a receive queue. If that
	// succeeds it adds to d what it did. It does not keep f.
	//
	// If there is no room now it returns Full, and the switch's Ready is called when
	// there are more buffers.
	Deliver(queue int, f *Frame, p Policy, d *Delivery) Verdict
	// Flush shows the driver what was delivered since the last Flush, and
	// interrupts it if it wants to know.
	Flush(queue int)
	// Collapsed is how many pages that were mapped by Deliver had to be copied,
	// because something wrote to them, since the guest was started.
	Collapsed() uint64
}

// Policy says which pages of a frame are mapped rather than copied.
type Policy struct {
	// Least is how many must follow one another; 0 for none at all.
	Least int
	// Why is what is noted for pages that are copied if it is none.
	Why Reason
}

// Verdict is what became of a frame.
type Verdict uint8

const (
	// Delivered is in the guest's buffers.
	Delivered Verdict = iota
	// Full is for a receiver that has too few buffers now.
	Full
	// TooLong is for a receiver whose buffers never hold such a frame.
	TooLong
	// Gone is for a receiver that has stopped.
	Gone
)

// Reason is why bytes were copied to a guest rather than mapped.
type Reason uint8

const (
	// Odd are headers, and pieces that are not whole pages.
	Odd Reason = iota
	// Private are whole pages that the sender alone has.
	Private
	// Off are pages for a receiver that has mapping switched off.
	Off
	// Paused are pages for one that wrote to much of what it was given lately.
	Paused
	// Short are pages in runs too short to be worth it.
	Short
	// Buffers are pages for buffers that are not whole pages.
	Buffers
	// Refused are pages that could not be mapped: no mappings are left, or a device
	// writes to the buffers.
	Refused
	// Written are pages that were mapped, and then written to by the receiver.
	Written
	// Finished are frames whose checksum or segments had to be made for a receiver
	// that does not take them undone.
	Finished

	// Reasons is how many there are.
	Reasons = int(iota)
)

func (r Reason) String() string {
	return [Reasons]string{"odd", "private", "off", "paused", "short", "buffers", "refused", "written", "finished"}[r]
}

// Delivery counts bytes of frames, without their headers, by how they came to a
// guest.
type Delivery struct {
	// Eligible are whole pages that could be mapped as far as the sender is
	// concerned; so could Mapped, and those copied for other reasons than Odd,
	// Private, Written and Finished.
	Eligible int
	Mapped   int
	Copied   [Reasons]int
}

// Add adds what e counts.
func (d *Delivery) Add(e *Delivery) {
	d.Eligible += e.Eligible
	d.Mapped += e.Mapped
	for i, n := range e.Copied {
		d.Copied[i] += n
	}
}
