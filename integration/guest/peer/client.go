package main

import (
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
}

// measure takes data in each way, a round's worth to warm up and then each round. The host
// looks at its counters when it reads the lines that begin and end one.
func measure(w solo.Words) error {
	c := &client{w: w, server: w.Text("server", ""), p: make([]byte, 256<<10)}
	var err error
	if c.own, err = connectLink(w); err != nil {
		return err
	}
	rounds := 0
	for _, n := range []struct {
		name      string
		to        *int
		otherwise int
	}{
		{"rounds", &rounds, 1}, {"bytes", &c.bytes, 16 << 20}, {"exchanges", &c.exchanges, 500},
		{"file", &c.fileSize, 64 << 20}, {"ram", &c.ramSize, 16 << 20},
	} {
		if *n.to, err = w.Number(n.name, n.otherwise); err != nil {
			return err
		}
	}
	for _, way := range strings.Split(w.Text("ways", wayWrite), ",") {
		if err := c.take(way, rounds); err != nil {
			return fmt.Errorf("%s: %w", way, err)
		}
	}
	solo.Say("net=done")
	return nil
}

// take prepares a way and goes it.
func (c *client) take(way string, rounds int) error {
	// run takes so many bytes or messages, and says how many bytes came.
	var run func(n int) (int, error)
	n := c.bytes
	if way == wayNFS {
		if err := mountNFS(c.w, c.own, mountPoint); err != nil {
			return err
		}
		defer unix.Unmount(mountPoint, unix.MNT_DETACH)
		run = c.readFile
	} else {
		s, err := dial(c.server, port)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		switch way {
		case wayWrite:
			run = func(n int) (int, error) { return n, c.stream(s, sendWritten, n, chunk) }
		case waySendfile:
			run = func(n int) (int, error) { return n, c.stream(s, sendFile, n, c.fileSize) }
		case wayRAM:
			run = func(n int) (int, error) { return n, c.stream(s, sendRAM, n, c.ramSize) }
		case wayEcho:
			n = c.exchanges
			run = func(n int) (int, error) { return n * messageSize, c.exchange(s, n) }
		default:
			return errors.New("there is no such way")
		}
	}
	if err := sayCached("net=way way=" + way); err != nil {
		return err
	}
	if _, err := run(n); err != nil {
		return err
	}
	for round := range rounds {
		if err := forget(); err != nil {
			return err
		}
		solo.Say("net=begin way=%s round=%d", way, round)
		time.Sleep(still)
		began := time.Now()
		got, err := run(n)
		took := time.Since(began)
		if err != nil {
			return err
		}
		time.Sleep(still)
		line := fmt.Sprintf("net=end way=%s round=%d ops=%d bytes=%d nanos=%d", way, round, n, got, took.Nanoseconds())
		if err := sayCached(line); err != nil {
			return err
		}
	}
	return nil
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
