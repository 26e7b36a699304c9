package user

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// Forward is a way into the guest: what comes to a port of the host goes to a
// port of the guest's DHCP address.
type Forward struct {
	Proto     string // "tcp" or "udp"
	HostAddr  string // IP address to listen on; empty for 127.0.0.1
	HostPort  uint16
	GuestPort uint16
}

// String is the forward as users write it.
func (f Forward) String() string {
	return fmt.Sprintf("%s:%d:%d", f.Proto, f.HostPort, f.GuestPort)
}

func (f Forward) hostAddr() string {
	a := f.HostAddr
	if a == "" {
		a = loopback.String()
	}
	return net.JoinHostPort(a, strconv.Itoa(int(f.HostPort)))
}

// forward opens a forward's port.
func (n *Net) forward(f Forward) error {
	if f.HostAddr != "" {
		if _, err := netip.ParseAddr(f.HostAddr); err != nil {
			return fmt.Errorf("forward %s: %q is no IP address", f, f.HostAddr)
		}
	}
	if f.HostPort == 0 || f.GuestPort == 0 {
		return fmt.Errorf("forward %s: ports are 1 to 65535", f)
	}
	var err error
	switch f.Proto {
	case "tcp":
		err = n.listenTCP(f)
	case "udp":
		err = n.listenUDP(f)
	default:
		return fmt.Errorf("forward %s: %q is no protocol; use tcp or udp", f, f.Proto)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("forward %s: port %d is taken on this host; choose another", f, f.HostPort)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("forward %s: this user may not listen on port %d; choose one above 1023", f, f.HostPort)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("forward %s: this host does not have the address %s", f, f.HostAddr)
	default:
		return fmt.Errorf("forward %s: %w", f, err)
	}
}
