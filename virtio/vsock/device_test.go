package vsock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"disco/memory"
	"disco/virtio"
	"disco/virtio/virtiotest"
)

func TestHostConnects(t *testing.T) {
	g := boot(t)
	c, p := g.dialed(1234)
	c.Write([]byte("from the host"))
	if d := g.expect(opData); string(d.data) != "from the host" || d.bufAlloc != bufAlloc {
		t.Errorf("got %q, %+v", d.data, d.header)
	}
	g.send(p.reply(opData), []byte("from the guest\n"))
	if line, err := readLine(c); line != "from the guest\n" {
		t.Errorf("got %q, %v", line, err)
	}
	g.send(p.reply(opCreditRequest), nil)
	if d := g.expect(opCreditUpdate); d.fwdCnt != 15 {
		t.Errorf("forwarded %d bytes, want 15", d.fwdCnt)
	}
}

func TestHostConnectsToNobody(t *testing.T) {
	g := boot(t)
	c := g.dial(1234)
	g.send(g.expect(opRequest).reply(opReset), nil)
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Errorf("got %q, %v, want the end", b, err)
	}
}

func TestBadGreeting(t *testing.T) {
	g := boot(t)
	for _, line := range []string{"HELLO 3\n", "CONNECT\n", "CONNECT x\n", "CONNECT -1\n", "CONNECT 4294967296\n", "CONNECT 1 2\n", "\n", strings.Repeat("9", 100)} {
		c, err := net.Dial("unix", g.path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c, line)
		if n, err := c.Read(make([]byte, 10)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q got %d bytes, %v", line, n, err)
		}
		c.Close()
	}
	g.quiet()
}

func TestNoDriver(t *testing.T) {
	dev, path := newDevice(t)
	g := &guest{t: t, dev: dev, path: path}
	if b, err := io.ReadAll(g.dial(1)); len(b) != 0 || err != nil {
		t.Errorf("got %q, %v, want the end", b, err)
	}
}

func TestGuestConnects(t *testing.T) {
	g := boot(t)
	c, p := g.connected(80)
	g.send(p.reply(opData), []byte("question\n"))
	if line, err := readLine(c); line != "question\n" {
		t.Errorf("got %q, %v", line, err)
	}
	io.WriteString(c, "answer")
	if d := g.expect(opData); string(d.data) != "answer" {
		t.Errorf("got %q", d.data)
	}
	// Another request for the same stream is a mistake, and ends it.
	g.send(p.reply(opRequest), nil)
	g.expect(opReset)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the socket is still open")
	}
	if g.dev.Stats().Violated != 1 {
		t.Errorf("%+v", g.dev.Stats())
	}
}

func TestGuestConnectsToNobody(t *testing.T) {
	g := boot(t)
	g.send(header{srcPort: 1, dstPort: 81, op: opRequest}, nil)
	if p := g.expect(opReset); p.srcPort != 81 || p.dstPort != 1 {
		t.Errorf("got %+v", p.header)
	}
}

func TestUnknownStream(t *testing.T) {
	g := boot(t)
	for _, op := range []uint16{opResponse, opData, opShutdown, opCreditUpdate, opCreditRequest, 0, 99} {
		g.send(header{srcPort: 7, dstPort: 8, op: op}, nil)
		if p := g.expect(opReset); p.srcPort != 8 || p.dstPort != 7 {
			t.Errorf("operation %d got %+v", op, p.header)
		}
	}
	g.send(header{srcPort: 7, dstPort: 8, op: opRequest, kind: 2}, nil)
	g.expect(opReset)
	g.send(header{srcPort: 7, dstPort: 8, op: opReset}, nil)
	g.send(header{srcCID: 9, dstCID: hostCID, op: opRequest}, nil)
	g.send(header{srcCID: DefaultCID, dstCID: 1, op: opRequest}, nil)
	g.quiet()
	if g.dev.Stats().Dropped != 2 {
		t.Errorf("%+v", g.dev.Stats())
	}
}

func TestHalfClose(t *testing.T) {
	t.Run("host first", func(t *testing.T) {
		g := boot(t)
		c, p := g.dialed(9)
		io.WriteString(c, "last words")
		c.CloseWrite()
		g.expect(opData)
		if s := g.expect(opShutdown); s.flags != shutdownSend {
			t.Errorf("flags %d", s.flags)
		}
		g.send(p.reply(opData), []byte("still here\n"))
		if line, err := readLine(c); line != "still here\n" {
			t.Errorf("got %q, %v", line, err)
		}
		h := p.reply(opShutdown)
		h.flags = shutdownBoth
		g.send(h, nil)
		g.expect(opReset)
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the socket did not end: %v", err)
		}
	})
	t.Run("guest first", func(t *testing.T) {
		g := boot(t)
		c, p := g.dialed(9)
		g.send(p.reply(opData), []byte("last words"))
		h := p.reply(opShutdown)
		h.flags = shutdownSend
		g.send(h, nil)
		if b, err := io.ReadAll(c); string(b) != "last words" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
		io.WriteString(c, "still here")
		if d := g.expect(opData); string(d.data) != "still here" {
			t.Errorf("got %q", d.data)
		}
		g.send(p.reply(opData), []byte("after the end"))
		g.expect(opReset)
	})
	t.Run("guest closes with data on its way", func(t *testing.T) {
		g := boot(t)
		c, p := g.dialed(9)
		want := bytes.Repeat([]byte("x"), bufAlloc)
		g.send(p.reply(opData), want)
		h := p.reply(opShutdown)
		h.flags = shutdownBoth
		g.send(h, nil)
		g.send(p.reply(opReset), nil)
		if b, err := io.ReadAll(c); len(b) != len(want) || err != nil {
			t.Errorf("got %d bytes, %v, want %d", len(b), err, len(want))
		}
	})
	t.Run("host gone", func(t *testing.T) {
		g := boot(t)
		c, p := g.dialed(9)
		c.Close()
		g.expect(opShutdown)
		g.send(p.reply(opData), []byte("to nobody"))
		if s := g.expect(opShutdown); s.flags != shutdownBoth {
			t.Errorf("flags %d", s.flags)
		}
		g.send(p.reply(opReset), nil)
		g.quiet()
	})
}

func TestCreditOfGuest(t *testing.T) {
	g := boot(t)
	c, p := g.dialed(9)
	// The host program does not read: what fits is the socket's buffer, what
	// the pump holds, and ours, and then no credit is given.
	s := g.dev.service()
	s.mu.Lock()
	out := s.routes[name{guest: 9, host: p.srcPort}].out
	s.mu.Unlock()
	sent := uint32(0)
	credit := p.header
	for idle := 0; idle < 100; {
		for {
			select {
			case u := <-g.packets:
				credit = u.header
				continue
			default:
			}
			break
		}
		n := min(credit.bufAlloc-(sent-credit.fwdCnt), 30000)
		if n == 0 {
			// What the pump holds is not in our buffer any more, and the guest
			// learns of that when the pump moves.
			if idle++; out.Room() > pumpSize {
				idle = 0
			}
			time.Sleep(time.Millisecond)
			continue
		}
		idle = 0
		g.send(p.reply(opData), make([]byte, n))
		sent += n
	}
	if sent < bufAlloc || sent > 4<<20 {
		t.Fatalf("the guest sent %d bytes to nobody", sent)
	}
	// A guest that sends all the same is reset.
	g.send(p.reply(opData), make([]byte, pumpSize+1))
	g.expect(opReset)
	if g.dev.Stats().Violated != 1 {
		t.Errorf("%+v", g.dev.Stats())
	}
	c.Close()
}

func TestCreditOfDevice(t *testing.T) {
	g := boot(t)
	c := g.dial(9)
	p := g.expect(opRequest)
	h := p.reply(opResponse)
	h.bufAlloc = 100
	g.send(h, nil)
	readLine(oneByte{c})
	c.Write(make([]byte, 1000))
	if d := g.expect(opData); d.length != 100 {
		t.Errorf("%d bytes, credit for 100", d.length)
	}
	g.expect(opCreditRequest)
	for _, h := range []header{
		{bufAlloc: 100}, {bufAlloc: 0}, {bufAlloc: 10, fwdCnt: 20},
		{bufAlloc: 1000, fwdCnt: 5000}, {bufAlloc: math.MaxUint32, fwdCnt: 101}, // lies: more forwarded than sent
	} {
		h.srcPort, h.dstPort, h.op = p.dstPort, p.srcPort, opCreditUpdate
		g.send(h, nil)
	}
	h = p.reply(opCreditUpdate)
	h.bufAlloc, h.fwdCnt = 100, 60
	g.send(h, nil)
	total := uint32(100)
	for total < 160 {
		switch d := <-g.packets; d.op {
		case opData:
			total += d.length
		case opCreditRequest:
		default:
			t.Fatalf("got %+v", d.header)
		}
	}
	if total != 160 {
		t.Errorf("%d bytes in all, credit for 160", total)
	}
}

func TestMisbehaviour(t *testing.T) {
	for _, c := range []struct {
		name string
		act  func(g *guest)
		want error
	}{
		{"short packet", func(g *guest) { g.driver.Rings[queueTransmit].Add([][]byte{make([]byte, 43)}, nil) }, errShortPacket},
		{"empty packet", func(g *guest) { g.driver.Rings[queueTransmit].Add(nil, []int{100}) }, errShortPacket},
		{"truncated", func(g *guest) {
			var raw [headerSize]byte
			(&header{length: 100, kind: typeStream, op: opData}).encode(&raw)
			g.driver.Rings[queueTransmit].Add([][]byte{raw[:], make([]byte, 99)}, nil)
		}, errTruncated},
		{"bad address", func(g *guest) {
			g.driver.Rings[queueTransmit].AddRaw(virtiotest.Descriptor{Addr: memory.GPA(1) << 40, Len: 44})
		}, memory.ErrNotRAM},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := boot(t)
			host, _ := g.dialed(1)
			c.act(g)
			g.driver.Rings[queueTransmit].Kick()
			if err := g.driver.WaitFailed(); !errors.Is(err, c.want) {
				t.Errorf("failed with %v, want %v", err, c.want)
			}
			g.end()
			if _, err := host.Read(make([]byte, 1)); err == nil {
				t.Error("the stream outlived the device's reset")
			}
			g.driver.Restart(g.dev, virtiotest.Options{})
			g.begin()
			g.dialed(2)
		})
	}
}

func TestSmallReceiveBuffer(t *testing.T) {
	dev, path := newDevice(t)
	d := virtiotest.Start(t, dev, virtiotest.Options{})
	d.Rings[queueReceive].Add(nil, []int{headerSize - 1})
	d.Rings[queueReceive].Kick()
	g := &guest{t: t, dev: dev, path: path}
	g.dial(1)
	if err := d.WaitFailed(); !errors.Is(err, errSmallBuffer) {
		t.Errorf("failed with %v", err)
	}
}

// A guest that floods and takes nothing costs a bounded amount.
func TestBounds(t *testing.T) {
	dev, path := newDevice(t)
	g := &guest{t: t, dev: dev, path: path}
	g.driver = virtiotest.Start(t, dev, virtiotest.Options{}) // no receive buffers at all
	l := g.listen(80)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	for i := range uint32(3 * maxStreams) {
		g.send(header{srcPort: i, dstPort: 80, op: opRequest}, nil)
		g.send(header{srcPort: i, dstPort: 79, op: opData}, nil)
	}
	s := dev.service()
	for r := g.driver.Rings[queueTransmit]; r.Free() < int(queueSize); {
		r.Wait()
	}
	s.mu.Lock()
	if len(s.streams) > maxStreams || len(s.resets) > maxResets || len(s.ready) > maxStreams {
		t.Errorf("%d streams, %d resets, %d ready", len(s.streams), len(s.resets), len(s.ready))
	}
	s.mu.Unlock()
	if st := dev.Stats(); st.Refused == 0 || st.Dropped == 0 {
		t.Errorf("%+v", st)
	}
	g.driver.Stop()
	if n := len(s.streams); n != 0 {
		t.Errorf("%d streams are left after Stop", n)
	}
}

// Many streams, each way, at once, with far more bytes than any buffer.
func TestStress(t *testing.T) {
	g := boot(t)
	e := &peers{g: g, streams: map[name]*peer{}}
	done := make(chan struct{})
	var kernel, hosts sync.WaitGroup
	kernel.Go(func() { e.run(done) })
	for i := range uint64(40) {
		hosts.Go(func() {
			size := 3 << 20
			if i >= 8 {
				size = 50 << 10
			}
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: g.path, Net: "unix"})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(60 * time.Second))
			fmt.Fprintf(c, "CONNECT %d\n", 100+i)
			go func() {
				rng := rand.NewChaCha8([32]byte{byte(i)})
				if _, err := io.CopyN(c, rng, int64(size)); err != nil {
					t.Error(err)
				}
				c.CloseWrite()
			}()
			if line, err := readLine(oneByte{c}); !strings.HasPrefix(line, "OK ") {
				t.Errorf("stream %d: %q, %v", i, line, err)
				return
			}
			want := make([]byte, size)
			rand.NewChaCha8([32]byte{byte(i)}).Read(want)
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d bytes of %d came back, or others (%v)", i, len(got), size, err)
			}
		})
	}
	hosts.Wait()
	s := g.dev.service()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		n := len(s.streams)
		s.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d streams are left", n)
		}
	}
	close(done)
	kernel.Wait()
	if st := g.dev.Stats(); st != (Stats{}) {
		t.Errorf("%+v", st)
	}
}

// A reset in the middle of everything.
func TestStopUnderLoad(t *testing.T) {
	g := boot(t)
	for range 5 {
		e := &peers{g: g, streams: map[name]*peer{}}
		done := make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() { e.run(done) })
		for i := range 10 {
			all.Go(func() {
				c := g.dial(uint32(i))
				go io.Copy(c, rand.NewChaCha8([32]byte{}))
				io.Copy(io.Discard, c)
				c.Close()
			})
		}
		time.Sleep(50 * time.Millisecond)
		close(done)
		g.end()
		all.Wait()
		g.driver.Restart(g.dev, virtiotest.Options{})
		g.begin()
	}
}

func TestConfig(t *testing.T) {
	dev, _ := newDevice(t)
	for _, c := range []struct {
		off  uint64
		n    int
		want uint64
	}{{0, 8, DefaultCID}, {0, 4, DefaultCID}, {4, 4, 0}, {8, 8, 0}, {math.MaxUint64, 8, 0}} {
		p := make([]byte, 8)
		if dev.ReadConfig(c.off, p[:c.n]); binary.LittleEndian.Uint64(p) != c.want {
			t.Errorf("offset %d: %x", c.off, p)
		}
	}
	dev.WriteConfig(0, []byte{9})
	for _, cid := range []uint64{1, 2, 1<<32 - 1, 1 << 32, math.MaxUint64} {
		if d, err := New(Config{Path: filepath.Join(t.TempDir(), "s"), CID: cid}); err == nil {
			d.Close()
			t.Errorf("CID %d was taken", cid)
		}
	}
}

func TestSocketFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	refused := func(what, path, want string) {
		t.Helper()
		d, err := New(Config{Path: path})
		if err == nil {
			d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	os.WriteFile(path, []byte("mine"), 0o600)
	refused("a file", path, "is not a socket")
	os.Remove(path)
	refused("a missing folder", filepath.Join(dir, "no", "s"), "no such file")
	refused("a long path", filepath.Join(dir, strings.Repeat("x", 100)), "longer")

	a, err := New(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", st.Mode(), err)
	}
	refused("a socket in use", path, "in use")
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("Close left the socket")
	}

	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if a, err = New(Config{Path: path}); err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	os.Remove(path)
	os.WriteFile(path, []byte("another's"), 0o600)
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(path); string(b) != "another's" {
		t.Error("Close removed a file that was not the device's")
	}
}

func TestDoesNotAllocate(t *testing.T) {
	dev, _ := newDevice(t)
	s := newService(dev, nil)
	s.mu.Lock()
	c := s.add(name{guest: 5, host: 6})
	c.open = true
	s.mu.Unlock()
	var in, back [headerSize]byte
	data, room := make([]byte, 4096), make([]byte, 4096)
	h := header{srcCID: DefaultCID, dstCID: hostCID, srcPort: 5, dstPort: 6, kind: typeStream, op: opData, length: 4096, bufAlloc: 1 << 20}
	readable, writable := make([][]byte, 2), make([][]byte, 2)
	step := func() {
		h.encode(&in)
		readable[0], readable[1] = in[:], data
		if err := s.packet(&virtio.Chain{Readable: readable}); err != nil {
			t.Fatal(err)
		}
		c.out.TakeNow(room)
		s.moved(c)
		c.in.Put(data, nil)
		s.moved(c)
		n, x, _ := s.next()
		writable[0], writable[1] = back[:], room
		if n, err := s.fill(&virtio.Chain{Writable: writable}, n, x); n != headerSize+4096 || err != nil {
			t.Fatal(n, err)
		}
		var sent header
		sent.decode(&back)
		h.fwdCnt = c.sent
	}
	step() // the buffers are made
	if n := testing.AllocsPerRun(500, step); n != 0 {
		t.Errorf("%v allocations", n)
	}
	close(s.stop)
	if dev.Stats() != (Stats{}) {
		t.Errorf("%+v", dev.Stats())
	}
}

// FuzzVsockPacket plays packets of any bytes, 8 of input each for the fields
// that matter, to a device with a stream each way.
func FuzzVsockPacket(f *testing.F) {
	f.Add([]byte{0, 1, opData, 0, 10, 0, 0, 0, 0, 1, opShutdown, 3, 0, 0, 0, 0})
	f.Add([]byte{1, 2, opRequest, 0, 0, 1, 1, 0, 1, 2, opReset, 0, 0, 0, 0, 0, 0, 1, opCreditRequest, 0, 0, 0, 0, 255})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in []byte) {
		path := filepath.Join(dir, fmt.Sprint("s", os.Getpid()))
		dev, err := New(Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		s := newService(dev, nil)
		ours, theirs, err := pair()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			io.Copy(theirs, theirs)
			theirs.CloseWrite()
		}()
		defer theirs.Close()
		s.mu.Lock()
		c := s.add(name{guest: 1, host: firstHostPort})
		c.open, c.users = true, 0
		s.connected(c, ours)
		s.mu.Unlock()
		for ; len(in) >= 8; in = in[8:] {
			h := header{
				srcCID: DefaultCID, dstCID: hostCID, srcPort: uint32(in[0]), dstPort: uint32(in[1]),
				op: uint16(in[2]), flags: uint32(in[3]), length: uint32(in[4]) << (in[5] & 15), kind: typeStream,
				bufAlloc: uint32(in[6]) << (in[5] >> 3), fwdCnt: uint32(int32(int8(in[7]))),
			}
			if h.dstPort == 1 {
				h.dstPort = firstHostPort
			}
			if in[5] == 0xff {
				h.srcCID, h.kind = uint64(in[6]), uint16(in[7])
			}
			var raw [headerSize]byte
			h.encode(&raw)
			body := make([]byte, min(h.length, bufAlloc+100)+uint32(in[7])&1)
			err := s.packet(&virtio.Chain{Readable: [][]byte{raw[:20], raw[20:], body}})
			if (err != nil) != (int(h.length) > len(body)) {
				t.Fatalf("error %v", err)
			}
			for range 4 { // what is to be sent now
				s.mu.Lock()
				idle := len(s.ready)+len(s.resets) == 0
				s.mu.Unlock()
				if idle {
					break
				}
				n, x, _ := s.next()
				if _, err := s.fill(&virtio.Chain{Writable: [][]byte{make([]byte, headerSize+int(in[4]))}}, n, x); err != nil {
					t.Fatal(err)
				}
			}
			s.mu.Lock()
			if len(s.routes) > len(s.streams) || len(s.ready) > len(s.routes) || len(s.streams) > maxStreams {
				t.Fatalf("%d routes, %d streams, %d ready", len(s.routes), len(s.streams), len(s.ready))
			}
			s.mu.Unlock()
		}
		s.close()
		if len(s.streams) != 0 {
			t.Fatalf("%d streams are left", len(s.streams))
		}
	})
}
