// Package tap carries a guest's frames to a tap interface of the host.
//
// The interface is used with several queues, one for each queue pair of the
// guest, and with offload headers: the kernel reads frames from the guest's
// buffers and writes them there, with one system call each and no copy between,
// and takes and gives TCP segments and unfinished checksums as the guest does.
//
// An interface that does not exist is made, and is gone after Close; one that
// does is used and left as it was, but for being put on a bridge and set up,
// which Close undoes.
//
// Not done here: addresses, routes, forwarding and firewalls of the host, which
// are the host's; making bridges; macvtap.
package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"disco/net/frame"
)

// MaxQueues is the largest number of queues of one Tap.
const MaxQueues = 8

const device = "/dev/net/tun"

// Config says which interface to use.
type Config struct {
	Name   string // of the interface, 1 to 15 characters
	Bridge string // to put it on, which exists; empty for none
	Queues int    // how many queues to ask for, up to MaxQueues; 0 for 1
	Log    *slog.Logger
}

// Tap is an open tap interface. ReadFrame and WriteFrame of different queues may
// run beside each other, and so may one of each of the same queue; the other
// methods may be called at any time.
type Tap struct {
	name   string
	queues []*queue

	mtu  int
	undo []func() error // of Close, last first

	mu       sync.Mutex // guards the rest
	attached int        // queues in use: the first ones
	closed   bool
}

// Open opens or makes an interface. Every error names it and, if there is one,
// the mend. An interface that was made with one queue gives one; see Queues.
// The caller closes the Tap.
func Open(c Config) (*Tap, error) {
	t, err := open(c)
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", c.Name, err)
	}
	return t, nil
}

func open(c Config) (_ *Tap, err error) {
	if c.Name == "" || len(c.Name) >= unix.IFNAMSIZ || strings.ContainsAny(c.Name, "/: \t\n\x00%") || c.Name == "." || c.Name == ".." {
		return nil, fmt.Errorf("an interface's name has 1 to %d characters, without spaces, '/', ':' and '%%'", unix.IFNAMSIZ-1)
	}
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Queues < 0 || c.Queues > MaxQueues {
		return nil, fmt.Errorf("%d queues: there can be 1 to %d", c.Queues, MaxQueues)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	t := &Tap{name: c.Name}
	defer func() {
		if err != nil {
			_ = t.Close()
		}
	}()

	_, err = netlink.LinkByName(c.Name)
	made := err != nil

	// One that is there may have been made with one queue.
	flags := uint16(unix.IFF_MULTI_QUEUE)
	fd, err := attach(c.Name, flags)
	if errors.Is(err, unix.EINVAL) {
		flags = 0
		if fd, err = attach(c.Name, flags); err == nil && c.Queues > 1 {
			c.Log.Info("tap interface has one queue; one made with multi_queue serves more vCPUs", "tap", c.Name)
		}
	}
	if err != nil {
		return nil, explain(c.Name, err)
	}
	if flags == 0 {
		c.Queues = 1
	}
	for {
		q, err := newQueue(fd)
		if err != nil {
			return nil, err
		}
		t.queues = append(t.queues, q)
		if len(t.queues) == c.Queues {
			break
		}
		if fd, err = attach(c.Name, flags); err != nil {
			return nil, explain(c.Name, err)
		}
	}
	t.attached = len(t.queues)
	if err := t.Attach(1, 0); err != nil {
		return nil, err
	}
	if err := t.plug(c.Bridge); err != nil {
		return nil, err
	}
	if made {
		t.undo = nil // it goes away with its last queue
	}
	return t, nil
}

// plug sets the interface up, on a bridge or alone.
func (t *Tap) plug(bridge string) error {
	link, err := netlink.LinkByName(t.name)
	if err != nil {
		return err
	}
	t.mtu = link.Attrs().MTU
	if bridge != "" {
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("bridge %s: %w; make it beforehand: ip link add %s type bridge", bridge, err, bridge)
		}
		if was := link.Attrs().MasterIndex; was != master.Attrs().Index {
			if err := netlink.LinkSetMaster(link, master); err != nil {
				return fmt.Errorf("bridge %s: %w; put it there beforehand: ip link set %s master %s", bridge, err, t.name, bridge)
			}
			t.undo = append(t.undo, func() error { return netlink.LinkSetMasterByIndex(link, was) })
		}
	}
	if link.Attrs().RawFlags&unix.IFF_UP == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set up: %w; do it beforehand: ip link set %s up", err, t.name)
		}
		t.undo = append(t.undo, func() error { return netlink.LinkSetDown(link) })
	}
	return nil
}

// attach opens one queue of an interface.
func attach(name string, flags uint16) (int, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: device, Err: err}
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, frame.HeaderLen)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// explain adds the mend to why attach failed.
func explain(name string, err error) error {
	var path *fs.PathError
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("permission denied: run as root, or make it beforehand: ip tuntap add %s mode tap user $USER multi_queue vnet_hdr", name)
	case errors.As(err, &path):
		return fmt.Errorf("%w: this host has no tap interfaces; load their driver: modprobe tun", err)
	case errors.Is(err, unix.EBUSY):
		return errors.New("another process uses it; name another interface")
	case errors.Is(err, unix.EINVAL):
		return errors.New("there is an interface of this name that is no tap; name another")
	default:
		return err
	}
}

// Close gives the interface up: it is gone if Open made it, and otherwise as it
// was. Reads and writes that are under way end with an error. Further calls do
// nothing.
func (t *Tap) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	var errs []error
	for i := len(t.undo) - 1; i >= 0; i-- {
		errs = append(errs, t.undo[i]())
	}
	for _, q := range t.queues {
		errs = append(errs, q.file.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tap %s: %w", t.name, err)
	}
	return nil
}

// Queues is how many queues there are.
func (t *Tap) Queues() int { return len(t.queues) }

// Offloads is all that there is: the kernel carries every one.
func (t *Tap) Offloads() frame.Offloads {
	return frame.Checksum | frame.TSO4 | frame.TSO6 | frame.ECN
}

// MTU is the interface's, as Open found it.
func (t *Tap) MTU() int { return t.mtu }

// offloadFlags of TUNSETOFFLOAD (linux/if_tun.h).
var offloadFlags = []struct {
	offload frame.Offloads
	flag    int
}{
	{frame.Checksum, unix.TUN_F_CSUM},
	{frame.TSO4, unix.TUN_F_TSO4},
	{frame.TSO6, unix.TUN_F_TSO6},
	{frame.ECN, unix.TUN_F_TSO_ECN},
}

// Attach takes the first n queues into use, and the others out of it, so that
// the kernel spreads flows over those; frames read from now on may carry the
// offloads in accept. It ends what Interrupt began.
func (t *Tap) Attach(n int, accept frame.Offloads) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n < 1 || n > len(t.queues) {
		return fmt.Errorf("tap %s: %d queues of %d", t.name, n, len(t.queues))
	}
	for ; t.attached < n; t.attached++ {
		if err := t.queues[t.attached].enable(true); err != nil {
			return fmt.Errorf("tap %s: attach queue %d: %w", t.name, t.attached, err)
		}
	}
	for ; t.attached > n; t.attached-- {
		if err := t.queues[t.attached-1].enable(false); err != nil {
			return fmt.Errorf("tap %s: detach queue %d: %w", t.name, t.attached-1, err)
		}
	}
	flags := 0
	for _, o := range offloadFlags {
		if accept.Has(o.offload) {
			flags |= o.flag
		}
	}
	err := t.queues[0].control(func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) })
	if err != nil {
		return fmt.Errorf("tap %s: offloads %#x: %w", t.name, flags, err)
	}
	for _, q := range t.queues {
		if err := q.file.SetReadDeadline(time.Time{}); err != nil {
			return fmt.Errorf("tap %s: %w", t.name, err)
		}
	}
	return nil
}

// Interrupt ends every ReadFrame that waits, and those that come, with
// os.ErrDeadlineExceeded, until the next Attach.
func (t *Tap) Interrupt() {
	for _, q := range t.queues {
		// It fails only after Close, when reads fail anyway.
		_ = q.file.SetReadDeadline(time.Unix(1, 0))
	}
}

// ReadFrame fills bufs with the next frame of a queue and its header, and gives
// the length of both. If there is none it waits, or returns 0 if wait is false.
// A frame longer than bufs is cut.
func (t *Tap) ReadFrame(queue int, bufs [][]byte, wait bool) (int, error) {
	return t.queues[queue].in.do(bufs, wait)
}

// WriteFrame sends a frame, its header first. It fails while the interface is
// down.
func (t *Tap) WriteFrame(queue int, bufs [][]byte) error {
	_, err := t.queues[queue].out.do(bufs, false)
	return err
}
