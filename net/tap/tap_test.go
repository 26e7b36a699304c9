package tap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"disco/net/frame"
)

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		c    Config
		want string
	}{
		{Config{}, "1 to 15 characters"},
		{Config{Name: "sixteen-letters-"}, "1 to 15 characters"},
		{Config{Name: "tap/0"}, "'/'"},
		{Config{Name: "tap%d"}, "'%'"},
		{Config{Name: ".."}, "name"},
		{Config{Name: "tap0", Queues: 9}, "1 to 8"},
		{Config{Name: "tap0", Queues: -1}, "1 to 8"},
	} {
		_, err := Open(c.c)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "tap "+c.c.Name+": ") {
			t.Errorf("%+v: %v, want %q in it", c.c, err, c.want)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{unix.EPERM, "ip tuntap add tap7 mode tap user $USER multi_queue vnet_hdr"},
		{&os.PathError{Op: "open", Path: device, Err: unix.EACCES}, "run as root"},
		{&os.PathError{Op: "open", Path: device, Err: unix.ENOENT}, "modprobe tun"},
		{unix.EBUSY, "another process"},
		{unix.EINVAL, "no tap"},
	} {
		if got := explain("tap7", c.err).Error(); !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%v: %q, want %q in it", c.err, got, c.want)
		}
	}
}

// namespace puts the test in a network of its own, which ends with it. The
// thread is not given back, so that it ends too.
func namespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("a network namespace needs root: %v", err)
	}
}

func mustOpen(t *testing.T, c Config) *Tap {
	t.Helper()
	tap, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
	})
	return tap
}

func addBridge(t *testing.T, name string) {
	t.Helper()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		t.Fatal(err)
	}
}

var (
	macA = []byte{2, 0, 0, 0, 0, 0xa}
	macB = []byte{2, 0, 0, 0, 0, 0xb}
)

// segment is a TCP segment of n payload bytes from A to B, its checksum left
// undone.
func segment(n int) []byte {
	p := make([]byte, 54+n)
	copy(p, macB)
	copy(p[6:], macA)
	p[12] = 8
	ip := p[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], uint16(40+n))
	copy(ip[12:], []byte{10, 9, 0, 1, 10, 9, 0, 2})
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:20]))
	tcp := ip[20:]
	binary.BigEndian.PutUint16(tcp, 1000)
	binary.BigEndian.PutUint16(tcp[2:], 2000)
	tcp[12], tcp[13] = 5<<4, 0x10
	binary.BigEndian.PutUint16(tcp[14:], 0xffff)
	for i := range tcp[20:] {
		tcp[20+i] = byte(i * 3)
	}
	binary.BigEndian.PutUint16(tcp[16:], sum(6+uint32(20+n), ip[12:20]))
	return p
}

func sum(s uint32, p []byte) uint16 {
	for i := 0; i+1 < len(p); i += 2 {
		s += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	if len(p)%2 == 1 {
		s += uint32(p[len(p)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// read gives the next frame from A to B; the host sends some of its own.
func read(t *testing.T, tap *Tap, queues int) (frame.Header, []byte) {
	t.Helper()
	head, body := make([]byte, frame.HeaderLen), make([]byte, frame.MaxLen)
	late := time.Now().Add(10 * time.Second)
	for time.Now().Before(late) {
		for q := range queues {
			n, err := tap.ReadFrame(q, [][]byte{head, body[:100], body[100:]}, false)
			if err != nil {
				t.Fatal(err)
			}
			if n > frame.HeaderLen+54 && bytes.Equal(body[:6], macB) {
				return frame.Parse(head), body[:n-frame.HeaderLen]
			}
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("no frame came")
	return frame.Header{}, nil
}

func write(t *testing.T, tap *Tap, queue int, h frame.Header, p []byte) {
	t.Helper()
	head := make([]byte, frame.HeaderLen)
	h.Put(head)
	if err := tap.WriteFrame(queue, [][]byte{head, p[:1], nil, p[1:]}); err != nil {
		t.Fatal(err)
	}
}

func TestHostBridge(t *testing.T) {
	namespace(t)
	addBridge(t, "br7")
	a := mustOpen(t, Config{Name: "tapa", Bridge: "br7", Queues: 4})
	b := mustOpen(t, Config{Name: "tapb", Bridge: "br7", Queues: 2})
	if a.Queues() != 4 || b.Queues() != 2 || a.MTU() != 1500 {
		t.Fatalf("queues %d and %d, MTU %d", a.Queues(), b.Queues(), a.MTU())
	}
	const all = frame.Checksum | frame.TSO4 | frame.TSO6 | frame.ECN
	for _, tap := range []*Tap{a, b} {
		if err := tap.Attach(2, all); err != nil {
			t.Fatal(err)
		}
	}
	h := frame.Header{
		Flags: frame.NeedsChecksum, GSOType: frame.GSOTCP4, HdrLen: 54, GSOSize: 1448,
		CsumStart: 34, CsumOffset: 16,
	}
	p := segment(50000)
	write(t, a, 1, h, p)
	if got, q := read(t, b, 2); got.GSOType != frame.GSOTCP4 || got.GSOSize != 1448 || got.Flags&frame.NeedsChecksum == 0 || !bytes.Equal(q, p) {
		t.Errorf("a long segment came as %+v and %d bytes", got, len(q))
	}

	// A driver that takes no offloads gets what the kernel finished.
	if err := b.Attach(1, 0); err != nil {
		t.Fatal(err)
	}
	write(t, a, 0, h, p)
	for left := 50000; left > 0; {
		got, q := read(t, b, 1)
		if got.Flags&frame.NeedsChecksum != 0 || got.GSOType != 0 || len(q) > 54+1448 {
			t.Fatalf("%d bytes with %+v for a driver without offloads", len(q), got)
		}
		tcp := q[34:]
		if s := sum(uint32(6+len(tcp))+uint32(sum(0, q[26:34])), tcp); s != 0xffff {
			t.Fatalf("checksum is off by %#x", ^s)
		}
		left -= len(tcp) - 20
	}

	// A pair that comes back into use works again.
	if err := b.Attach(2, all); err != nil {
		t.Fatal(err)
	}
	write(t, a, 0, frame.Header{}, segment(100))
	read(t, b, 2)

	for _, bad := range []int{0, 3} {
		if err := b.Attach(bad, 0); err == nil {
			t.Errorf("%d of 2 queues were attached", bad)
		}
	}
}

func TestHostMadeAndRemoved(t *testing.T) {
	namespace(t)
	tap, err := Open(Config{Name: "tap7", Queues: 3})
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("tap7")
	if err != nil || link.Attrs().RawFlags&unix.IFF_UP == 0 {
		t.Errorf("the interface is not there or not up: %v", err)
	}
	for range 2 {
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := netlink.LinkByName("tap7"); err == nil {
		t.Error("the interface is still there")
	}
}

func TestHostLeftAsItWas(t *testing.T) {
	namespace(t)
	addBridge(t, "br7")
	for _, c := range []struct {
		flags netlink.TuntapFlag
		want  int
	}{
		{netlink.TUNTAP_ONE_QUEUE, 1},
		{netlink.TUNTAP_MULTI_QUEUE_DEFAULTS, 2},
	} {
		mine := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "mine"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: c.flags}
		if err := netlink.LinkAdd(mine); err != nil {
			t.Fatal(err)
		}
		for _, fd := range mine.Fds {
			fd.Close()
		}
		tap, err := Open(Config{Name: "mine", Bridge: "br7", Queues: 2})
		if err != nil {
			t.Fatal(err)
		}
		if tap.Queues() != c.want {
			t.Errorf("%d queues, want %d", tap.Queues(), c.want)
		}
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
		link, err := netlink.LinkByName("mine")
		if err != nil {
			t.Fatal(err)
		}
		if a := link.Attrs(); a.RawFlags&unix.IFF_UP != 0 || a.MasterIndex != 0 {
			t.Errorf("flags %#x and bridge %d are left", a.RawFlags, a.MasterIndex)
		}
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHostRefusals(t *testing.T) {
	namespace(t)
	addBridge(t, "br7")
	for _, c := range []struct {
		c    Config
		want string
	}{
		{Config{Name: "br7"}, "tap br7: there is an interface of this name that is no tap"},
		{Config{Name: "tap7", Bridge: "br8"}, "ip link add br8 type bridge"},
	} {
		if _, err := Open(c.c); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q in it", c.c, err, c.want)
		}
	}
	if _, err := netlink.LinkByName("tap7"); err == nil {
		t.Error("the interface of a failed Open is still there")
	}
}

func TestHostInterrupt(t *testing.T) {
	namespace(t)
	tap := mustOpen(t, Config{Name: "tap7"})
	ended := make(chan error, 1)
	wait := func() {
		buf := [][]byte{make([]byte, 65536)}
		for {
			if _, err := tap.ReadFrame(0, buf, true); err != nil {
				ended <- err
				return
			}
		}
	}
	for range 3 {
		go wait()
		time.Sleep(10 * time.Millisecond)
		tap.Interrupt()
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("interrupted with %v", err)
		}
		if _, err := tap.ReadFrame(0, nil, true); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a read after Interrupt gives %v", err)
		}
		if err := tap.Attach(1, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHostNoAllocations(t *testing.T) {
	namespace(t)
	tap := mustOpen(t, Config{Name: "tap7"})
	head, p := make([]byte, frame.HeaderLen), segment(1000)
	bufs := [][]byte{head, p}
	into := [][]byte{make([]byte, 2000)}
	if a := testing.AllocsPerRun(200, func() {
		if err := tap.WriteFrame(0, bufs); err != nil {
			t.Fatal(err)
		}
		if _, err := tap.ReadFrame(0, into, false); err != nil {
			t.Fatal(err)
		}
	}); a != 0 {
		t.Errorf("a frame each way allocates %v times", a)
	}
}
