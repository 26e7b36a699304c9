package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"disco/integration/guest"
)

// otherBoots is how long another guest has to come up.
const otherBoots = 5 * time.Minute

// ping waits until another machine answers pings by its name.
func ping(name string) error {
	var err error
	for end := time.Now().Add(otherBoots); time.Now().Before(end); time.Sleep(time.Second) {
		var out []byte
		if out, err = busybox("ping", "-c", "1", "-W", "2", name); err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			say("ping=%s", line)
			return nil
		}
	}
	return err
}

// httpPattern fetches a pattern from another guest, which may come up later, and
// checks it.
func httpPattern(arg string) error {
	host, text, _ := strings.Cut(arg, "/")
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil || size <= 0 || size%guest.SectorSize != 0 {
		return fmt.Errorf("http-pattern=%s: want HOST:PORT/BYTES, in whole sectors", arg)
	}
	for end := time.Now().Add(otherBoots); ; time.Sleep(time.Second) {
		got, err := fetchPattern(fmt.Sprintf("http://%s/pattern/%d", host, size), size)
		if err == nil {
			say("http-pattern=%s bytes=%d", host, got)
			return nil
		}
		// What was wrong is; what did not begin may yet.
		if got > 0 || time.Now().After(end) {
			return err
		}
	}
}

// fetchPattern checks what comes from url, of which got bytes were right.
func fetchPattern(url string, size int64) (got int64, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	p, err := os.StartProcess("/bin/busybox", []string{"busybox", "wget", "-q", "-O", "-", url}, &os.ProcAttr{
		Env: []string{"PATH=/bin"}, Files: []*os.File{nil, w, os.Stderr},
	})
	w.Close()
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			p.Kill()
		}
		state, e := p.Wait()
		if err == nil && (e != nil || !state.Success()) {
			err = fmt.Errorf("wget %s: %v, %v", url, state, e)
		}
	}()
	piece, want := make([]byte, patternPiece), make([]byte, patternPiece)
	for got < size {
		n := min(size-got, patternPiece)
		if _, err := io.ReadFull(r, piece[:n]); err != nil {
			return got, fmt.Errorf("%s: after %d bytes: %w", url, got, err)
		}
		guest.Pattern(want[:n], guest.PatternHost, uint64(got/guest.SectorSize))
		if !bytes.Equal(piece[:n], want[:n]) {
			return got, fmt.Errorf("%s: other bytes than were sent, after %d", url, got)
		}
		got += n
	}
	if n, err := r.Read(piece); n > 0 || err != io.EOF {
		return got, fmt.Errorf("%s: more than %d bytes, %v", url, size, err)
	}
	return got, nil
}

// patternPiece is how much of a pattern is made at once, in bytes.
const patternPiece = 64 << 10

// servePattern answers a request for so many bytes of a pattern.
func servePattern(c io.Writer, text string) error {
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil || size <= 0 || size%guest.SectorSize != 0 {
		_, err := fmt.Fprint(c, "HTTP/1.0 404 Not Found\r\n\r\n")
		return err
	}
	if _, err := fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n", size); err != nil {
		return err
	}
	piece := make([]byte, patternPiece)
	for at := int64(0); at < size; at += patternPiece {
		p := piece[:min(size-at, patternPiece)]
		guest.Pattern(p, guest.PatternHost, uint64(at/guest.SectorSize))
		if _, err := c.Write(p); err != nil {
			return err
		}
	}
	return nil
}
