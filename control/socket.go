package control

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is the folder in which monitors of a user have their sockets, each PID.sock:
// $XDG_RUNTIME_DIR/disco, or /run/disco for root.
func Dir(uid int, getenv func(string) string) (string, error) {
	if uid == 0 {
		return "/run/disco", nil
	}
	dir := getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		return "", errors.New("XDG_RUNTIME_DIR does not name a folder: set it, or name a socket with --control")
	}
	return filepath.Join(dir, "disco"), nil
}

// socketName is that of a monitor's socket in Dir.
var socketName = regexp.MustCompile(`^[1-9][0-9]{0,9}\.sock$`)

// Sockets are those in dir, each maybe of a monitor that is gone, in the order of
// their process ids. A folder that is not there has none.
func Sockets(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	byPID := map[int]string{}
	var pids []int
	for _, e := range entries {
		if name := e.Name(); e.Type() == fs.ModeSocket && socketName.MatchString(name) {
			pid, _ := strconv.Atoi(name[:len(name)-len(".sock")])
			byPID[pid] = filepath.Join(dir, name)
			pids = append(pids, pid)
		}
	}
	return sorted(pids, byPID), nil
}

// ListenIn makes this process's socket in dir, which it makes if need be, and
// removes those that nobody listens at any more.
func ListenIn(dir string, log *slog.Logger) (net.Listener, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	// A socket refuses connections before its process listens at it, too.
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	old, err := Sockets(dir)
	if err != nil {
		return nil, err
	}
	for _, path := range old {
		if abandoned(path) {
			_ = os.Remove(path) // the next who comes tries again
		}
	}
	return listen(filepath.Join(dir, strconv.Itoa(os.Getpid())+".sock"), log)
}

// Listen makes a socket at path, in the place of one that nobody listens at.
func Listen(path string, log *slog.Logger) (net.Listener, error) {
	if abandoned(path) {
		_ = os.Remove(path) // that it is there is told by listen
	}
	return listen(path, log)
}

// listen has a listener whose Close removes the socket.
func listen(path string, log *slog.Logger) (net.Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &listener{l, os.Geteuid(), log}, nil
}

// openDir makes dir, or sees that it is this user's alone.
func openDir(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	d, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	switch err = unix.Fstat(int(d.Fd()), &st); {
	case err != nil:
	case int(st.Uid) != os.Geteuid():
		err = fmt.Errorf("folder %s: it is another user's (id %d)", dir, st.Uid)
	case st.Mode&0o077 != 0:
		err = fmt.Errorf("folder %s: others can enter it; chmod 700 it", dir)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// abandoned says whether a socket is at path, and nobody listens at it.
func abandoned(path string) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// listener takes connections of one user only.
type listener struct {
	*net.UnixListener
	uid int
	log *slog.Logger
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peer(c)
		if err == nil && uid == l.uid {
			return c, nil
		}
		c.Close()
		l.log.Warn("control: a connection was refused", "user", uid, "error", err)
	}
}

// peer is the user who connected.
func peer(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); e != nil {
		return -1, e
	}
	if err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}
