package frame

import "disco/memory"

// Frame is a frame that its sender lends to whoever carries it. What its header
// says was checked; its bytes may be a guest's, who changes them at any time.
type Frame struct {
	Header Header
	// Pieces are the bytes of the frame, without the header.
	Pieces []memory.Loan
	// Len is how many they are, MinLen to MaxLen.
	Len int
	// Done is called once for a frame that was kept, when it is not needed any
	// more. It comes on any goroutine and with locks held: it must neither block nor
	// call back.
	Done func(*Frame)
}

// Sink is a device's receiving side: guest memory that a switch puts frames
// into. Calls for one queue come one at a time.
type Sink interface {
	// Deliver puts a frame into the next buffers of a receive queue, and maps what
	// it can of it in runs of least whole pages or more (none if least is 0). It adds
	// to d what it did. It does not keep f.
	//
	// If there is no room now it returns Full, and the switch's Ready is called when
	// there are more buffers.
	Deliver(queue int, f *Frame, least int, d *Delivery) Verdict
	// Flush shows the driver what was delivered since the last Flush, and
	// interrupts it if it wants to know.
	Flush(queue int)
	// Collapsed is how many pages that were mapped by Deliver had to be copied since,
	// because the guest wrote to them.
	Collapsed() uint64
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
	// Paused are pages for one that wrote to most of what it was given lately.
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
	Mapped uint64
	Copied [Reasons]uint64
}
