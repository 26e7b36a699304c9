package tap

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queue is one queue of the interface.
type queue struct {
	file    *os.File
	raw     rawConn
	in, out transfer
}

type rawConn interface {
	Control(f func(fd uintptr)) error
	Read(f func(fd uintptr) bool) error
	Write(f func(fd uintptr) bool) error
}

// newQueue takes fd over, also if it fails.
func newQueue(fd int) (*queue, error) {
	q := &queue{file: os.NewFile(uintptr(fd), device)}
	raw, err := q.file.SyscallConn()
	if err != nil {
		q.file.Close()
		return nil, err
	}
	q.raw = raw
	q.in.begin(unix.SYS_READV, raw.Read)
	q.out.begin(unix.SYS_WRITEV, raw.Write)
	return q, nil
}

func (q *queue) control(f func(fd int) error) error {
	var err error
	if e := q.raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

func (q *queue) enable(on bool) error {
	flags := uint16(unix.IFF_DETACH_QUEUE)
	if on {
		flags = unix.IFF_ATTACH_QUEUE
	}
	request, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	request.SetUint16(flags)
	return q.control(func(fd int) error { return unix.IoctlIfreq(fd, unix.TUNSETQUEUE, request) })
}

// transfer is one direction of a queue. All that a call needs is in it, so that
// a call allocates nothing.
type transfer struct {
	number uintptr // of the system call
	run    func(f func(fd uintptr) bool) error
	once   func(fd uintptr) bool

	vec  []unix.Iovec
	wait bool
	n    int
	errn unix.Errno
}

func (t *transfer) begin(number uintptr, run func(f func(fd uintptr) bool) error) {
	t.number, t.run = number, run
	t.once = t.call
}

// call makes the system call, and says whether there is nothing to wait for.
func (t *transfer) call(fd uintptr) bool {
	for {
		n, _, e := unix.Syscall(t.number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.vec))), uintptr(len(t.vec)))
		t.n, t.errn = int(n), e
		if e != unix.EINTR {
			return e != unix.EAGAIN || !t.wait
		}
	}
}

func (t *transfer) do(bufs [][]byte, wait bool) (int, error) {
	t.vec = t.vec[:0]
	for _, b := range bufs {
		if len(b) > 0 {
			v := unix.Iovec{Base: unsafe.SliceData(b)}
			v.SetLen(len(b))
			t.vec = append(t.vec, v)
		}
	}
	t.wait = wait
	err := t.run(t.once)
	clear(t.vec)
	switch {
	case err != nil:
		return 0, err
	case t.errn == 0:
		return t.n, nil
	case t.errn == unix.EAGAIN && t.number == unix.SYS_READV:
		return 0, nil
	default:
		return 0, t.errn
	}
}
