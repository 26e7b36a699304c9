// Package uffd is a userfaultfd: ranges of shared memory are registered with
// it, and what threads do there that the range does not allow comes out as an
// [Event] while the thread waits.
//
// Ranges are registered for two kinds of fault. A *minor* fault is an access to
// a page that is in the file but not in this mapping; [FD.Continue] maps it. A
// *write-protect* fault is a store to a page that [FD.Protect] protects;
// [FD.Unprotect] lets it through. A page that is not in the file yet raises
// none: the kernel makes it, as without a userfaultfd.
//
// Not done here: what to do about a fault, missing faults, private memory.
package uffd

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/userfaultfd.h.
const (
	apiVersion = 0xaa

	ioctlAPI          = 0xc018aa3f
	ioctlRegister     = 0xc020aa00
	ioctlWake         = 0x8010aa02
	ioctlWriteProtect = 0xc018aa06
	ioctlContinue     = 0xc020aa07
	ioctlNew          = 0xaa00 // of /dev/userfaultfd

	featurePagefaultFlagWP = 1 << 0
	featureEventRemap      = 1 << 2
	featureThreadID        = 1 << 8
	featureMinorShmem      = 1 << 10
	featureWPShmem         = 1 << 12

	// Without the remap event a mapping that is moved would lose its registration
	// and its protection.
	features = featurePagefaultFlagWP | featureEventRemap | featureThreadID | featureMinorShmem | featureWPShmem

	modeWP    = 1 << 1
	modeMinor = 1 << 2

	eventPagefault = 0x12

	flagWrite = 1 << 0
	flagWP    = 1 << 1

	messageSize = 32
)

// ErrChanging is returned while a registered mapping is being moved and the
// event of that has not been read. Whoever reads events must go on reading
// before it tries again.
var ErrChanging = errors.New("userfaultfd: a mapping is being moved")

// ErrStopped is what Read returns after Stop.
var ErrStopped = errors.New("userfaultfd: stopped")

// FD is one userfaultfd. Its methods may be called from many goroutines, but
// Read from one at a time, and Close after all others.
//
// Whoever reads waits in the kernel, on a thread of its own, and not in Go's
// poller: that is looked at for sure only every 10 ms while other threads wait in
// the kernel, as those do that wait for the events to be read.
type FD struct {
	fd   uintptr
	stop int // an eventfd
	wait [2]unix.PollFd
	buf  [MaxEvents * messageSize]byte
}

// Event is one fault. The thread that had it waits until the address is woken,
// which Continue and Unprotect do too.
type Event struct {
	Addr   uintptr // of the page
	Thread int32   // the number of the thread, 0 for one of the kernel's own
	// Protect is a store to a protected page; otherwise the page is not mapped.
	Protect bool
	// Write says that the thread asked to write. KVM's helper threads always ask
	// for that, so of a thread that is not known to be a vCPU it says nothing.
	Write bool
}

// MaxEvents is how many events one Read returns at most.
const MaxEvents = 64

// Open makes a userfaultfd that serves faults in the kernel too, which are what
// KVM has on behalf of guests. The error of a kernel or user that cannot says
// what is missing.
func Open() (*FD, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno == unix.EPERM {
		dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			fd, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(dev), ioctlNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
			unix.Close(dev)
		}
	}
	switch errno {
	case 0:
	case unix.ENOSYS:
		return nil, errors.New("userfaultfd: this kernel has none: it needs CONFIG_USERFAULTFD")
	case unix.EPERM:
		return nil, errors.New("userfaultfd: not permitted: it needs CAP_SYS_PTRACE, access to /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1")
	default:
		return nil, fmt.Errorf("userfaultfd: %w", errno)
	}
	api := struct{ api, features, ioctls uint64 }{api: apiVersion, features: features}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, ioctlAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		unix.Close(int(fd))
		if errno == unix.EINVAL {
			return nil, errors.New("userfaultfd: this kernel lacks minor faults or write-protection of shared memory: it needs Linux 5.19 or later")
		}
		return nil, fmt.Errorf("userfaultfd: handshake: %w", errno)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(int(fd))
		return nil, fmt.Errorf("userfaultfd: eventfd: %w", err)
	}
	return &FD{fd: fd, stop: stop, wait: [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}}, nil
}

// span is struct uffdio_range.
type span struct{ start, n uint64 }

func spanOf(b []byte) span {
	return span{uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), uint64(len(b))}
}

func failed(what string, errno unix.Errno) error {
	if errno == unix.EAGAIN {
		return ErrChanging
	}
	return fmt.Errorf("userfaultfd: %s: %w", what, errno)
}

// Register asks for both kinds of fault in b, a shared mapping of a memfd.
// Registration follows the mapping when it is moved, and ends with it.
func (u *FD) Register(b []byte) error { return u.register(b, modeWP|modeMinor) }

// RegisterStores asks for faults of stores alone. A page that Continue and
// Protect have dealt with, and that the kernel unmaps, it maps again when it is
// wanted, protected as it was.
func (u *FD) RegisterStores(b []byte) error { return u.register(b, modeWP) }

func (u *FD) register(b []byte, mode uint64) error {
	r := struct {
		span
		mode, ioctls uint64
	}{span: spanOf(b), mode: mode}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, u.fd, ioctlRegister, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return failed("register", errno)
	}
	return nil
}

func (u *FD) writeProtect(b []byte, mode uint64) error {
	r := struct {
		span
		mode uint64
	}{spanOf(b), mode}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, u.fd, ioctlWriteProtect, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return failed("write-protect", errno)
	}
	return nil
}

// Protect makes stores to the pages of b fault. Of pages not mapped the next
// Continue loses it again.
func (u *FD) Protect(b []byte) error { return u.writeProtect(b, 1) }

// Unprotect ends Protect for b and wakes who waits there.
func (u *FD) Unprotect(b []byte) error { return u.writeProtect(b, 0) }

// Continue maps the pages of b that the file has, writable, and wakes who waits
// for them. It stops at the first that is mapped already or that the file does
// not have, and returns how many bytes it did.
func (u *FD) Continue(b []byte) (int, error) {
	r := struct {
		span
		mode   uint64
		mapped int64
	}{span: spanOf(b)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, u.fd, ioctlContinue, uintptr(unsafe.Pointer(&r)))
	switch {
	case errno == 0 || errno == unix.EAGAIN && r.mapped > 0:
		return int(r.mapped), nil
	case errno == unix.EEXIST || errno == unix.EFAULT:
		return 0, nil
	}
	return 0, failed("continue", errno)
}

// Wake lets the threads that wait for pages of b try again.
func (u *FD) Wake(b []byte) error {
	r := spanOf(b)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, u.fd, ioctlWake, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return failed("wake", errno)
	}
	return nil
}

// Read waits for events and puts the faults among them into dst, whose length
// is MaxEvents or more. None is no error: moves are read too, and swallowed. It
// returns ErrStopped after Stop.
func (u *FD) Read(dst []Event) (int, error) {
	got, err := u.read()
	if err != nil {
		return 0, err
	}
	n := 0
	for m := u.buf[:got]; len(m) >= messageSize; m = m[messageSize:] {
		if m[0] != eventPagefault {
			continue
		}
		flags := *(*uint64)(unsafe.Pointer(&m[8]))
		dst[n] = Event{
			Addr:    uintptr(*(*uint64)(unsafe.Pointer(&m[16]))),
			Thread:  *(*int32)(unsafe.Pointer(&m[24])),
			Protect: flags&flagWP != 0,
			Write:   flags&(flagWP|flagWrite) != 0,
		}
		n++
	}
	return n, nil
}

func (u *FD) read() (int, error) {
	for {
		if _, err := unix.Poll(u.wait[:], -1); err != nil && err != unix.EINTR {
			return 0, fmt.Errorf("userfaultfd: poll: %w", err)
		}
		if u.wait[1].Revents != 0 {
			return 0, ErrStopped
		}
		switch got, err := unix.Read(int(u.fd), u.buf[:]); err {
		case nil:
			return got, nil
		case unix.EAGAIN, unix.EINTR:
		default:
			return 0, fmt.Errorf("userfaultfd: read: %w", err)
		}
	}
}

// Stop ends a Read that waits, and all later ones.
func (u *FD) Stop() error {
	_, err := unix.Write(u.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

// Close ends all registrations, which lets every waiting thread go on.
func (u *FD) Close() error {
	return errors.Join(unix.Close(int(u.fd)), unix.Close(u.stop))
}
