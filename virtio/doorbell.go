package virtio

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// doorbell is an eventfd that the driver's kicks add to. A goroutine that waits
// for it is parked by Go's poller and holds no thread, or waits in the kernel with its
// thread (see wait).
//
// Each kick wakes who waits by Go's poller, which looks for edges, whether or not
// the eventfd was read since the last; so it need not be, where something else says
// what a kick says that comes while nobody waits.
//
// Locks: mu, innermost.
type doorbell struct {
	fd     int // for KVM, and for ring; Go's poller does not know it
	silent atomic.Bool
	rung   atomic.Bool // by ring, since the last wait
	poll   unix.PollFd

	// Of the one goroutine that waits, as are the next two and poll.
	buf   [8]byte
	there func() bool
	slept bool

	mu     sync.RWMutex // fd is not closed while it is written to
	closed bool
	ear    *os.File // what Go's poller listens at, a duplicate of fd; nil if it does not
	conn   syscall.RawConn
	take   func(fd uintptr) bool
	edge   func(fd uintptr) bool
}

var kick = [8]byte{1}

func newDoorbell() (*doorbell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	d := &doorbell{fd: fd, poll: unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}}
	d.take, d.edge = d.taken, d.woken
	if err := d.listen(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// listen has Go's poller listen, which it does not yet.
func (d *doorbell) listen() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.silent.Load() {
		return os.ErrDeadlineExceeded
	}
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	d.ear = os.NewFile(uintptr(fd), "doorbell")
	if d.conn, err = d.ear.SyscallConn(); err != nil {
		d.forget()
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

// ignore ends listen. A kick would wake a thread of the poller's, if nobody else.
func (d *doorbell) ignore() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
}

func (d *doorbell) forget() {
	if d.ear != nil {
		_ = d.ear.Close()
		d.ear, d.conn = nil, nil
	}
}

// ring does what a kick does. After close it does nothing.
func (d *doorbell) ring() {
	d.rung.Store(true)
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.closed {
		_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(d.fd), uintptr(unsafe.Pointer(&kick)), uintptr(len(kick)))
	}
}

// wait returns when the doorbell has been rung since the last wait, or with an
// error when it was silenced. With its thread the caller is woken by the kernel as
// that thread's policy says, and nobody else is. It waits so, too, where the process
// has no file descriptor left for the other way.
//
// With there it returns when that is true as well, and a kick of the driver's that came
// before is not heard by itself: there asks for kicks from now on, and then says whether
// one would have come too early. That saves the two reads of the eventfd that each wait
// has else, and the third time that the poller is woken by them.
func (d *doorbell) wait(withThread bool, there func() bool) error {
	if !withThread && (d.conn != nil || d.listen() == nil) {
		if there == nil {
			return d.conn.Read(d.take)
		}
		d.there, d.slept = there, false
		return d.conn.Read(d.edge)
	}
	if d.conn != nil {
		d.ignore()
	}
	for !d.silent.Load() {
		if d.taken(uintptr(d.fd)) || there != nil && there() {
			return nil
		}
		_, _, _ = unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&d.poll)), 1, 0, 0, 0, 0)
	}
	return os.ErrDeadlineExceeded
}

// woken is false once, before the poller waits, if there is nothing yet.
func (d *doorbell) woken(uintptr) bool {
	if d.slept {
		d.rung.Store(false) // what it was rung for was done before
		return true
	}
	d.slept = true
	return d.rung.Swap(false) || d.there()
}

// taken says whether the doorbell had been rung. The call is one of a few hundred
// nanoseconds that never blocks: were Go's runtime told of it, it would wake the
// thread that looks after those that do, for each kick.
func (d *doorbell) taken(fd uintptr) bool {
	d.rung.Store(false)
	_, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&d.buf)), uintptr(len(d.buf)))
	return errno != unix.EAGAIN
}

// silence ends the wait under way, and every later one.
func (d *doorbell) silence() {
	d.silent.Store(true)
	d.mu.Lock()
	if d.ear != nil {
		_ = d.ear.SetReadDeadline(time.Unix(1, 0))
	}
	d.mu.Unlock()
	d.ring()
}

// close frees the doorbell; nobody waits any more.
func (d *doorbell) close() {
	d.silent.Store(true)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
	if !d.closed {
		d.closed = true
		_ = unix.Close(d.fd)
	}
}
