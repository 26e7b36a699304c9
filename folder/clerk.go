package folder

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// owner is a user and a group of the host, by number.
type owner struct{ uid, gid uint32 }

// clerk makes files. It is a thread of its own, because what it needs is a
// thread's: a mask of no bits, since the guest's kernel has applied that of the
// guest's process, and the ids that the new file gets. The thread ends with it, so
// no other code ever runs with them. It begins with the first file.
type clerk struct {
	mu   sync.Mutex // one file at a time
	work chan func(*scribe)
}

// scribe is what a clerk's thread knows.
type scribe struct {
	chooses bool
	home    owner
	all     [2]unix.CapUserData // with what the thread began
}

// do calls f on the clerk's thread as by the given owner, if that can be.
func (c *clerk) do(by owner, f func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.work == nil {
		if err := c.start(); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	c.work <- func(s *scribe) { done <- s.as(by, f) }
	return <-done
}

func (c *clerk) start() error {
	work, ready := make(chan func(*scribe)), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		s, err := newScribe()
		ready <- err
		if err != nil {
			return
		}
		for f := range work {
			f(s)
		}
	}()
	if err := <-ready; err != nil {
		return err
	}
	c.work = work
	return nil
}

func (c *clerk) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.work != nil {
		close(c.work)
		c.work = nil
	}
}

var capHeader = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}

func newScribe() (*scribe, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("a mask of its own: %w", err)
	}
	unix.Umask(0)
	s := &scribe{home: owner{uint32(unix.Geteuid()), uint32(unix.Getegid())}}
	h := capHeader
	if err := unix.Capget(&h, &s.all[0]); err != nil {
		return nil, fmt.Errorf("capget: %w", err)
	}
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_CHOWN
	s.chooses = s.home.uid == 0 && s.all[0].Effective&need == need
	return s, nil
}

// as calls f with the ids of by for files. What the guest's kernel has allowed is
// not asked again of the host: groups that the process is in beside its own are
// not known here.
func (s *scribe) as(by owner, f func() error) error {
	if !s.chooses || by == s.home {
		return f()
	}
	if err := s.become(by); err != nil {
		s.restore()
		return err
	}
	defer s.restore()
	return f()
}

func (s *scribe) become(by owner) error {
	if err := setID(unix.SetfsgidRetGid, by.gid); err != nil {
		return err
	}
	if err := setID(unix.SetfsuidRetUid, by.uid); err != nil {
		return err
	}
	// A user other than root lost the capabilities for files with it. It is not to
	// keep the set-group-ID bit on a file of a group that is not its own.
	h, all := capHeader, s.all
	if by.uid != 0 {
		all[0].Effective &^= 1 << unix.CAP_FSETID
	}
	return unix.Capset(&h, &all[0])
}

// restore panics rather than go on with another's ids.
func (s *scribe) restore() {
	err := setID(unix.SetfsuidRetUid, s.home.uid)
	if err == nil {
		err = setID(unix.SetfsgidRetGid, s.home.gid)
	}
	if err == nil {
		h, all := capHeader, s.all
		err = unix.Capset(&h, &all[0])
	}
	if err != nil {
		panic(fmt.Sprintf("folder: the ids of a guest's process stay with a thread: %v", err))
	}
}

// setID sets an id for files: the call tells nothing, so it is asked twice.
func setID(set func(int) (int, error), id uint32) error {
	if int32(id) == -1 {
		return unix.EINVAL
	}
	if _, err := set(int(id)); err != nil {
		return err
	}
	if now, err := set(-1); err != nil || uint32(now) != id {
		return unix.EPERM
	}
	return nil
}
