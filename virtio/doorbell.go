package virtio

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// doorbell is an eventfd that the driver's kicks add to. A goroutine that waits
// for it is parked by Go's poller and holds no thread.
type doorbell struct {
	fd   int      // for KVM; os.File.Fd would make it blocking
	file *os.File // owns fd
	conn syscall.RawConn
	take func(fd uintptr) bool
	buf  [8]byte // of the one goroutine that waits
}

var kick = [8]byte{1}

func newDoorbell() (*doorbell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	d := &doorbell{fd: fd, file: os.NewFile(uintptr(fd), "doorbell")}
	if d.conn, err = d.file.SyscallConn(); err != nil {
		d.close()
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	d.take = d.taken
	return d, nil
}

// ring does what a kick does. After close it does nothing.
func (d *doorbell) ring() { _, _ = d.file.Write(kick[:]) }

// wait returns when the doorbell has been rung since the last wait, or with an
// error when it was silenced.
func (d *doorbell) wait() error { return d.conn.Read(d.take) }

// taken says whether the doorbell had been rung. The call is one of a few hundred
// nanoseconds that never blocks: were Go's runtime told of it, it would wake the
// thread that looks after those that do, for each kick.
func (d *doorbell) taken(fd uintptr) bool {
	_, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&d.buf)), uintptr(len(d.buf)))
	return errno != unix.EAGAIN
}

// silence ends the wait under way, and every later one.
func (d *doorbell) silence() { _ = d.file.SetReadDeadline(time.Unix(1, 0)) }

func (d *doorbell) close() { _ = d.file.Close() }
