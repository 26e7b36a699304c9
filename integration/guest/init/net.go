package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
)

// leases is where the DHCP client's script leaves what it was given.
const leases = "/run/lease."

// startBusybox starts one of busybox's programs on the console.
func startBusybox(args ...string) (*os.Process, error) {
	return os.StartProcess("/bin/busybox", append([]string{"busybox"}, args...), &os.ProcAttr{
		Env:   append(os.Environ(), "PATH=/bin"),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
}

// patience is how long one of busybox's programs may take.
const patience = 60 * time.Second

// busybox runs one of busybox's programs to its end and returns its output.
func busybox(args ...string) ([]byte, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	p, err := os.StartProcess("/bin/busybox", append([]string{"busybox"}, args...), &os.ProcAttr{
		Env:   append(os.Environ(), "PATH=/bin"),
		Files: []*os.File{nil, w, w},
	})
	w.Close()
	if err != nil {
		return nil, err
	}
	defer time.AfterFunc(patience, func() { p.Kill() }).Stop()
	out, readErr := io.ReadAll(r)
	state, err := p.Wait()
	switch {
	case err != nil:
		return out, err
	case !state.Success():
		return out, fmt.Errorf("busybox %s: %s: %s", args[0], state, strings.TrimSpace(string(out)))
	}
	return out, readErr
}

// configureNet asks for an address on every Ethernet interface that has none yet.
func configureNet() error {
	var errs []error
	busybox("ip", "link", "set", "lo", "up")
	interfaces, _ := filepath.Glob("/sys/class/net/*")
	for _, dir := range interfaces {
		name := filepath.Base(dir)
		if readText(dir+"/type") != "1" || readText(leases+name) != "" { // ARPHRD_ETHER
			continue
		}
		if _, err := busybox("udhcpc", "-i", name, "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", "/etc/udhcpc"); err != nil {
			errs = append(errs, fmt.Errorf("%s: no address: %w", name, err))
		}
		say("net=%s mac=%s %s", name, readText(dir+"/address"), readText(leases+name))
	}
	return errors.Join(errs...)
}

// setAddress gives an interface an address by hand, INTERFACE/ADDRESS/BITS.
func setAddress(arg string) error {
	name, address, _ := strings.Cut(arg, "/")
	for _, args := range [][]string{
		{"ip", "addr", "add", address, "dev", name},
		{"ip", "link", "set", name, "up"},
	} {
		if _, err := busybox(args...); err != nil {
			return err
		}
	}
	lease := "address=" + address + " gateway=none dns=none"
	say("net=%s mac=%s %s", name, readText("/sys/class/net/"+name+"/address"), lease)
	return os.WriteFile(leases+name, []byte(lease), 0o644)
}

func httpGet(url string) error {
	if err := configureNet(); err != nil {
		return err
	}
	body, err := busybox("wget", "-q", "-O", "-", url)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(body)) {
		say("http-body=%s", strings.TrimSuffix(line, "\n"))
	}
	return nil
}

func port(arg string) (uint32, error) {
	n, err := strconv.ParseUint(arg, 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port", arg)
	}
	return uint32(n), nil
}

// listen returns a listening stream socket.
func listen(family int, at unix.Sockaddr) (fd int, err error) {
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if family == unix.AF_INET {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("SO_REUSEADDR: %w", err)
		}
	}
	if err := unix.Bind(fd, at); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, 16); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen: %w", err)
	}
	return fd, nil
}

func accept(fd int) (*os.File, error) {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
		return os.NewFile(uintptr(c), "connection"), nil
	}
}

// httpServe answers requests one after the other, as HTTP/1.0 allows (RFC 1945).
func httpServe(arg string) error {
	p, err := port(arg)
	if err != nil || p > 65535 {
		return fmt.Errorf("http-serve=%s: want a TCP port", arg)
	}
	if err := configureNet(); err != nil {
		return err
	}
	fd, err := listen(unix.AF_INET, &unix.SockaddrInet4{Port: int(p)})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	say("http-serve=%d", p)
	for {
		c, err := accept(fd)
		if err != nil {
			return err
		}
		path := answer(c)
		c.Close()
		say("http-request=%s", path)
		if path == "/stop" {
			return nil
		}
	}
}

// answer serves one request and returns the path that it asked for.
func answer(c *os.File) string {
	in := bufio.NewReaderSize(c, 4096)
	request, _ := in.ReadString('\n')
	for {
		line, err := in.ReadString('\n')
		if err != nil || strings.TrimSpace(line) == "" {
			break
		}
	}
	words := strings.Fields(request)
	status, body, path := "400 Bad Request", "", "?"
	if len(words) >= 2 && words[0] == "GET" {
		path = words[1]
		if size, ok := strings.CutPrefix(path, "/pattern/"); ok {
			_ = servePattern(c, size) // who asked notices
			return path
		}
		switch path {
		case "/":
			status, body = "200 OK", guest.PageBody
		case "/stop":
			status, body = "200 OK", "stopping\n"
		default:
			status = "404 Not Found"
		}
	}
	fmt.Fprintf(c, "HTTP/1.0 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
	return path
}
