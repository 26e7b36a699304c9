package main

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
	"disco/integration/guest/solo"
)

// The ways in which data are taken.
const (
	wayWrite    = "write"    // a TCP stream that the server writes
	waySendfile = "sendfile" // one that it sends of the file on its disk
	wayRAM      = "ram"      // one that it sends of a file in its memory
	wayEcho     = "echo"     // messages to and fro, one at a time
	wayNFS      = "nfs"      // the file on its disk, read by NFS
)

const (
	messageSize = 64
	mountPoint  = "/mnt"
	page        = 4 << 10
	// still is how long nothing happens before and after what is measured, so that
	// what the host counts between two lines is that and little else.
	still = 300 * time.Millisecond
)

// client is what takes data from the server.
type client struct {
	w                 solo.Words
	own               netip.Addr
	server            string
	bytes, exchanges  int
	p                 []byte
	fileSize, ramSize int

	way string
	// run takes so many bytes or messages by the way, and says how many bytes came.
	run    func(n int) (int, error)
	n      int // of a round
	rounds int // so far
	leave  func()
}

// measure takes data when a line comes on the console: "way" and its name has it
// prepare one and take a round's worth to warm up, "round" has it take as much again.
// The host looks at its counters when it reads the lines that begin and end a round.
func measure(w solo.Words) error {
	c := &client{w: w, server: w.Text("server", ""), p: make([]byte, 256<<10), leave: func() {}}
	var err error
	if c.own, err = connectLink(w); err != nil {
		return err
	}
	for _, n := range []struct {
		name      string
		to        *int
		otherwise int
	}{
		{"bytes", &c.bytes, 16 << 20}, {"exchanges", &c.exchanges, 500},
		{"file", &c.fileSize, 64 << 20}, {"ram", &c.ramSize, 16 << 20},
	} {
		if *n.to, err = w.Number(n.name, n.otherwise); err != nil {
			return err
		}
	}
	solo.Say("net=ready")
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		verb, way, _ := strings.Cut(orders.Text(), " ")
		switch {
		case verb == "way":
			c.leave()
			c.way, c.rounds = way, 0
			err = c.prepare()
		case verb == "round" && c.run != nil:
			err = c.round()
		default:
			err = errors.New("there is no such order")
		}
		if err != nil {
			return fmt.Errorf("%q: %w", orders.Text(), err)
		}
	}
	return fmt.Errorf("console: %w", cmp.Or(orders.Err(), io.EOF))
}

// prepare finds the way and goes it once.
func (c *client) prepare() error {
	c.n = c.bytes
	if c.way == wayNFS {
		if err := mountNFS(c.w, c.own, mountPoint); err != nil {
			return err
		}
		c.leave = func() { _ = unix.Unmount(mountPoint, unix.MNT_DETACH) }
		c.run = c.readFile
	} else {
		s, err := dial(c.server, port)
		if err != nil {
			return err
		}
		c.leave = func() { unix.Close(s) }
		switch c.way {
		case wayWrite:
			c.run = func(n int) (int, error) { return n, c.stream(s, sendWritten, n, chunk) }
		case waySendfile:
			c.run = func(n int) (int, error) { return n, c.stream(s, sendFile, n, c.fileSize) }
		case wayRAM:
			c.run = func(n int) (int, error) { return n, c.stream(s, sendRAM, n, c.ramSize) }
		case wayEcho:
			c.n = c.exchanges
			c.run = func(n int) (int, error) { return n * messageSize, c.exchange(s, n) }
		default:
			return errors.New("there is no such way")
		}
	}
	if err := sayCached("net=way way=" + c.way); err != nil {
		return err
	}
	if _, err := c.run(c.n); err != nil {
		return err
	}
	solo.Say("net=warm way=%s", c.way)
	return nil
}

// round goes the way once more, and says how long that took.
func (c *client) round() error {
	if err := forget(); err != nil {
		return err
	}
	solo.Say("net=begin way=%s round=%d", c.way, c.rounds)
	time.Sleep(still)
	began := time.Now()
	got, err := c.run(c.n)
	took := time.Since(began)
	if err != nil {
		return err
	}
	time.Sleep(still)
	line := fmt.Sprintf("net=end way=%s round=%d ops=%d bytes=%d nanos=%d", c.way, c.rounds, c.n, got, took.Nanoseconds())
	c.rounds++
	return sayCached(line)
}

// forget empties the page cache.
func forget() error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// stream asks for n bytes, and checks in each page of them that it is the one of
// guest.Pattern that belongs there, the pattern beginning anew every period bytes.
func (c *client) stream(s int, kind uint32, n, period int) error {
	if err := writeAll(s, request(kind, 0, n)); err != nil {
		return err
	}
	for at := 0; at < n; {
		p := c.p[:min(len(c.p), n-at)]
		if err := readAll(s, p); err != nil {
			return err
		}
		if err := check(p, at, period); err != nil {
			return err
		}
		at += len(p)
	}
	return nil
}

// check looks at the first word of each page in p, which begins at the byte at of a
// pattern and on a page.
func check(p []byte, at, period int) error {
	for i := 0; i+8 <= len(p); i += page {
		sector := uint64((at + i) % period / guest.SectorSize)
		if got, want := binary.LittleEndian.Uint64(p[i:]), guest.Word(guest.PatternHost, sector); got != want {
			return fmt.Errorf("byte %d is wrong: %#x, not %#x", at+i, got, want)
		}
	}
	return nil
}

// exchange sends n messages, one after the other's answer.
func (c *client) exchange(s, n int) error {
	if err := writeAll(s, request(echo, messageSize, n)); err != nil {
		return err
	}
	var sent, got [messageSize]byte
	for i := range n {
		binary.LittleEndian.PutUint64(sent[:], uint64(i))
		if err := writeAll(s, sent[:]); err != nil {
			return err
		}
		if err := readAll(s, got[:]); err != nil {
			return err
		}
		if got != sent {
			return fmt.Errorf("message %d came back as another", i)
		}
	}
	return nil
}

func request(kind uint32, size, count int) []byte {
	r := binary.LittleEndian.AppendUint32(nil, kind)
	r = binary.LittleEndian.AppendUint32(r, uint32(size))
	return binary.LittleEndian.AppendUint64(r, uint64(count))
}

// readFile reads up to n bytes of the server's file.
func (c *client) readFile(n int) (int, error) {
	f, err := os.Open(mountPoint + "/data")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	at := 0
	for at < n {
		got, err := io.ReadFull(f, c.p[:min(len(c.p), n-at)])
		if wrong := check(c.p[:got], at, c.fileSize); wrong != nil {
			return at, wrong
		}
		at += got
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return at, err
		}
	}
	return at, nil
}
