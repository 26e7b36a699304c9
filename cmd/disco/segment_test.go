package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"disco/control"
	"disco/net/frame"
	"disco/net/segment"
	"disco/vmm"
)

var segmentTexts = map[string]vmm.Segment{
	"lan0":             {Name: "lan0"},
	"lan0,uplink=user": {Name: "lan0", Uplink: vmm.UplinkUser},
	"lan0,rate=20000":  {Name: "lan0", Rate: 20000},
	"lan0,mtu=9000,subnet=10.1.0.0/24,uplink=tap=t0,bridge=b0,router=10.1.0.254": {
		Name: "lan0", MTU: 9000, Subnet: netip.MustParsePrefix("10.1.0.0/24"), Uplink: vmm.UplinkTap, Tap: "t0", Bridge: "b0",
		Router: netip.MustParseAddr("10.1.0.254"),
	},
}

func TestParseSegment(t *testing.T) {
	for s, want := range segmentTexts {
		got, err := parseSegment(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v, want %+v", s, got, err, want)
		}
		if formatSegment(&want) != s {
			t.Errorf("%+v is written %q, want %q", want, formatSegment(&want), s)
		}
	}
	for s, want := range map[string]string{
		"l,":                     "a segment has no such option",
		"l,colour=red":           "there are mtu, subnet, uplink, bridge, rate and router",
		"l,mtu=1":                "an MTU is 1280 to 65535",
		"l,subnet=10.0.0.1":      "not a subnet",
		"l,uplink=tapt0":         "there are user, tap=NAME and none",
		"l,router=r":             "not an IP address",
		"l,rate=0":               "it is a size of 1 byte a second or more",
		"l,mtu=9000,mtu=9001":    "mtu is given twice",
		"l,uplink=user,uplink=x": "uplink is given twice",
	} {
		if got, err := parseSegment(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %+v, %v, want an error with %q", s, got, err, want)
		}
	}
}

func TestUpSegments(t *testing.T) {
	w := newFleetWorld(t)
	path := upFile(t, `
segments:
  lan0: {mtu: 9000, uplink: user}
  lan1:
guests:
  a: {nets: ["segment=lan0", "segment=lan1,map=never"]}
  b: {nets: "segment=lan0,mtu=9000"}
`)
	if code := w.disco("up", "--host", "here", path); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	want := []vmm.Segment{{Name: "lan0", MTU: 9000, Uplink: vmm.UplinkUser}, {Name: "lan1"}}
	if !reflect.DeepEqual(w.monitor.Segments, want) {
		t.Errorf("segments %+v", w.monitor.Segments)
	}
	if nets := w.built[0].cfg.Nets; len(nets) != 2 || nets[1].Segment != "lan1" || nets[1].Map != segment.MapNever {
		t.Errorf("a has %+v", nets)
	}
}

// TestSegmentExample: the example is in order, and the manual has all keys.
func TestSegmentExample(t *testing.T) {
	w := newFleetWorld(t)
	if code := w.disco("up", "--host", "here", "../../examples/segment.yaml"); code != 0 || len(w.built) != 3 {
		t.Fatalf("exit code %d, %d guests: %s", code, len(w.built), &w.err)
	}
	if len(w.monitor.Segments) != 1 || w.monitor.Segments[0].Uplink != vmm.UplinkUser {
		t.Errorf("segments %+v", w.monitor.Segments)
	}
	manual, err := os.ReadFile("../../docs/network.md")
	if err != nil {
		t.Fatal(err)
	}
	for key := range segmentKeys {
		if !strings.Contains(string(manual), "`"+key+"`") {
			t.Errorf("docs/network.md does not have the key %s", key)
		}
	}
}

// TestUpSegmentProblems: all that is wrong with segments, each with its place.
func TestUpSegmentProblems(t *testing.T) {
	w := newFleetWorld(t)
	path := upFile(t, `segments:
  lan0: {mtu: 9000, subnet: 10.1.0.0/16}
  lan1: {mtu: 5, colour: red}
  LAN2:
  lan3: {subnet: 10.1.2.0/24}
  lan4: {subnet: 10.2.0.1/16}
  lan5: {uplink: tap=, bridge: b0}
  lan6: {uplink: modem}
  lan7: {subnet: 10.3.0.0/16, router: 10.4.0.1}
  lan8: {bridge: b0}
  lan9: user
guests:
  a: {nets: "segment=lan0,mtu=1500"}
  b: {nets: "segment=l0,mtu=1500"}
  c: {nets: ["segment=l0,mtu=9000"]}
  d: {nets: ["segment=x_y", "segment=z,mac=01:00:00:00:00:01"]}
  e: {nets: ["segment=z,mac=02:00:00:00:00:01"]}
  f: {nets: ["segment=z,mac=02:00:00:00:00:01"]}
`)
	if code := w.disco("up", "--host", "here", path); code != 2 {
		t.Errorf("exit code %d", code)
	}
	got := strings.ReplaceAll(w.err.String(), filepath.Dir(path)+"/", "")
	for _, want := range []string{
		`3:15: mtu "5": an MTU is 1280 to 65535`,
		`3:18: there is no key "colour"; known are bridge, mtu, rate, router, subnet, uplink`,
		`4:3: segment "LAN2": a segment's name has lower-case letters`,
		`5:18: segment lan3: its subnet 10.1.2.0/24 overlaps with 10.1.0.0/16 of segment lan0`,
		`6:18: segment lan4: subnet 10.2.0.1/16: it begins at 10.2.0.0/16`,
		`7:18: net tap: it has no name`,
		`8:18: uplink "modem": there are user, tap=NAME and none`,
		`9:39: segment lan7: router 10.4.0.1: it must be in the segment's subnet`,
		`10:18: segment lan8: only an uplink by a tap has one, and a bridge`,
		`11:9: segments "lan9" is a text; give keys with values`,
		`13:13: net segment lan0: its MTU cannot be both 9000, as the segment's declaration has it, and 1500`,
		`15:14: net segment l0: its MTU cannot be both 1500, as guest b has it, and 9000`,
		`16:14: net segment "x_y": a segment's name has`,
		`16:29: net segment z: MAC 01:00:00:00:00:01 is a group's`,
		`18:14: net segment=z,mac=02:00:00:00:00:01: guests e and f cannot both have it`,
	} {
		if !strings.Contains(got, "up.yaml:"+want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if n := strings.Count(got, "\n"); n != 15 {
		t.Errorf("it says %d lines:\n%s", n, got)
	}
}

func TestRunSegmentProblems(t *testing.T) {
	w := newWorld(t)
	code := w.disco("run", "--net", "segment=a,mtu=1500", "--net", "segment=a,mtu=9000", "--segment", "b,mtu=1", "--segment", "c", "--segment", "c")
	for _, want := range []string{"net segment a: its MTU cannot be both 1500 and 9000", "--segment b,mtu=1: mtu=1: an MTU is", "segment c: it is declared twice"} {
		if code != 2 || !strings.Contains(w.err.String(), want) {
			t.Errorf("exit code %d: %s; want %q", code, &w.err, want)
		}
	}
}

// onSegments is two processes with segments.
func onSegments(t *testing.T) *fakeWorld {
	t.Helper()
	w := newWorld(t)
	dir, _ := w.controlDir()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.segments = []vmm.SegmentStats{{
		Segment: vmm.Segment{Name: "lan0", MTU: 4148, Subnet: netip.MustParsePrefix("10.64.0.0/16"), Uplink: vmm.UplinkTap, Tap: "t0"},
		Address: netip.MustParseAddr("10.64.0.1"),
		Stats: segment.Stats{
			Ports: []segment.PortStats{{
				Name: "a", Sent: segment.Traffic{Frames: 2, Bytes: 2048}, Received: segment.Traffic{Frames: 10, Bytes: 40960},
				Mapped: segment.Traffic{Frames: 8, Bytes: 32768}, Copied: 8192,
				CopiedBy: map[string]uint64{"odd": 2048, "policy": 6144, "never": 0}, Dropped: map[string]uint64{"mac": 3},
			}},
			Stations: []segment.PortStats{{Name: "lan"}},
		},
	}}
	w.captured = make(chan func(time.Time, [][]byte), 1)
	log := slog.New(slog.DiscardHandler)
	for i, s := range []control.Source{
		&source{monitor: w, start: time.Now()},
		&fixed{pid: 71, segments: []control.Segment{{Name: "lan1"}, {Name: "twice"}}},
		&fixed{pid: 72, segments: []control.Segment{{Name: "twice"}}},
	} {
		l, err := control.Listen(filepath.Join(dir, fmt.Sprintf("%d.sock", 70+i)), log)
		if err != nil {
			t.Fatal(err)
		}
		v := control.Serve(l, control.Handler(s, nil), log)
		t.Cleanup(func() { v.Close() })
	}
	return w
}

func TestStats(t *testing.T) {
	w := onSegments(t)
	if code := w.disco("stats"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	want := fmt.Sprintf(`segment lan0 of process %d: MTU 4148, 10.64.0.0/16, uplink tap=t0
  PORT  SENT  RECEIVED  MAPPED  COPIED  PER BYTE  WHY                     DROPPED
  a     2KiB  40KiB     32KiB   8KiB    0.20      policy 6KiB, odd 2KiB  mac 3
  lan   0B    0B        0B      0B      -         -                       -

segment lan1 of process 71`, os.Getpid())
	if got := w.out.String(); strings.Join(strings.Fields(got), " ")[:200] != strings.Join(strings.Fields(want), " ")[:200] {
		t.Errorf("it says\n%s\nwant\n%s", got, want)
	}
	w.out.Reset()
	if code := w.disco("stats", "--json"); code != 0 || !strings.Contains(w.out.String(), `"copied_bytes_by": {`) {
		t.Errorf("exit code %d: %s", code, &w.out)
	}
	w = newWorld(t)
	if code := w.disco("stats"); code != 0 || !strings.Contains(w.out.String(), "--net segment=NAME") {
		t.Errorf("exit code %d: %s%s", code, &w.out, &w.err)
	}
}

// TestCapture: a signal ends a capture with a whole file.
func TestCapture(t *testing.T) {
	w := onSegments(t)
	path := filepath.Join(t.TempDir(), "c.pcapng")
	codes := make(chan int)
	go func() { codes <- w.disco("capture", "lan0", "-w", path) }()
	see := <-w.captured
	see(time.Now(), [][]byte{make([]byte, frame.HeaderLen), make([]byte, 60)})
	// What is captured is there at once; the signal comes when it is.
	for {
		b, err := os.ReadFile(path)
		if err == nil && len(b) >= 44+40+92 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := <-codes; code != 0 || !strings.Contains(w.err.String(), "1 frame captured, 0 more") {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
	<-w.captured // it was stopped
	b, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(b, []byte("\n\r\r\n")) || len(b) != 44+40+92 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestCaptureRefused(t *testing.T) {
	w := onSegments(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"lan0"}, "--write names no file"},
		{[]string{"-w", "-"}, "0 words: give the segment's name"},
		{[]string{"lan9", "-w", "-"}, `no segment is called "lan9"; there are lan0, lan1, 71/twice, 72/twice`},
		{[]string{"twice", "-w", "-"}, "segments of 2 processes are called twice: name one of 71/twice, 72/twice"},
		{[]string{"lan0", "-w", "-", "--snap", "0"}, "--snap 0: not a number of bytes"},
	} {
		w.err.Reset()
		if code := w.disco(append([]string{"capture"}, c.args...)...); code != 2 || !strings.Contains(w.err.String(), c.want) {
			t.Errorf("%q: exit code %d: %s; want %q", c.args, code, &w.err, c.want)
		}
	}
	w.err.Reset()
	if code := w.disco("capture", "lan0", "-w", "/nowhere/f"); code != 3 {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
}
