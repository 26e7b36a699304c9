package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
)

// page serves a page that no other test's guest asks for.
func page(t testing.TB, address string) (port int, body string) {
	t.Helper()
	body = fmt.Sprintf("a page for %s\nof two lines", t.Name())
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, body)
	}))
	s.Listener.Close()
	s.Listener = ln
	s.Start()
	t.Cleanup(s.Close)
	return ln.Addr().(*net.TCPAddr).Port, body
}

// freePort is a TCP port of the loopback that nobody listens on.
func freePort(t testing.TB) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// get fetches a page from the guest. Until the guest listens, connections are
// refused or reset.
func (l *linux) get(url string) string {
	l.t.Helper()
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for end := time.Now().Add(step); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		r, err := c.Get(url)
		if err != nil {
			last = err
			continue
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK {
			l.t.Fatalf("%s: %s, %v", url, r.Status, err)
		}
		return string(body)
	}
	l.t.Fatalf("%v, %s", last, l.stood())
	return ""
}

// fetched checks that the guest printed the lines of a page.
func (l *linux) fetched(body string) {
	l.t.Helper()
	for line := range strings.Lines(body) {
		l.says(guest.Prefix + "http-body=" + strings.TrimSuffix(line, "\n"))
	}
}

// TestLabNetwork: a guest with user-mode networking fetches a page and serves
// one; it talks over vsock in both directions; it sees errors, and no more, of a
// disk that became shorter meanwhile; and it powers off by the button. All of it
// comes after the drivers have been taken from their devices once.
func TestLabNetwork(t *testing.T) {
	served, body := page(t, "127.0.0.1:0")
	forwarded := freePort(t)
	vsock := filepath.Join(t.TempDir(), "vsock")
	const size = 1 << 20
	disk := testDisk(t, "disk", size)
	host := hostService(t, vsock+"_7000")
	l := bootGuest(t, fmt.Sprintf("rebind,net,http-get=http://10.0.2.2:%d/,http-serve=80,vsock-echo=5000,vsock-connect=7000,disk-read=vda,wait-button", served),
		"--cpus", "2", "--memory", "256M", "--net", fmt.Sprintf("user,forward=tcp:%d:80", forwarded), "--vsock", vsock, "--disk", disk)

	url := fmt.Sprintf("http://127.0.0.1:%d", forwarded)
	if got := l.get(url + "/"); got != guest.PageBody {
		t.Errorf("the guest serves %q, want %q", got, guest.PageBody)
	}
	if err := os.Truncate(disk, size/2); err != nil {
		t.Fatal(err)
	}
	l.get(url + "/stop")
	l.fetched(body)
	l.says("gateway=10.0.2.2")
	if got := l.number("rebound"); got != 4 { // rng, disk, network, vsock
		t.Errorf("%d devices changed hands, want 4", got)
	}

	l.says(guest.Prefix + "vsock-echo=5000 cid=")
	l.echoes(vsock, 5000, 1<<20)
	select {
	case got := <-host:
		if got != guest.PageBody {
			t.Errorf("over vsock came %q, want %q", got, guest.PageBody)
		}
	case <-time.After(step):
		t.Fatalf("nothing comes over vsock, %s", l.stood())
	}
	l.says(guest.Prefix + "vsock-reply=well met")

	l.says(guest.Prefix + "task=disk-read result=failed reason=")
	if !contains(&l.console, "input/output error") {
		t.Errorf("no error of the disk, %s", l.stood())
	}
	l.says(guest.Prefix + "waiting=button")
	if err := l.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.ends(0)
	l.did("rebind", "net", "http-get", "http-serve", "vsock-echo", "vsock-connect")
	for _, want := range []string{"button=power", "end=poweroff"} {
		if !contains(&l.console, guest.Prefix+want) {
			t.Errorf("the guest did not say %s, %s", want, l.stood())
		}
	}
	// It may also say that the disk is shorter.
	if said := l.messages.String(); strings.Count(said, "the power button is pressed") != 1 {
		t.Errorf("disco said %q", said)
	}
	if _, err := os.Stat(vsock); err == nil {
		t.Errorf("the socket %s is left", vsock)
	}
	if ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", forwarded)); err != nil {
		t.Errorf("the forwarded port is still taken: %v", err)
	} else {
		ln.Close()
	}
}

// echoes connects to the guest's port by the UNIX socket, and has n bytes come
// back.
func (l *linux) echoes(socket string, port, n int) {
	t := l.t
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(step)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	if answer, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(answer, "OK ") {
		t.Fatalf("CONNECT %d: %q, %v, %s", port, answer, err, l.stood())
	}
	want := make([]byte, n)
	guest.Pattern(want, 1, 0)
	go func() {
		_, _ = c.Write(want)
		_ = c.(*net.UnixConn).CloseWrite()
	}()
	got, err := io.ReadAll(in)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes came back of %d, or others (%v), %s", len(got), n, err, l.stood())
	}
	l.says(fmt.Sprintf("%svsock-echo=%d bytes=%d", guest.Prefix, port, n))
}

// hostService takes one connection at a UNIX socket, answers it, and gives what
// it got.
func hostService(t testing.TB, path string) <-chan string {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	got := make(chan string, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(c, "well met\n")
		got <- string(b)
	}()
	return got
}
