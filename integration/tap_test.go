package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"disco/integration/guest"
)

// The network between the lab and a guest on a tap.
const (
	tapBridge = "disco-test-br"
	tapName   = "disco-test-tap"
	tapHost   = "10.77.0.1"
	tapGuest  = "10.77.0.2"
)

// bridge makes a bridge that has the host's address.
func bridge(t testing.TB) {
	t.Helper()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: tapBridge}}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(br); err != nil {
			t.Error(err)
		}
	})
	address, err := netlink.ParseAddr(tapHost + "/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.AddrAdd(br, address), netlink.LinkSetUp(br)); err != nil {
		t.Fatal(err)
	}
}

// echo sends back what comes to an address, and gives the port.
func echo(t testing.TB, address string) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}

// TestLabTap: a guest on a tap fetches a page and serves one. Then it is made to
// work: four CPUs write and read back a disk and exchange data over the tap and
// user-mode networking, all at once, and every byte is checked.
func TestLabTap(t *testing.T) {
	const size = 16 << 20
	bridge(t)
	served, body := page(t, tapHost+":0")
	disk := testDisk(t, "disk", size)
	l := bootGuest(t, strings.Join([]string{
		"address=eth1/" + tapGuest + "/24",
		"net",
		fmt.Sprintf("http-get=http://%s:%d/", tapHost, served),
		"http-serve=80",
		fmt.Sprintf("traffic=10/vda/10.0.2.2:%d/%s:%d/%s:%d", echo(t, "127.0.0.1"), tapHost, echo(t, tapHost), tapHost, echo(t, tapHost)),
		"cpus",
	}, ","), "--cpus", "4", "--memory", "512M", "--disk", disk, "--net", "user", "--net", "tap="+tapName+",bridge="+tapBridge)
	l.says(guest.Prefix + "http-serve=80")
	if got := l.get("http://" + tapGuest + "/"); got != guest.PageBody {
		t.Errorf("the guest serves %q, want %q", got, guest.PageBody)
	}
	l.get("http://" + tapGuest + "/stop")
	l.ends(0)
	l.did("address", "net", "http-get", "http-serve", "traffic", "cpus")
	l.fetched(body)
	holds(t, disk, size, guest.PatternGuest)
	for _, line := range strings.Split(l.console.String(), "\n") {
		if strings.Contains(line, "traffic-") {
			t.Log(strings.TrimSpace(line))
		}
	}
	if _, err := netlink.LinkByName(tapName); err == nil {
		t.Errorf("the interface %s is left", tapName)
	}
}
