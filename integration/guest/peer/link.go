package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/guest/solo"
)

// bits are those of the network in an address.
const bits = 24

// connectLink gives the one Ethernet interface its address, and brings it and the
// loopback up.
func connectLink(w solo.Words) (address netip.Addr, err error) {
	if address, err = netip.ParseAddr(w.Text("address", "")); err != nil {
		return address, fmt.Errorf("disco.address: %w", err)
	}
	name, err := ethernet()
	if err != nil {
		return address, err
	}
	if err := configure(name, address); err != nil {
		return address, fmt.Errorf("%s: %w", name, err)
	}
	mtu, err := os.ReadFile(filepath.Join(interfaces, name, "mtu"))
	if err != nil {
		return address, err
	}
	solo.Say("net=%s address=%v mtu=%s", name, address, strings.TrimSpace(string(mtu)))
	return address, nil
}

func configure(name string, address netip.Addr) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := up(s, "lo"); err != nil {
		return err
	}
	mask := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), bits).Masked().Addr()
	for _, set := range []struct {
		request uint
		address netip.Addr
	}{{unix.SIOCSIFADDR, address}, {unix.SIOCSIFNETMASK, mask}} {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := r.SetInet4Addr(set.address.AsSlice()); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, set.request, r); err != nil {
			return fmt.Errorf("%v: %w", set.address, err)
		}
	}
	return up(s, name)
}

func up(s int, name string) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

const interfaces = "/sys/class/net"

// ethernet waits for the first interface that is one; a device may be a moment
// behind its driver.
func ethernet() (string, error) {
	for range 500 {
		entries, err := os.ReadDir(interfaces)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			kind, err := os.ReadFile(filepath.Join(interfaces, e.Name(), "type"))
			if err == nil && strings.TrimSpace(string(kind)) == "1" { // ARPHRD_ETHER
				return e.Name(), nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", errors.New("there is no network interface")
}

// Sockets block, and are used by the plain system calls: the runtime's poller would
// be part of what is measured.

// listen accepts TCP connections at a port.
func listen(port int) (int, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(s, &unix.SockaddrInet4{Port: port}); err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	return s, unix.Listen(s, 8)
}

// dial connects to a port of the server, which may not be there for a while.
func dial(server string, port int) (int, error) {
	a, err := netip.ParseAddr(server)
	if err != nil {
		return -1, fmt.Errorf("disco.server: %w", err)
	}
	for range 600 {
		var s int
		if s, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return -1, err
		}
		if err = unix.Connect(s, &unix.SockaddrInet4{Port: port, Addr: a.As4()}); err == nil {
			return s, unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		unix.Close(s)
		time.Sleep(100 * time.Millisecond)
	}
	return -1, fmt.Errorf("%s, port %d: %w", server, port, err)
}

// readAll fills p.
func readAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Read(fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errClosed
		default:
			p = p[n:]
		}
	}
	return nil
}

// writeAll writes all of p.
func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		p = p[max(n, 0):]
	}
	return nil
}

var errClosed = errors.New("the connection was closed")
