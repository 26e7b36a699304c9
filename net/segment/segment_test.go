package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"disco/memory"
	"disco/net/frame"
)

// sink is a receiver without memory: it keeps what it is given, as long as there
// is room.
type sink struct {
	mu        sync.Mutex
	room      int
	frames    []string // after the queue's number
	headers   []frame.Header
	flushed   int
	collapsed uint64
	verdict   frame.Verdict // instead, unless it is Delivered
	policy    frame.Policy  // the last
	mapped    int           // bytes of every frame
}

func (s *sink) Deliver(queue int, f *frame.Frame, p frame.Policy, d *frame.Delivery) frame.Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy = p
	if s.verdict != frame.Delivered {
		return s.verdict
	}
	if s.room == 0 {
		return frame.Full
	}
	s.room--
	var b []byte
	for _, l := range f.Pieces {
		b = append(b, l.Bytes...)
	}
	s.frames = append(s.frames, fmt.Sprint(queue, " ", string(b)))
	s.headers = append(s.headers, f.Header)
	d.Mapped += s.mapped
	d.Copied[frame.Odd] += f.Len - s.mapped
	return frame.Delivered
}

func (s *sink) Flush(int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushed = len(s.frames)
}

func (s *sink) Collapsed() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.collapsed
}

// got takes what has come, without the queues.
func (s *sink) got() (frames []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.frames {
		frames = append(frames, f[2:])
	}
	s.frames, s.headers = nil, nil
	return frames
}

func mac(i int) addr { return addr{2, 0, 0, 0, byte(i >> 8), byte(i)} }

var everybody = addr{255, 255, 255, 255, 255, 255}

// patience lasts for a test.
const patience = time.Minute

// bench is a segment with ports, numbered from 1.
type bench struct {
	t     testing.TB
	seg   *Segment
	ports []*Port
	sinks []*sink
}

func newBench(t testing.TB, configs ...PortConfig) *bench {
	t.Helper()
	return newBenchOf(t, Config{}, configs...)
}

func newBenchOf(t testing.TB, of Config, configs ...PortConfig) *bench {
	t.Helper()
	of.Name, of.Patience = "test", patience
	s, err := New(of)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, seg: s}
	for i, c := range configs {
		c.Name, c.MAC = fmt.Sprint("port", i+1), mac(i+1)
		p, err := s.Connect(c)
		if err != nil {
			t.Fatal(err)
		}
		k := &sink{room: 1 << 30}
		if err := p.Attach(max(1, c.Queues), offloads, k); err != nil {
			t.Fatal(err)
		}
		b.ports, b.sinks = append(b.ports, p), append(b.sinks, k)
	}
	t.Cleanup(func() {
		for _, p := range b.ports {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// framed is a frame of these bytes, in pieces. done counts calls of its Done.
func framed(h frame.Header, done *int, pieces ...[]byte) *frame.Frame {
	f := &frame.Frame{Header: h}
	for _, p := range pieces {
		f.Len += len(p)
		f.Pieces = append(f.Pieces, memory.Loan{Bytes: p})
	}
	f.Done = func() { *done++ }
	return f
}

func plain(dst, src addr, text string) []byte {
	b := append(slices.Clone(dst[:]), src[:]...)
	b = append(b, 0x88, 0xb5) // an experiment's
	return append(b, text...)
}

// send sends from port number i.
func (b *bench) send(i int, data []byte) bool {
	done := 0
	p := b.ports[i-1]
	kept := p.Send(0, framed(frame.Header{}, &done, data))
	p.Flush(0)
	return kept
}

func TestSwitch(t *testing.T) {
	b := newBench(t, PortConfig{}, PortConfig{}, PortConfig{}, PortConfig{Trusted: true})
	far := addr{2, 9, 9, 9, 9, 9}
	for _, c := range []struct {
		name     string
		from     int
		dst, src addr
		to       []int
		drop     Drop
	}{
		{"one to one", 1, mac(2), mac(1), []int{2}, noDrop},
		{"back", 2, mac(1), mac(2), []int{1}, noDrop},
		{"to all", 1, everybody, mac(1), []int{2, 3, 4}, noDrop},
		{"to a group", 2, addr{1, 0, 0x5e, 0, 0, 1}, mac(2), []int{1, 3, 4}, noDrop},
		{"not known: the trusted ones", 1, far, mac(1), []int{4}, noDrop},
		{"not known, from the only trusted one", 4, far, mac(4), nil, Nowhere},
		{"to itself", 1, mac(1), mac(1), nil, Nowhere},
		{"another's address", 1, mac(2), mac(3), nil, Source},
		{"nobody's address", 1, mac(2), far, nil, Source},
		{"a group's address", 4, mac(2), everybody, nil, Source},
		{"learned", 4, mac(2), far, []int{2}, noDrop},
		{"to what was learned", 2, far, mac(2), []int{4}, noDrop},
		{"a guest's address is not learned", 4, mac(2), mac(3), []int{2}, noDrop},
		{"it stays there", 2, mac(3), mac(2), []int{3}, noDrop},
	} {
		before := b.ports[c.from-1].Stats().Dropped
		data := plain(c.dst, c.src, c.name)
		if b.send(c.from, data) {
			t.Errorf("%s: kept", c.name)
		}
		for i, k := range b.sinks {
			got := k.got()
			if want := slices.Contains(c.to, i+1); want != (len(got) == 1) || want && got[0] != string(data) {
				t.Errorf("%s: port %d got %q", c.name, i+1, got)
			}
			k.got()
		}
		after := b.ports[c.from-1].Stats().Dropped
		for r := range Drop(drops) {
			if n := after[r.String()] - before[r.String()]; n != 0 != (r == c.drop) {
				t.Errorf("%s: dropped %d for %v", c.name, n, r)
			}
		}
	}
	if st := b.seg.Stats(); st.Learned != 1 || len(st.Ports) != 4 || st.MTU != DefaultMTU || st.Ports[1].Sent.Frames != 4 {
		t.Errorf("%+v", st)
	}
}

func TestTable(t *testing.T) {
	one, two := &end{name: "one"}, &end{name: "two"}
	tab := newTable()
	at := func(i int) addr { return addr{2, 1, byte(i >> 16), byte(i >> 8), byte(i)} }
	for i := range maxLearned + 10 {
		tab.learn(at(i), one, time.Duration(i)*time.Millisecond)
	}
	if tab.learned != maxLearned || len(tab.entries) != maxLearned {
		t.Errorf("%d learned, %d entries", tab.learned, len(tab.entries))
	}
	now := maxAge + 500*time.Millisecond
	if tab.find(at(400), now) != nil || tab.find(at(600), now) != one {
		t.Error("ages")
	}
	tab.learn(at(600), two, now) // it moved
	if tab.find(at(600), now) != two || tab.stale(at(600), two, now) || !tab.stale(at(600), one, now) {
		t.Error("moves")
	}
	later := now + 2*time.Second
	tab.learn(at(maxLearned+1), two, later) // has the old ones swept
	if tab.find(at(maxLearned+1), later) != two || tab.learned > maxLearned-1500 {
		t.Errorf("%d are left", tab.learned)
	}
	tab.forget(one)
	if tab.learned != 2 {
		t.Errorf("%d are left of two", tab.learned)
	}
	tab.learn(everybody, one, later)
	if tab.find(everybody, later) != nil {
		t.Error("a group's address was learned")
	}
}

func arp(src addr, op uint16, sender addr, ip string) []byte {
	b := append(slices.Clone(everybody[:]), src[:]...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, sender[:]...)
	a := netip.MustParseAddr(ip).As4()
	b = append(b, a[:]...)
	return append(b, make([]byte, 10)...)
}

func TestARPGuard(t *testing.T) {
	b := newBench(t, PortConfig{}, PortConfig{}, PortConfig{Trusted: true}, PortConfig{})
	b.ports[0].Lease(netip.MustParseAddr("10.0.0.1"))
	station, err := b.seg.Station(StationConfig{Name: "gateway", MAC: mac(9), Deliver: func([]byte) {}})
	if err != nil {
		t.Fatal(err)
	}
	defer station.Close()
	station.Lease(netip.MustParseAddr("::ffff:10.0.0.254"))
	tagged := arp(mac(2), 1, mac(2), "10.0.0.1")
	tagged = slices.Insert(tagged, 12, 0x81, 0, 0, 7)
	for i, c := range []struct {
		from int
		data []byte
		ok   bool
	}{
		{1, arp(mac(1), 1, mac(1), "10.0.0.1"), true},
		{1, arp(mac(1), 2, mac(1), "10.0.0.1"), true},
		{1, arp(mac(1), 2, mac(1), "10.0.0.2"), false},   // not its lease
		{1, arp(mac(1), 1, mac(1), "0.0.0.0"), true},     // asks whether it is in use
		{1, arp(mac(1), 2, mac(2), "10.0.0.1"), false},   // for another
		{2, arp(mac(2), 2, mac(2), "10.0.0.1"), false},   // another's lease
		{2, arp(mac(2), 1, mac(2), "10.0.0.254"), false}, // the gateway's
		{2, arp(mac(2), 1, mac(2), "10.0.0.7"), true},    // nobody's
		{2, tagged, false},
		{2, arp(mac(2), 1, mac(2), "10.0.0.7")[:40], false},
		{3, arp(mac(3), 2, mac(3), "10.0.0.1"), true}, // trusted
	} {
		before := b.ports[c.from-1].Stats().Dropped["arp"]
		b.send(c.from, c.data)
		if got := b.ports[c.from-1].Stats().Dropped["arp"] == before; got != c.ok {
			t.Errorf("%d: may be sent: %v", i, got)
		}
		if got := len(b.sinks[3].got()) == 1; got != c.ok {
			t.Errorf("%d: was sent: %v", i, got)
		}
	}
	b.ports[1].Lease(netip.MustParseAddr("10.0.0.1")) // it was given to another
	b.send(1, arp(mac(1), 2, mac(1), "10.0.0.1"))
	b.send(2, arp(mac(2), 2, mac(2), "10.0.0.1"))
	if n := len(b.sinks[3].got()); n != 1 {
		t.Errorf("%d of an old lease and a new", n)
	}
}

// tcp is the head of a TCP segment over IPv4 or IPv6, and its header for segments
// of a size.
func tcp(six bool, dst, src addr, n, size int) (frame.Header, []byte) {
	b := append(slices.Clone(dst[:]), src[:]...)
	h := frame.Header{Flags: frame.NeedsChecksum, GSOType: frame.GSOTCP4, GSOSize: uint16(size), CsumStart: 34, CsumOffset: 16}
	var s uint32
	if six {
		h.GSOType, h.CsumStart = frame.GSOTCP6, 54
		b = append(b, 0x86, 0xdd)
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7], ip[8], ip[24], ip[39] = 0x60, protoTCP, 64, 0xfd, 0xfd, 1
		binary.BigEndian.PutUint16(ip[4:], uint16(32+n))
		b = append(b, ip...)
		s = add(0, ip[8:])
	} else {
		b = append(b, 8, 0)
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9], ip[12], ip[16] = 0x45, 64, protoTCP, 10, 10
		binary.BigEndian.PutUint16(ip[2:], uint16(52+n))
		binary.BigEndian.PutUint16(ip[4:], 0xfffe)
		binary.BigEndian.PutUint16(ip[10:], ^fold(add(0, ip)))
		b = append(b, ip...)
		s = add(0, ip[12:])
	}
	t := make([]byte, 32)
	copy(t, []byte{0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0})
	t[12], t[13] = 8<<4, tcpFIN|tcpPSH|tcpCWR|0x10
	binary.BigEndian.PutUint16(t[tcpSum:], fold(s+protoTCP+uint32(32+n)))
	return h, append(b, t...)
}

func TestHeadersAreChecked(t *testing.T) {
	b := newBench(t, PortConfig{}, PortConfig{})
	for _, six := range []bool{false, true} {
		for _, c := range []struct {
			name   string
			change func(h *frame.Header, p []byte)
			drop   Drop
		}{
			{"right", func(*frame.Header, []byte) {}, noDrop},
			{"wrong length of headers is put right", func(h *frame.Header, _ []byte) { h.HdrLen = 9 }, noDrop},
			{"other version", func(h *frame.Header, _ []byte) { h.GSOType ^= frame.GSOTCP4 ^ frame.GSOTCP6 }, Header},
			{"not TCP", func(_ *frame.Header, p []byte) { p[20], p[23] = protoUDP, protoUDP }, Header},
			{"tiny segments", func(h *frame.Header, _ []byte) { h.GSOSize = 1 }, Header},
			{"segments over the MTU", func(h *frame.Header, _ []byte) { h.GSOSize = DefaultMTU }, Size},
			{"sum elsewhere", func(h *frame.Header, _ []byte) { h.CsumStart++ }, Header},
			{"sum at another place", func(h *frame.Header, _ []byte) { h.CsumOffset = 6 }, Header},
			{"long options", func(h *frame.Header, p []byte) { p[h.CsumStart+12] = 15 << 4 }, Header},
			{"short options", func(h *frame.Header, p []byte) { p[h.CsumStart+12] = 4 << 4 }, Header},
		} {
			h, p := tcp(six, mac(2), mac(1), 20000, 4000)
			n := len(p)
			c.change(&h, p)
			before := b.ports[0].Stats().Dropped[c.drop.name()]
			done := 0
			b.ports[0].Send(0, framed(h, &done, p, make([]byte, 20000)))
			if c.drop == noDrop {
				if got := b.sinks[1].headers; len(got) != 1 || got[0].HdrLen != uint16(n) {
					t.Errorf("%s: %+v", c.name, got)
				}
			} else if b.ports[0].Stats().Dropped[c.drop.name()] != before+1 {
				t.Errorf("%s: %v", c.name, b.ports[0].Stats().Dropped)
			}
			if n := len(b.sinks[1].got()); n == 1 != (c.drop == noDrop) {
				t.Errorf("%s: %d came", c.name, n)
			}
		}
	}
	if b.send(1, append(plain(mac(2), mac(1), ""), make([]byte, DefaultMTU)...)); len(b.sinks[1].got()) != 1 {
		t.Error("a frame as long as may be did not come")
	}
	if b.send(1, append(plain(mac(2), mac(1), ""), make([]byte, DefaultMTU+1)...)); len(b.sinks[1].got()) != 0 {
		t.Error("a frame that is too long came")
	}
}

// checkSums fails the test unless the sums of a frame are right.
func checkSums(t *testing.T, p []byte) {
	t.Helper()
	var s uint32
	if p[12] == 8 {
		if fold(add(0, p[14:34])) != 0xffff {
			t.Error("sum of IPv4")
		}
		if int(binary.BigEndian.Uint16(p[16:])) != len(p)-14 {
			t.Error("length of IPv4")
		}
		s, p = add(0, p[26:34]), p[34:]
	} else {
		if int(binary.BigEndian.Uint16(p[18:])) != len(p)-54 {
			t.Error("length of IPv6")
		}
		s, p = add(0, p[22:54]), p[54:]
	}
	if fold(add(s+protoTCP+uint32(len(p)), p)) != 0xffff {
		t.Error("sum of TCP")
	}
}

func TestFinish(t *testing.T) {
	for _, six := range []bool{false, true} {
		h, p := tcp(six, mac(2), mac(1), 10000, 4000)
		data := make([]byte, 10001)
		for i := range data {
			data[i] = byte(i * 7)
		}
		for _, accept := range []frame.Offloads{0, frame.Checksum} {
			b := newBench(t, PortConfig{}, PortConfig{})
			if err := b.ports[1].Attach(1, accept, b.sinks[1]); err != nil {
				t.Fatal(err)
			}
			done := 0
			b.ports[0].Send(0, framed(h, &done, p, data[:3000], data[3000:10000]))
			headers := b.sinks[1].headers
			got := b.sinks[1].got()
			if len(got) != 3 {
				t.Fatalf("%d segments", len(got))
			}
			var all []byte
			for i, g := range got {
				g := []byte(g)
				checkSums(t, g)
				tcp := g[h.CsumStart:]
				if seq := binary.BigEndian.Uint32(tcp[4:]); seq != 0xffffff00+uint32(4000*i) {
					t.Errorf("segment %d: sequence %#x", i, seq)
				}
				want := byte(0x10)
				if i == 0 {
					want |= tcpCWR
				}
				if i == 2 {
					want |= tcpFIN | tcpPSH
				}
				if tcp[tcpFlags] != want || headers[i] != (frame.Header{}) {
					t.Errorf("segment %d: flags %#x, %+v", i, tcp[tcpFlags], headers[i])
				}
				all = append(all, g[len(p):]...)
			}
			if !bytes.Equal(all, data[:10000]) {
				t.Error("other bytes")
			}
			if st := b.ports[1].Stats(); st.Received.Frames != 1 || st.CopiedBy["finished"] == 0 {
				t.Errorf("%+v", st)
			}
		}
		// The sum alone, of an odd number of bytes.
		h, p = tcp(six, mac(2), mac(1), 1001, 0)
		h.GSOType = frame.GSONone
		b := newBench(t, PortConfig{}, PortConfig{})
		if err := b.ports[1].Attach(1, 0, b.sinks[1]); err != nil {
			t.Fatal(err)
		}
		done := 0
		b.ports[0].Send(0, framed(h, &done, p, data[:1001]))
		got := b.sinks[1].got()
		if len(got) != 1 {
			t.Fatal("nothing came")
		}
		checkSums(t, []byte(got[0]))
	}
}

// TestWaits has frames wait for a receiver without buffers.
func TestWaits(t *testing.T) {
	b := newBench(t, PortConfig{}, PortConfig{}, PortConfig{})
	k := b.sinks[1]
	k.room = 1
	for i := range 3 {
		if kept := b.send(1, plain(mac(2), mac(1), fmt.Sprint(i))); kept != (i > 0) {
			t.Errorf("frame %d kept: %v", i, kept)
		}
	}
	b.send(1, plain(everybody, mac(1), "all"))
	if n := len(b.sinks[2].got()); n != 1 {
		t.Errorf("somebody else got %d frames", n)
	}
	k.mu.Lock()
	k.room = 10
	k.mu.Unlock()
	b.ports[1].Ready(0)
	got := k.got()
	for i, want := range []string{"0", "1", "2", "all"} {
		if len(got) != 4 || got[i][14:] != want {
			t.Fatalf("%q", got)
		}
	}
	if st := b.ports[1].Stats(); st.Waited != 3 || len(st.Dropped) != 0 || k.flushed != 4 {
		t.Errorf("%+v, flushed %d", st, k.flushed)
	}
}

// TestKeptFramesAreDone has receivers and senders go away with frames waiting.
func TestKeptFramesAreDone(t *testing.T) {
	for name, act := range map[string]func(b *bench){
		"the receiver stops":  func(b *bench) { b.ports[1].Detach() },
		"the sender stops":    func(b *bench) { b.ports[0].Detach() },
		"the receiver resets": func(b *bench) { _ = b.ports[1].Attach(1, 0, &sink{}) },
		"time passes":         func(*bench) {},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, PortConfig{}, PortConfig{})
			if name == "time passes" {
				b.seg.patience = 100 * time.Millisecond
			}
			b.sinks[1].room = 0
			var mu sync.Mutex
			done, kept := 0, 0
			for range maxLane + 10 {
				f := framed(frame.Header{}, new(int), plain(mac(2), mac(1), "x"))
				f.Done = func() {
					mu.Lock()
					done++
					mu.Unlock()
				}
				if b.ports[0].Send(0, f) {
					kept++
				}
			}
			act(b)
			for range 1000 {
				mu.Lock()
				n := done
				mu.Unlock()
				if n == maxLane {
					break
				}
				time.Sleep(time.Millisecond)
			}
			mu.Lock()
			defer mu.Unlock()
			if kept != maxLane || done != maxLane {
				t.Errorf("%d kept, %d done", kept, done)
			}
			if name == "time passes" {
				// From now on nothing waits, until something gets through.
				if b.send(1, plain(mac(2), mac(1), "y")) {
					t.Error("one more waits")
				}
				b.sinks[1].room = 1
				b.send(1, plain(mac(2), mac(1), "z"))
				if !b.send(1, plain(mac(2), mac(1), "waits")) {
					t.Error("nothing waits any more")
				}
			}
		})
	}
}

// TestCopiesAreBounded has one send to many that take nothing.
func TestCopiesAreBounded(t *testing.T) {
	b := newBench(t, make([]PortConfig, 80)...)
	for _, k := range b.sinks {
		k.room = 0
	}
	for range maxLane {
		b.send(1, plain(everybody, mac(1), string(make([]byte, DefaultMTU))))
	}
	if n := b.seg.copies.Load(); n > maxCopies || n < maxCopies-2*DefaultMTU {
		t.Errorf("%d bytes wait", n)
	}
	for _, p := range b.ports {
		p.Detach()
	}
	if n := b.seg.copies.Load(); n != 0 {
		t.Errorf("%d bytes wait for nobody", n)
	}
}

// TestTurns has one flood a receiver that has too few buffers: another that sends
// at most as much as its share loses nothing.
func TestTurns(t *testing.T) {
	b := newBench(t, PortConfig{}, PortConfig{}, PortConfig{})
	k := b.sinks[2]
	k.room = 0
	flood := plain(mac(3), mac(1), string(make([]byte, 4000)))
	for round := range 200 {
		for range 50 {
			b.send(1, flood)
		}
		b.send(2, plain(mac(3), mac(2), fmt.Sprint(round)))
		b.send(2, plain(mac(3), mac(2), fmt.Sprint(round)))
		k.mu.Lock()
		k.room = 4
		k.mu.Unlock()
		b.ports[2].Ready(0)
	}
	var from [3]int
	for _, f := range k.got() {
		from[f[11]]++
	}
	if st := b.ports[2].Stats(); from[2] < 330 || from[1] < 300 || from[1]+from[2] != 800 || st.Dropped["full"] < 5000 {
		t.Errorf("%d and %d frames came; %+v", from[1], from[2], st)
	}
}

func TestRate(t *testing.T) {
	b := newBench(t, PortConfig{Rate: 10 << 20}, PortConfig{})
	start := time.Now()
	const n = 1500
	for range n {
		b.send(1, plain(mac(2), mac(1), string(make([]byte, 4000))))
	}
	st := b.ports[0].Stats()
	sent := float64(st.Sent.Bytes)
	if most := 10<<20*time.Since(start).Seconds() + 1.1*(10<<20)/10; sent > most || st.Throttled == 0 || len(b.sinks[1].got()) != n {
		t.Errorf("%v bytes of %v, %+v", sent, most, st)
	}
	// A guest that stops does not wait.
	slow := newBench(t, PortConfig{Rate: 1}, PortConfig{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for range 100 {
			slow.send(1, plain(mac(2), mac(1), string(make([]byte, 4000))))
		}
	}()
	for slow.ports[0].Stats().Throttled == 0 {
		time.Sleep(time.Millisecond)
	}
	slow.ports[0].Detach()
	<-stopped
}

// TestFlowsKeepTheirQueue has answers come to the queue that was sent from.
func TestFlowsKeepTheirQueue(t *testing.T) {
	b := newBench(t, PortConfig{}, PortConfig{Queues: 4})
	_, there := tcp(false, mac(2), mac(1), 100, 0)
	_, back := tcp(false, mac(1), mac(2), 100, 0)
	copy(back[34:38], []byte{0, 80, 0x12, 0x34})
	for _, queue := range []int{3, 1, 2} {
		done := 0
		b.ports[1].Send(queue, framed(frame.Header{}, &done, back))
		b.ports[0].Send(0, framed(frame.Header{}, &done, there))
		if f := b.sinks[1].frames; len(f) != 1 || int(f[0][0]-'0') != queue {
			t.Errorf("sent from %d: %.20q", queue, f)
		}
		b.sinks[1].got()
	}
	if err := b.ports[1].Attach(1, offloads, b.sinks[1]); err != nil {
		t.Fatal(err)
	}
	b.send(1, there)
	if f := b.sinks[1].frames; len(f) != 1 || f[0][0] != '0' {
		t.Errorf("to one queue: %.20q", f)
	}
}

func TestPolicy(t *testing.T) {
	k := &sink{}
	for m, want := range map[Mode]frame.Policy{
		MapNever: {Why: frame.Off}, MapAlways: {Least: 1},
	} {
		y := policy{mode: m}
		if p := y.say(60000, 0, k); p != want {
			t.Errorf("%v: %+v", m, p)
		}
	}
	y := policy{}
	now := time.Duration(0)
	maps := func() bool { return y.say(60000, now, k).Least > 0 }
	use := func(pages, bad int) {
		y.mapped(pages * 4096)
		k.collapsed += uint64(bad)
	}
	if y.say(8000, now, k) != (frame.Policy{Why: frame.Short}) || !maps() {
		t.Error("at first")
	}
	use(1000, 490)
	if !maps() {
		t.Error("some are written to")
	}
	use(1000, 510)
	if maps() || y.pauses != 1 {
		t.Error("many are written to")
	}
	now += shortPause - 1
	if maps() {
		t.Error("paused too short")
	}
	now++
	if !maps() {
		t.Error("paused too long")
	}
	use(1000, 1000)
	now += shortPause
	maps()
	if now += 2*shortPause - 1; maps() {
		t.Error("the second pause is no longer than the first")
	}
	if now++; !maps() {
		t.Error("the second pause does not end")
	}
	now += time.Hour
	use(1000, 0)
	maps()
	if y.pause != 0 {
		t.Error("pauses are not forgotten")
	}
	k.collapsed = 0 // a guest that was restarted
	use(1000, 0)
	if !maps() {
		t.Error("after a restart")
	}
}

func TestStation(t *testing.T) {
	b := newBench(t, PortConfig{}, PortConfig{})
	var mu sync.Mutex
	var got [][]byte
	gate := make(chan struct{}, 1<<16)
	var s *Station
	s, err := b.seg.Station(StationConfig{Name: "echo", MAC: mac(9), Deliver: func(f []byte) {
		<-gate
		mu.Lock()
		got = append(got, bytes.Clone(f))
		mu.Unlock()
		answer := make([]byte, frame.HeaderLen, 100)
		if err := s.Send(append(answer, plain(mac(1), mac(9), "answer")...)); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	h, p := tcp(false, mac(9), mac(1), 1000, 400)
	done := 0
	b.ports[0].Send(0, framed(h, &done, p, make([]byte, 1000)))
	for range 3 {
		gate <- struct{}{}
	}
	for range 1000 {
		if b.seg.Stats().Stations[0].Sent.Frames == 3 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	mu.Lock()
	if len(got) != 3 {
		t.Fatalf("%d segments", len(got))
	}
	for _, f := range got {
		checkSums(t, f[frame.HeaderLen:])
	}
	mu.Unlock()
	if n := len(b.sinks[0].got()); n != 3 {
		t.Errorf("%d answers", n)
	}
	// It is busy.
	for range maxStation + 10 {
		b.send(1, plain(mac(9), mac(1), "more"))
	}
	if n := s.Stats().Dropped["full"]; n < 9 || n > 10 {
		t.Errorf("%d are dropped", n)
	}
	close(gate)
	if err := s.Send(make([]byte, 5)); !errors.Is(err, frame.ErrLength) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if s.Send(append(make([]byte, frame.HeaderLen), plain(mac(1), mac(9), "late")...)) == nil || s.Close() == nil {
		t.Error("a closed station sends, or closes")
	}
	b.send(1, plain(mac(9), mac(1), "nobody is there"))
	if b.ports[0].Stats().Dropped["nowhere"] != 1 {
		t.Errorf("%v", b.ports[0].Stats().Dropped)
	}
}

func TestCapture(t *testing.T) {
	b := newBench(t, PortConfig{}, PortConfig{})
	var seen [][]byte
	stop := b.seg.Capture(func(_ time.Time, bufs [][]byte) { seen = append(seen, bytes.Join(bufs, nil)) })
	h, p := tcp(false, mac(2), mac(1), 5000, 4000)
	done := 0
	b.ports[0].Send(0, framed(h, &done, p, make([]byte, 5000)))
	b.send(1, plain(mac(2), mac(7), "spoofed"))
	stop()
	b.send(1, plain(mac(2), mac(1), "after"))
	if len(seen) != 1 || len(seen[0]) != frame.HeaderLen+len(p)+5000 || !bytes.Equal(seen[0][frame.HeaderLen:][:len(p)], p) {
		t.Errorf("%d seen", len(seen))
	}
	if got := frame.Parse(seen[0]); got.GSOSize != 4000 {
		t.Errorf("%+v", got)
	}
}

func TestConfigs(t *testing.T) {
	if _, err := New(Config{Patience: -1}); err == nil {
		t.Error("no patience")
	}
	for _, mtu := range []int{-1, 100, MaxMTU + 1} {
		if _, err := New(Config{MTU: mtu}); err == nil {
			t.Errorf("MTU %d", mtu)
		}
	}
	b := newBench(t, PortConfig{})
	for i, c := range []PortConfig{
		{MAC: mac(1)}, {}, {MAC: everybody}, {MAC: mac(2), Queues: 9}, {MAC: mac(2), Queues: -1}, {MAC: mac(2), Map: 9},
	} {
		if _, err := b.seg.Connect(c); err == nil {
			t.Errorf("config %d is in order", i)
		}
	}
	if _, err := b.seg.Station(StationConfig{MAC: mac(3)}); err == nil {
		t.Error("a station that takes nothing")
	}
	if b.seg.Close() == nil {
		t.Error("closed with a port")
	}
	for _, n := range []int{0, 2} {
		if b.ports[0].Attach(n, 0, &sink{}) == nil {
			t.Errorf("%d queues", n)
		}
	}
	if b.ports[0].Attach(1, 0, nil) == nil {
		t.Error("nothing attached")
	}
}

// name is "" for noDrop.
func (r Drop) name() string {
	if r == noDrop {
		return ""
	}
	return r.String()
}
