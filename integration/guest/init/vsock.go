package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
)

// vsockCID returns the context id of this guest.
func vsockCID() (uint32, error) {
	f, err := os.Open("/dev/vsock")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	cid, err := unix.IoctlGetUint32(int(f.Fd()), unix.IOCTL_VM_SOCKETS_GET_LOCAL_CID)
	if err == nil && cid == unix.VMADDR_CID_ANY {
		err = errors.New("there is no vsock device")
	}
	return cid, err
}

func vsockEcho(arg string) error {
	p, err := port(arg)
	if err != nil {
		return err
	}
	cid, err := vsockCID()
	if err != nil {
		return err
	}
	fd, err := listen(unix.AF_VSOCK, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: p})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	say("vsock-echo=%d cid=%d", p, cid)
	c, err := accept(fd)
	if err != nil {
		return err
	}
	defer c.Close()
	// Plain read and write: what io.Copy would use between sockets, splice, is
	// not what is tried here.
	n := 0
	buffer := make([]byte, 64<<10)
	for {
		m, err := c.Read(buffer)
		if m > 0 {
			if _, err := c.Write(buffer[:m]); err != nil {
				return fmt.Errorf("after %d bytes: %w", n, err)
			}
			n += m
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", n, err)
		}
	}
	say("vsock-echo=%d bytes=%d", p, n)
	return nil
}

func vsockConnect(arg string) error {
	p, err := port(arg)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	c := os.NewFile(uintptr(fd), "connection")
	defer c.Close()
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: p}); err != nil {
		return fmt.Errorf("connect to port %d of the host: %w", p, err)
	}
	if _, err := io.WriteString(c, guest.PageBody); err != nil {
		return err
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	reply, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(reply)) {
		say("vsock-reply=%s", strings.TrimSuffix(line, "\n"))
	}
	return nil
}
