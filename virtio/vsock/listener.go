package vsock

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxPath = 107 // sockaddr_un's room, less a NUL

	// A host program has this long to say where it wants to go, and a guest or
	// a host program to accept a stream.
	patience = 10 * time.Second

	maxGreeting = len("CONNECT 4294967295\n")
)

// listener takes connections at the device's socket.
type listener struct {
	d    *Device
	sock *net.UnixListener
	made os.FileInfo // the socket's file, to know it again
	done sync.WaitGroup
	gone chan struct{} // closed by close

	mu      sync.Mutex
	closed  bool
	greeted map[*net.UnixConn]struct{} // that have not been handed to a stream
}

func (d *Device) serveHost() (*listener, error) {
	// Streams to the host append "_PORT".
	if len(d.path) > maxPath-len("_4294967295") {
		return nil, fmt.Errorf("the path %s is longer than a UNIX socket's may be; use a shorter one", d.path)
	}
	if err := makeWay(d.path); err != nil {
		return nil, err
	}
	sock, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	sock.SetUnlinkOnClose(false) // the file may be another's by then
	l := &listener{d: d, sock: sock, gone: make(chan struct{}), greeted: map[*net.UnixConn]struct{}{}}
	if err = os.Chmod(d.path, 0o600); err == nil {
		l.made, err = os.Lstat(d.path)
	}
	if err != nil {
		sock.Close()
		return nil, err
	}
	l.done.Go(l.accept)
	return l, nil
}

// makeWay removes a socket that a monitor which died left at path.
func makeWay(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket; use another path", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s is in use by another program; use another path", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

func (l *listener) close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.gone)
	err := l.sock.Close()
	for c := range l.greeted {
		c.Close()
	}
	l.mu.Unlock()
	l.done.Wait()
	if st, serr := os.Lstat(l.d.path); serr == nil && os.SameFile(st, l.made) {
		err = errors.Join(err, os.Remove(l.d.path))
	}
	return err
}

func (l *listener) accept() {
	for {
		c, err := l.sock.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors left, most likely
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if !l.hold(c) {
			c.Close()
			continue
		}
		l.done.Go(func() { l.greet(c) })
	}
}

// hold keeps c to be closed with the listener, unless there are too many.
func (l *listener) hold(c *net.UnixConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.greeted) >= maxStreams {
		return false
	}
	l.greeted[c] = struct{}{}
	return true
}

func (l *listener) release(c *net.UnixConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.greeted, c)
}

// greet reads where c wants to go, and connects it.
func (l *listener) greet(c *net.UnixConn) {
	defer l.release(c)
	_ = c.SetDeadline(time.Now().Add(patience))
	port, err := readGreeting(c)
	s := l.d.service()
	if err != nil || s == nil {
		c.Close()
		return
	}
	s.connectGuest(c, port, l.gone)
}

// readGreeting reads "CONNECT PORT\n" and not a byte more: the rest is for the
// guest.
func readGreeting(c *net.UnixConn) (port uint32, err error) {
	var line [maxGreeting]byte
	for n := range line {
		if _, err := c.Read(line[n : n+1]); err != nil {
			return 0, err
		}
		if line[n] == '\n' {
			return parseGreeting(string(line[:n]))
		}
	}
	return 0, errors.New("greeting too long")
}

func parseGreeting(line string) (port uint32, err error) {
	word, number, _ := strings.Cut(strings.TrimSuffix(line, "\r"), " ")
	v, err := strconv.ParseUint(number, 10, 32)
	if err != nil || !strings.EqualFold(word, "CONNECT") {
		return 0, fmt.Errorf("no greeting: %q", line)
	}
	return uint32(v), nil
}
