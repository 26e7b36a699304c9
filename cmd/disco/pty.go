package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// ptyConsole is a terminal that a person may attach to (screen, picocom), and leave. While
// nobody does, what is written beyond the few KiB that the kernel keeps is dropped:
// a guest does not wait for a person. Its size is not followed.
type ptyConsole struct {
	master, slave *os.File
	name          string // of the slave
}

// openPTY makes a terminal that passes bytes on as they are. It holds the slave
// open, so that the master goes on when nobody has it open, or not any more. The
// caller must Close it.
func openPTY() (*ptyConsole, error) {
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	// With O_NONBLOCK Go waits for it without a thread, and Close ends the wait.
	fd, err := unix.Open("/dev/ptmx", flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("terminal: /dev/ptmx: %w", err)
	}
	p := &ptyConsole{master: os.NewFile(uintptr(fd), "/dev/ptmx")}
	var number int
	err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	if err == nil {
		number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("terminal: %w", err), p.Close())
	}
	p.name = fmt.Sprintf("/dev/pts/%d", number)
	if p.slave, err = os.OpenFile(p.name, flags, 0); err == nil {
		_, err = term.MakeRaw(int(p.slave.Fd()))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("terminal: %s: %w", p.name, err), p.Close())
	}
	return p, nil
}

// Read is what the person types.
func (p *ptyConsole) Read(b []byte) (int, error) { return p.master.Read(b) }

// Write never waits, and takes everything.
func (p *ptyConsole) Write(b []byte) (int, error) {
	raw, err := p.master.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for rest := b; len(rest) > 0; {
			n, err := unix.Write(int(fd), rest)
			switch err {
			case nil:
				rest = rest[n:]
			case unix.EINTR:
			case unix.EAGAIN:
				return true
			default:
				failed = err
				return true
			}
		}
		return true
	})
	if err := errors.Join(err, failed); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close hangs the terminal up.
func (p *ptyConsole) Close() error {
	var errs []error
	if p.slave != nil {
		errs = append(errs, p.slave.Close())
	}
	return errors.Join(append(errs, p.master.Close())...)
}
