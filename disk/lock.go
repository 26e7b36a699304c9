package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse is wrapped by Open's error for an image that another guest, or another
// program that locks images, has open in a way that excludes ours.
var ErrInUse = errors.New("in use")

// Images are locked as QEMU does it: what an opener does with an image it says by
// a shared lock on byte 100+i of the file, and what it cannot have others do on
// byte 200+i; then it looks whether any other lock stands against its own. So
// qemu-img and QEMU keep off what a guest here writes to, and the other way round.
const (
	lockDoes  = 100
	lockBars  = 200
	lockRead  = 0
	lockWrite = 1
	lockSize  = 3
)

// lock takes an open file description's locks, until unlock. Filesystems that know
// no locks are used without.
func (f *file) lock() error {
	does, bars := []int64{lockRead}, []int64{lockWrite, lockSize}
	if !f.readOnly {
		does = append(does, lockWrite, lockSize)
	}
	var err error
	for _, i := range does {
		err = errors.Join(err, f.lockByte(lockDoes+i))
	}
	for _, i := range bars {
		err = errors.Join(err, f.lockByte(lockBars+i))
	}
	for _, i := range does {
		err = errors.Join(err, f.unlocked(lockBars+i))
	}
	for _, i := range bars {
		err = errors.Join(err, f.unlocked(lockDoes+i))
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES):
		return fmt.Errorf("locking: %w", err)
	}
	by := "another program"
	if names := f.users(); names != "" {
		by = names
	}
	if f.readOnly {
		return fmt.Errorf("is %w for writing by %s; stop that first", ErrInUse, by)
	}
	return fmt.Errorf("is %w by %s; stop that first, or use it read-only in both", ErrInUse, by)
}

func (f *file) lockByte(at int64) error {
	l := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: at, Len: 1}
	return unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &l)
}

// unlock gives all of them back. To close the file does not do while a child process
// that was forked meanwhile, and runs no program of its own yet, has it open too.
func (f *file) unlock() {
	l := unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart, Start: lockDoes, Len: lockBars + lockSize + 1 - lockDoes}
	// What fails here knows no locks.
	_ = unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &l)
}

// unlocked is EAGAIN if anyone else has a lock on a byte.
func (f *file) unlocked(at int64) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
	if err := unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_GETLK, &l); err != nil {
		return err
	}
	if l.Type != unix.F_UNLCK {
		return unix.EAGAIN
	}
	return nil
}

// users names the processes that have the file open, as far as /proc tells this
// user: the kernel does not say who holds such a lock.
func (f *file) users() string {
	var want, st unix.Stat_t
	if unix.Fstat(f.fd, &want) != nil {
		return ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	var names []string
	for _, fd := range fds {
		if unix.Stat(fd, &st) != nil || st.Dev != want.Dev || st.Ino != want.Ino {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		if pid == strconv.Itoa(os.Getpid()) && filepath.Base(fd) == strconv.Itoa(f.fd) {
			continue
		}
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		name := fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(comm)))
		if pid == strconv.Itoa(os.Getpid()) {
			name = "another guest of this process"
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, " and ")
}
