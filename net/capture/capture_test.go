package capture

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"disco/net/frame"
)

// ping is an ICMP echo request from 10.64.0.2 to 10.64.0.3, in an Ethernet frame.
var ping, _ = hex.DecodeString("020000000003020000000002" + "0800" +
	"4500001c00004000400126d00a4000020a400003" + "0800f7fe00000001")

var noon = time.Date(2026, 1, 2, 12, 0, 0, 123456789, time.UTC)

// frames gives c n frames of what f makes.
func frames(c *Capture, n int, f []byte) {
	head := make([]byte, frame.HeaderLen)
	for i := range n {
		c.Frame(noon.Add(time.Duration(i)*time.Second), [][]byte{head, f[:len(f)/2], nil, f[len(f)/2:]})
	}
}

// TestFile: a file is what the format's description says, byte for byte.
func TestFile(t *testing.T) {
	c := New("lan0", 0)
	frames(c, 1, ping)
	c.End()
	frames(c, 1, ping) // too late
	var b bytes.Buffer
	if n, err := c.WriteTo(&b); err != nil || n != int64(b.Len()) {
		t.Fatalf("%d bytes of %d, %v", n, b.Len(), err)
	}
	got := b.Bytes()
	want := "0a0d0d0a" + "2c000000" + "4d3c2b1a" + "01000000" + "ffffffffffffffff" + "0400" + "0500" + "646973636f000000" + "00000000" + "2c000000" +
		"01000000" + "28000000" + "01000000" + "11000100" + "0200" + "0400" + "6c616e30" + "0900" + "0100" + "09000000" + "00000000" + "28000000" +
		"06000000" + "4c000000" + "00000000" + "30e88618" + "154d4ccf" + "2a000000" + "2a000000" + hex.EncodeToString(ping) + "0000" + "4c000000"
	if head := hex.EncodeToString(got[:min(len(got), len(want)/2)]); head != want {
		t.Errorf("got\n%s\nwant\n%s", head, want)
	}
	n, err := Copy(io.Discard, bytes.NewReader(got))
	if err != nil || n != (Counts{Frames: 1}) {
		t.Errorf("it has %+v, %v", n, err)
	}
}

// TestHostTcpdump: tcpdump reads what was captured.
func TestHostTcpdump(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.pcapng")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := New("lan0", 0)
	frames(c, 3, ping)
	c.End()
	if _, err := c.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	program := os.Getenv("DISCO_TCPDUMP")
	if program == "" {
		program = "../../build/tcpdump/tcpdump"
	}
	// Run by root, Debian's becomes the user of its package, which there need not be.
	cmd := exec.Command(program, "-Z", "root", "-n", "-tt", "-r", path)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tcpdump: %v (make tcpdump fetches it; or set DISCO_TCPDUMP)\n%s", err, &said)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 3 || lines[0] != "1767355200.123456 IP 10.64.0.2 > 10.64.0.3: ICMP echo request, id 0, seq 1, length 8" {
		t.Errorf("tcpdump says\n%s", out)
	}
}

// TestSnap: long frames are cut, and that they were longer is told.
func TestSnap(t *testing.T) {
	c := New("lan0", 20)
	frames(c, 1, ping)
	c.End()
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	p := b.Bytes()[0x2c+0x28:]
	if le.Uint32(p[20:]) != 20 || le.Uint32(p[24:]) != uint32(len(ping)) || !bytes.Equal(p[28:48], ping[:20]) {
		t.Errorf("the packet's block is % x", p[:52])
	}
}

// TestSlowReader: who captures never waits; what had no room is counted.
func TestSlowReader(t *testing.T) {
	c := New("lan0", 0)
	long := make([]byte, 65000)
	const n = buffered/65000 + 50
	frames(c, n, long)
	r, w := io.Pipe()
	go func() {
		_, err := c.WriteTo(w)
		w.CloseWithError(err)
	}()
	c.End()
	got, err := Copy(io.Discard, r)
	if err != nil || got.Frames+got.Dropped != n || got.Dropped < 50 {
		t.Errorf("%+v of %d, %v", got, n, err)
	}
}

// TestManySenders: frames of many at once are all there, whole.
func TestManySenders(t *testing.T) {
	c := New("lan0", 0)
	const senders, each = 8, 500
	var all sync.WaitGroup
	for range senders {
		all.Go(func() { frames(c, each, ping) })
	}
	go func() { all.Wait(); c.End() }()
	r, w := io.Pipe()
	go func() {
		_, err := c.WriteTo(w)
		w.CloseWithError(err)
	}()
	if n, err := Copy(io.Discard, r); err != nil || n != (Counts{Frames: senders * each}) {
		t.Errorf("%+v, %v", n, err)
	}
}

// TestCopyCut: wherever a file is cut, what is copied of it ends with a block.
func TestCopyCut(t *testing.T) {
	c := New("lan0", 0)
	frames(c, 2, ping)
	c.End()
	var whole bytes.Buffer
	if _, err := c.WriteTo(&whole); err != nil {
		t.Fatal(err)
	}
	ends := map[int]bool{0: true}
	for at := 0; at < whole.Len(); ends[at] = true {
		at += int(le.Uint32(whole.Bytes()[at+4:]))
	}
	for cut := range whole.Len() {
		var b bytes.Buffer
		if _, err := Copy(&b, bytes.NewReader(whole.Bytes()[:cut])); err != nil || !ends[b.Len()] || cut-b.Len() > 120 {
			t.Fatalf("cut at %d: %d bytes, %v", cut, b.Len(), err)
		}
	}
	broken := errors.New("the cable is out")
	if _, err := Copy(io.Discard, io.MultiReader(bytes.NewReader(whole.Bytes()[:90]), fails{broken})); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

type fails struct{ err error }

func (f fails) Read([]byte) (int, error) { return 0, f.err }

func TestFrameDoesNotAllocate(t *testing.T) {
	c := New("lan0", 0)
	c.filling = make([]byte, 0, buffered)
	bufs := [][]byte{make([]byte, frame.HeaderLen), ping}
	if n := testing.AllocsPerRun(100, func() { c.Frame(noon, bufs) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzCopy: nothing that another process says makes Copy write half a block.
func FuzzCopy(f *testing.F) {
	c := New("lan0", 0)
	frames(c, 1, ping)
	c.End()
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:50])
	f.Fuzz(func(t *testing.T, p []byte) {
		var out bytes.Buffer
		_, _ = Copy(&out, bytes.NewReader(p))
		if !bytes.HasPrefix(p, out.Bytes()) {
			t.Fatal("it wrote what it did not read")
		}
		var again bytes.Buffer
		if _, err := Copy(&again, bytes.NewReader(out.Bytes())); err != nil || again.Len() != out.Len() {
			t.Fatalf("%d bytes of %d can be read, %v", again.Len(), out.Len(), err)
		}
	})
}
