package vsock

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"disco/virtio/virtiotest"
)

// guest is the guest's side of a device under test: it keeps the receive queue
// filled and hands packets on.
type guest struct {
	t       *testing.T
	dev     *Device
	driver  *virtiotest.Driver
	path    string
	packets chan packet
	done    chan struct{}
	loop    sync.WaitGroup

	mu sync.Mutex // the transmit ring
}

type packet struct {
	header
	data []byte
}

func newDevice(t testing.TB) (*Device, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "v.sock")
	dev, err := New(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
	})
	return dev, path
}

func boot(t *testing.T) *guest {
	t.Helper()
	dev, path := newDevice(t)
	g := &guest{t: t, dev: dev, path: path}
	g.driver = virtiotest.Start(t, dev, virtiotest.Options{})
	g.begin()
	t.Cleanup(g.end)
	return g
}

func (g *guest) begin() {
	g.packets, g.done = make(chan packet, 1<<16), make(chan struct{})
	g.loop.Go(g.receive)
}

// end stops the driver and the device.
func (g *guest) end() {
	if g.done != nil {
		close(g.done)
		g.loop.Wait()
		g.done = nil
		g.driver.Stop()
	}
}

func (g *guest) receive() {
	r := g.driver.Rings[queueReceive]
	shapes := [][]int{{headerSize + 4096}, {headerSize, 4096}, {headerSize / 2, 100, 1000}}
	for i := range 24 {
		r.Add(nil, shapes[i%len(shapes)])
	}
	r.Kick()
	for i := 0; ; {
		u, ok := r.Take()
		if !ok {
			select {
			case <-g.done:
				return
			case <-time.After(20 * time.Microsecond):
			}
			continue
		}
		var all []byte
		for _, b := range u.Data {
			all = append(all, b...)
		}
		var p packet
		p.decode((*[headerSize]byte)(all))
		if int(u.Written) != headerSize+int(p.length) {
			g.t.Errorf("%d bytes written for a packet of %d", u.Written, p.length)
		}
		p.data = all[headerSize : headerSize+int(p.length)]
		g.packets <- p
		r.Add(nil, shapes[i%len(shapes)])
		i++
		r.Kick()
	}
}

// send sends a packet, cut in two buffers.
func (g *guest) send(h header, data []byte) {
	h.length = uint32(len(data))
	g.sendRaw(h, data)
}

func (g *guest) sendRaw(h header, data []byte) {
	if h.kind == 0 {
		h.kind = typeStream
	}
	if h.srcCID == 0 {
		h.srcCID, h.dstCID = DefaultCID, hostCID
	}
	var raw [headerSize]byte
	h.encode(&raw)
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.driver.Rings[queueTransmit]
	for r.Free() < 3 {
		r.Wait()
	}
	readable := [][]byte{raw[:]}
	if len(data) > 0 {
		readable = append(readable, data)
	}
	r.Add(readable, nil)
	r.Kick()
	for {
		if _, ok := r.Take(); !ok {
			break
		}
	}
}

// expect waits for the next packet, which must be op.
func (g *guest) expect(op uint16) packet {
	g.t.Helper()
	select {
	case p := <-g.packets:
		if p.op != op || p.srcCID != hostCID || p.dstCID != DefaultCID || p.kind != typeStream {
			g.t.Fatalf("got %+v, want operation %d", p.header, op)
		}
		return p
	case <-time.After(10 * time.Second):
		g.t.Fatalf("no packet in 10 s, want operation %d", op)
	}
	panic("unreachable")
}

// quiet checks that the device has nothing to say.
func (g *guest) quiet() {
	g.t.Helper()
	select {
	case p := <-g.packets:
		g.t.Fatalf("got %+v, want nothing", p.header)
	case <-time.After(30 * time.Millisecond):
	}
}

// reply is a packet back to where p came from.
func (p packet) reply(op uint16) header {
	return header{srcPort: p.dstPort, dstPort: p.srcPort, op: op, bufAlloc: 64 << 10}
}

// dial is a host program that asks for a port of the guest.
func (g *guest) dial(port uint32) *net.UnixConn {
	g.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: g.path, Net: "unix"})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(c, "CONNECT %d\n", port)
	return c
}

// dialed is dial, accepted by the guest; its request comes back.
func (g *guest) dialed(port uint32) (*net.UnixConn, packet) {
	g.t.Helper()
	c := g.dial(port)
	p := g.expect(opRequest)
	g.send(p.reply(opResponse), nil)
	var host uint32
	if _, err := fmt.Fscanf(oneByte{c}, "OK %d\n", &host); err != nil || host != p.srcPort || p.dstPort != port {
		g.t.Fatalf("port %d (%v), request from %d to %d", host, err, p.srcPort, p.dstPort)
	}
	return c, p
}

// oneByte keeps Fscanf from reading ahead.
type oneByte struct{ net.Conn }

func (r oneByte) Read(p []byte) (int, error) { return r.Conn.Read(p[:min(1, len(p))]) }

// listen is a host program that serves a port for the guest.
func (g *guest) listen(port uint32) *net.UnixListener {
	g.t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("%s_%d", g.path, port), Net: "unix"})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close() })
	return l
}

// connected is a stream that the guest began.
func (g *guest) connected(port uint32) (*net.UnixConn, packet) {
	g.t.Helper()
	l := g.listen(port)
	g.send(header{srcPort: 5000, dstPort: port, op: opRequest, bufAlloc: 64 << 10}, nil)
	p := g.expect(opResponse)
	c, err := l.AcceptUnix()
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c, p
}

// pair is two connected sockets.
func pair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1], nil
}

func readLine(c net.Conn) (string, error) { return bufio.NewReader(c).ReadString('\n') }

// peers is a guest kernel of sorts: it accepts every stream and echoes its
// bytes, with credit both ways, until it has seen the end of all.
type peers struct {
	g       *guest
	streams map[name]*peer
}

type peer struct {
	received, forwarded    uint32
	sent, hostBuf, hostFwd uint32
	waiting                []byte
	hostClosed, closed     bool
	toldFwd                uint32
}

const peerBuf = 32 << 10

func (e *peers) run(done <-chan struct{}) {
	for {
		select {
		case p := <-e.g.packets:
			e.take(p)
		case <-done:
			return
		}
	}
}

func (e *peers) take(p packet) {
	n := name{guest: p.dstPort, host: p.srcPort}
	c := e.streams[n]
	if c == nil {
		if p.op != opRequest {
			return
		}
		c = &peer{}
		e.streams[n] = c
	}
	c.hostBuf, c.hostFwd = p.bufAlloc, p.fwdCnt
	say := func(op uint16, flags uint32, data []byte) {
		h := p.reply(op)
		h.flags, h.bufAlloc, h.fwdCnt = flags, peerBuf, c.forwarded
		c.toldFwd = c.forwarded
		e.g.send(h, data)
	}
	switch p.op {
	case opRequest:
		say(opResponse, 0, nil)
	case opData:
		if c.received += p.length; c.received-c.toldFwd > peerBuf {
			e.g.t.Errorf("the device overran the credit of %v", n)
		}
		c.waiting = append(c.waiting, p.data...)
	case opShutdown:
		c.hostClosed = c.hostClosed || p.flags&shutdownSend != 0
	case opCreditRequest:
		say(opCreditUpdate, 0, nil)
	case opReset:
		delete(e.streams, n)
		return
	}
	for len(c.waiting) > 0 {
		m := min(len(c.waiting), int(c.hostBuf-(c.sent-c.hostFwd)), 10000)
		if m == 0 {
			break
		}
		c.forwarded += uint32(m)
		c.sent += uint32(m)
		say(opData, 0, c.waiting[:m])
		c.waiting = c.waiting[m:]
	}
	if c.hostClosed && len(c.waiting) == 0 && !c.closed {
		c.closed = true
		say(opShutdown, shutdownBoth, nil)
	}
}
