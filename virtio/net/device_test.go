package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"disco/net/frame"
	"disco/virtio"
	"disco/virtio/virtiotest"
)

const allOffloads = frame.Checksum | frame.TSO4 | frame.TSO6 | frame.ECN

var errInterrupted = errors.New("interrupted")

// cable is a backend whose far end is the test.
type cable struct {
	queues   int
	offloads frame.Offloads
	mtu      int

	toGuest []chan []byte
	sent    chan sent

	mu       sync.Mutex
	attached int
	accept   frame.Offloads
	cut      chan struct{} // closed by Interrupt
	refuse   error         // what WriteFrame answers
}

type sent struct {
	queue int
	bytes []byte
}

func newCable(queues int, o frame.Offloads) *cable {
	c := &cable{queues: queues, offloads: o, sent: make(chan sent, 1024), cut: make(chan struct{})}
	for range queues {
		c.toGuest = append(c.toGuest, make(chan []byte, 1024))
	}
	return c
}

func (c *cable) Queues() int              { return c.queues }
func (c *cable) Offloads() frame.Offloads { return c.offloads }
func (c *cable) MTU() int                 { return c.mtu }

func (c *cable) Attach(n int, accept frame.Offloads) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attached, c.accept = n, accept
	select {
	case <-c.cut:
		c.cut = make(chan struct{})
	default:
	}
	return nil
}

func (c *cable) Interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.cut)
}

func (c *cable) state() (attached int, cut chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.attached, c.cut
}

func (c *cable) ReadFrame(queue int, bufs [][]byte, wait bool) (int, error) {
	attached, cut := c.state()
	if queue >= attached {
		return 0, errors.New("the queue is not attached")
	}
	var f []byte
	select {
	case f = <-c.toGuest[queue]:
	default:
		if !wait {
			return 0, nil
		}
		select {
		case f = <-c.toGuest[queue]:
		case <-cut:
			return 0, errInterrupted
		}
	}
	n := len(f)
	for _, b := range bufs {
		f = f[copy(b, f):]
	}
	if len(f) > 0 {
		panic("the device gave too little room")
	}
	return n, nil
}

func (c *cable) WriteFrame(queue int, bufs [][]byte) error {
	c.mu.Lock()
	err := c.refuse
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.sent <- sent{queue, bytes.Join(bufs, nil)}
	return nil
}

func (c *cable) next(t *testing.T) sent {
	t.Helper()
	select {
	case s := <-c.sent:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("no frame came to the backend")
		return sent{}
	}
}

func newNet(t testing.TB, c Config) *Net {
	t.Helper()
	c.Log = slog.New(slog.DiscardHandler)
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// withHeader is a frame of n bytes after its header.
func withHeader(h frame.Header, n int) []byte {
	p := make([]byte, frame.HeaderLen+n)
	for i := range p {
		p[i] = byte(i * 7)
	}
	h.Put(p)
	return p
}

// wait polls until ok.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 10000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}

func TestNew(t *testing.T) {
	for _, c := range []struct {
		name string
		c    Config
		want string
	}{
		{"pairs", Config{Backend: newCable(1, 0), Pairs: 9}, "9 queue pairs"},
		{"negative", Config{Backend: newCable(1, 0), Pairs: -1}, "-1 queue pairs"},
		{"group", Config{Backend: newCable(1, 0), MAC: [6]byte{1}}, "group"},
		{"mtu", Config{Backend: &cable{queues: 1, mtu: 1 << 16}}, "MTU 65536"},
	} {
		if _, err := New(c.c); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
	n := newNet(t, Config{Backend: newCable(2, 0), Pairs: 4})
	if mac := n.MAC(); mac[0]&3 != 2 {
		t.Errorf("made-up address % x is not a local device's", mac)
	}
	if got := len(n.QueueSizes()); got != 5 {
		t.Errorf("%d queues, want 5: the backend has two", got)
	}
}

func TestFeatures(t *testing.T) {
	const always = featureMAC | featureMrgRxbuf | featureStatus | featureCtrlVQ | featureCtrlRx | featureCtrlMAC
	for _, c := range []struct {
		offloads frame.Offloads
		pairs    int
		mtu      int
		want     uint64
	}{
		{0, 1, 0, always},
		{0, 2, 1500, always | featureMQ | featureMTU},
		{frame.Checksum, 1, 0, always | featureCsum | featureGuestCsum},
		{frame.Checksum | frame.TSO4, 1, 0, always | featureCsum | featureGuestCsum | featureHostTSO4 | featureGuestTSO4},
		{allOffloads, 1, 0, always | 3 | 7<<7 | 7<<11},
	} {
		b := newCable(8, c.offloads)
		b.mtu = c.mtu
		if got := newNet(t, Config{Backend: b, Pairs: c.pairs}).Features(); got != c.want {
			t.Errorf("offloads %b, %d pairs, MTU %d: features %#x, want %#x", c.offloads, c.pairs, c.mtu, got, c.want)
		}
	}
}

func TestAgreed(t *testing.T) {
	from, to := agreed(featureHostTSO4 | featureGuestTSO6 | featureGuestCsum)
	if from != 0 || to != frame.Checksum|frame.TSO6 {
		t.Errorf("segments without checksum: from the driver %b, to it %b", from, to)
	}
}

func TestConfigSpace(t *testing.T) {
	b := newCable(4, 0)
	b.mtu = 9000
	n := newNet(t, Config{Backend: b, Pairs: 3, MAC: [6]byte{2, 3, 4, 5, 6, 7}})
	want := []byte{2, 3, 4, 5, 6, 7, 1, 0, 3, 0, 0x28, 0x23, 0, 0, 0, 0}
	for _, r := range []struct{ at, n int }{{0, 6}, {6, 2}, {8, 2}, {10, 2}, {8, 8}, {11, 4}, {0, 0}} {
		p := bytes.Repeat([]byte{0xee}, r.n)
		n.ReadConfig(uint64(r.at), p)
		if !bytes.Equal(p, want[r.at:r.at+r.n]) {
			t.Errorf("%d bytes at %d: % x, want % x", r.n, r.at, p, want[r.at:r.at+r.n])
		}
	}
	p := []byte{1, 2}
	if n.ReadConfig(1<<63, p); p[0] != 0 || p[1] != 0 {
		t.Errorf("far beyond the end: % x", p)
	}
	n.WriteConfig(0, []byte{9})
	if n.MAC() != [6]byte{2, 3, 4, 5, 6, 7} {
		t.Error("a write to the config space changed the address")
	}
}

func TestSend(t *testing.T) {
	b := newCable(1, allOffloads)
	n := newNet(t, Config{Backend: b})
	d := virtiotest.Start(t, n, virtiotest.Options{})
	tx := d.Rings[1]

	h := frame.Header{Flags: frame.NeedsChecksum, GSOType: frame.GSOTCP4, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}
	for _, c := range []struct {
		name  string
		parts []int // where the frame is cut; the header too
		n     int
	}{
		{"whole", nil, 60},
		{"header apart", []int{12}, 1514},
		{"header cut", []int{5, 20, 21}, 1514},
		{"longest", []int{12, 4096, 8192}, frame.MaxLen},
	} {
		p := withHeader(h, c.n)
		var parts [][]byte
		last := 0
		for _, at := range append(c.parts, len(p)) {
			parts = append(parts, p[last:at])
			last = at
		}
		if u := tx.Do(parts, nil); u.Written != 0 {
			t.Errorf("%s: the device says it wrote %d bytes", c.name, u.Written)
		}
		if got := b.next(t); !bytes.Equal(got.bytes, p) {
			t.Errorf("%s: the backend got %d other bytes", c.name, len(got.bytes))
		}
	}
	if s := n.Stats(); s.Sent != 4 || s.SentBytes != 60+2*1514+frame.MaxLen || s.SendRefused+s.SendDropped != 0 {
		t.Errorf("stats: %+v", s)
	}
}

func TestSendRefused(t *testing.T) {
	b := newCable(1, allOffloads)
	n := newNet(t, Config{Backend: b})
	d := virtiotest.Start(t, n, virtiotest.Options{Refuse: featureHostTSO6})
	tx := d.Rings[1]
	bad := [][]byte{
		withHeader(frame.Header{}, frame.MinLen-1),
		withHeader(frame.Header{}, frame.MaxLen+1),
		withHeader(frame.Header{Flags: 0x80}, 60),
		withHeader(frame.Header{Flags: 1, CsumStart: 59, CsumOffset: 0}, 60),
		withHeader(frame.Header{Flags: 1, GSOType: frame.GSOTCP6, GSOSize: 1428, CsumStart: 54, CsumOffset: 16}, 9000),
	}
	for _, p := range bad {
		tx.Do([][]byte{p}, nil)
	}
	b.mu.Lock()
	b.refuse = errors.New("full")
	b.mu.Unlock()
	tx.Do([][]byte{withHeader(frame.Header{}, 60)}, nil)
	if s := n.Stats(); s.SendRefused != uint64(len(bad)) || s.SendDropped != 1 || s.Sent != 0 {
		t.Errorf("stats: %+v", s)
	}
	if err := d.Failed(); err != nil {
		t.Errorf("a bad frame stopped the device: %v", err)
	}
	if len(b.sent) != 0 {
		t.Error("a bad frame came through")
	}

	tx.Add([][]byte{make([]byte, frame.HeaderLen-1)}, nil)
	tx.Kick()
	if err := d.WaitFailed(); !strings.Contains(err.Error(), "header") {
		t.Errorf("stopped because of %v", err)
	}
}

// received puts together the frame that begins at the next chain given back.
func received(t *testing.T, r *virtiotest.Ring) []byte {
	t.Helper()
	var p []byte
	buffers := 1
	for i := 0; i < buffers; i++ {
		u := r.Wait()
		d := bytes.Join(u.Data, nil)
		if int(u.Written) > len(d) {
			t.Fatalf("%d bytes written to a chain of %d", u.Written, len(d))
		}
		p = append(p, d[:u.Written]...)
		if i == 0 {
			buffers = int(frame.Parse(p).NumBuffers)
		}
	}
	return p
}

func TestReceive(t *testing.T) {
	for _, c := range []struct {
		name    string
		refuse  uint64
		buffers []int // of each chain
		chains  int
		n       []int // lengths of frames
		took    []int // chains that each took up
	}{
		{"merged", 0, []int{1536}, 200, []int{60, 1514, 1524, 1525, 60}, []int{1, 1, 1, 2, 1}},
		{"long ones at once", 0, []int{1536}, 200, []int{frame.MaxLen, 60, 32000, frame.MaxLen}, []int{43, 1, 21, 43}},
		{"pages", 0, []int{4096}, 100, []int{frame.MaxLen, frame.MaxLen}, []int{17, 17}},
		{"least buffers", 0, []int{12}, 200, []int{500, 14}, []int{43, 3}},
		{"cut headers", 0, []int{5, 5, 5, 5}, 60, []int{60, 14}, []int{4, 2}},
		{"not merged", featureMrgRxbuf, []int{12, 1514}, 20, []int{60, 1514}, []int{1, 1}},
		{"not merged, large", featureMrgRxbuf, []int{12, 65536, 4096}, 20, []int{frame.MaxLen, 60}, []int{1, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newCable(1, allOffloads)
			d := virtiotest.Start(t, newNet(t, Config{Backend: b}), virtiotest.Options{Refuse: c.refuse})
			rx := d.Rings[0]
			for range c.chains {
				rx.Add(nil, c.buffers)
			}
			rx.Kick()
			for i, n := range c.n {
				h := frame.Header{Flags: frame.NeedsChecksum, CsumStart: 14, NumBuffers: 0xffff}
				want := withHeader(h, n)
				b.toGuest[0] <- bytes.Clone(want)
				got := received(t, rx)
				h.NumBuffers = uint16(c.took[i])
				h.Put(want)
				if !bytes.Equal(got, want) {
					t.Errorf("frame %d of %d bytes: got %d, header %+v, want %+v", i, n, len(got)-frame.HeaderLen, frame.Parse(got), h)
				}
			}
		})
	}
}

func TestReceiveUnmarked(t *testing.T) {
	b := newCable(1, allOffloads)
	d := virtiotest.Start(t, newNet(t, Config{Backend: b}), virtiotest.Options{Refuse: featureGuestCsum})
	if b.accept != 0 {
		t.Errorf("the backend may leave %b undone", b.accept)
	}
	d.Rings[0].Add(nil, []int{2048})
	d.Rings[0].Kick()
	b.toGuest[0] <- withHeader(frame.Header{Flags: frame.DataValid}, 60)
	if h := frame.Parse(received(t, d.Rings[0])); h.Flags != 0 {
		t.Errorf("flags %#x for a driver that takes none", h.Flags)
	}
}

func TestReceiveWithoutRoom(t *testing.T) {
	b := newCable(1, 0)
	n := newNet(t, Config{Backend: b})
	d := virtiotest.Start(t, n, virtiotest.Options{})
	rx := d.Rings[0]

	b.toGuest[0] <- withHeader(frame.Header{}, 100)
	time.Sleep(20 * time.Millisecond)
	if s := n.Stats(); s.Received+s.ReceiveDropped != 0 || len(b.toGuest[0]) != 1 {
		t.Errorf("a frame was taken though there is no buffer: %+v", s)
	}
	rx.Do(nil, []int{1536}) // the one that waited

	rx.Add(nil, []int{1536})
	rx.Kick()
	b.toGuest[0] <- withHeader(frame.Header{}, 9000) // needs six
	b.toGuest[0] <- withHeader(frame.Header{}, 200)
	if u := rx.Wait(); u.Written != frame.HeaderLen+200 {
		t.Errorf("%d bytes came, want %d", u.Written, frame.HeaderLen+200)
	}
	if s := n.Stats(); s.Received != 2 || s.ReceiveDropped != 1 || s.ReceivedBytes != 300 {
		t.Errorf("stats: %+v", s)
	}
}

func TestReceiveBufferTooSmall(t *testing.T) {
	d := virtiotest.Start(t, newNet(t, Config{Backend: newCable(1, 0)}), virtiotest.Options{})
	d.Rings[0].Add(nil, []int{frame.HeaderLen - 1})
	d.Rings[0].Kick()
	if err := d.WaitFailed(); !strings.Contains(err.Error(), "receive buffer of 11 bytes") {
		t.Errorf("stopped because of %v", err)
	}
}

func TestReceiveBatch(t *testing.T) {
	b := newCable(1, 0)
	d := virtiotest.Start(t, newNet(t, Config{Backend: b}), virtiotest.Options{})
	rx := d.Rings[0]
	for range 50 {
		b.toGuest[0] <- withHeader(frame.Header{}, 60)
	}
	for range 50 {
		rx.Add(nil, []int{1536})
	}
	rx.Kick()
	for range 50 {
		rx.Wait()
	}
	if n := rx.Interrupts(); n > 5 {
		t.Errorf("%d interrupts for 50 frames that were there together", n)
	}
	if d.Paid() == 0 {
		t.Error("the guest paid for nothing")
	}
}

func TestControl(t *testing.T) {
	mac := []byte{2, 9, 9, 9, 9, 9}
	table := func(macs ...[]byte) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, uint32(len(macs))), bytes.Join(macs, nil)...)
	}
	n := newNet(t, Config{Backend: newCable(4, 0), Pairs: 4})
	d := virtiotest.Start(t, n, virtiotest.Options{})
	ctrl := d.Rings[8]
	for _, c := range []struct {
		name string
		p    [][]byte
		want byte
	}{
		{"promiscuous", [][]byte{{0, 0}, {1}}, answerOK},
		{"all multicast", [][]byte{{0, 1}, {0}}, answerOK},
		{"neither on nor off", [][]byte{{0, 0}, {2}}, answerError},
		{"no mode", [][]byte{{0, 0}}, answerError},
		{"a mode that is not offered", [][]byte{{0, 5}, {1}}, answerError},
		{"address", [][]byte{{1, 1}, mac}, answerOK},
		{"half an address", [][]byte{{1, 1}, mac[:3]}, answerError},
		{"tables", [][]byte{{1, 0}, table(mac, mac), table(mac)}, answerOK},
		{"empty tables", [][]byte{{1, 0}, table(), table()}, answerOK},
		{"one table", [][]byte{{1, 0}, table(mac)}, answerError},
		{"a table cut short", [][]byte{{1, 0}, table(), {5, 0, 0, 0, 1, 2, 3}}, answerError},
		{"a table too long", [][]byte{{1, 0}, {0xff, 0xff, 0xff, 0xff}}, answerError},
		{"a VLAN", [][]byte{{2, 0}, {1, 0}}, answerError},
		{"announce", [][]byte{{3, 0}}, answerError},
		{"pairs", [][]byte{{4, 0}, {4, 0}}, answerOK},
		{"fewer pairs", [][]byte{{4, 0}, {2, 0}}, answerOK},
		{"no pairs", [][]byte{{4, 0}, {0, 0}}, answerError},
		{"too many pairs", [][]byte{{4, 0}, {5, 0}}, answerError},
		{"short", [][]byte{{4}}, answerError},
		{"unknown", [][]byte{{200, 200}}, answerError},
	} {
		u := ctrl.Do(c.p, []int{1})
		if u.Written != 1 || u.Data[0][0] != c.want {
			t.Errorf("%s: answer %d in %d bytes, want %d", c.name, u.Data[0][0], u.Written, c.want)
		}
	}
	if n.MAC() != [6]byte(mac) {
		t.Errorf("address % x, want % x", n.MAC(), mac)
	}
	ctrl.Add([][]byte{{0, 0}, {1}}, nil)
	ctrl.Kick()
	if err := d.WaitFailed(); !strings.Contains(err.Error(), "answer") {
		t.Errorf("stopped because of %v", err)
	}
}

func TestQueuePairs(t *testing.T) {
	const pairs = 3
	b := newCable(pairs, 0)
	n := newNet(t, Config{Backend: b, Pairs: pairs})
	d := virtiotest.Start(t, n, virtiotest.Options{})
	for i := range pairs {
		for range 4 {
			d.Rings[2*i].Add(nil, []int{1536})
		}
		d.Rings[2*i].Kick()
		b.toGuest[i] <- withHeader(frame.Header{}, 60+i)
	}
	set := func(n byte) {
		t.Helper()
		if u := d.Rings[2*pairs].Do([][]byte{{4, 0}, {n, 0}}, []int{1}); u.Data[0][0] != answerOK {
			t.Fatalf("%d pairs were refused", n)
		}
	}
	got := func(pair int) {
		t.Helper()
		if u := d.Rings[2*pair].Wait(); u.Written != uint32(frame.HeaderLen+60+pair) {
			t.Errorf("pair %d: %d bytes", pair, u.Written)
		}
	}
	got(0)
	if len(b.toGuest[1]) != 1 || len(b.toGuest[2]) != 1 {
		t.Error("a pair that is not in use takes frames")
	}
	set(3)
	got(1)
	got(2)
	set(1)
	set(2)
	b.toGuest[1] <- withHeader(frame.Header{}, 61)
	got(1)
	for i := range pairs {
		d.Rings[2*i+1].Do([][]byte{withHeader(frame.Header{}, 60)}, nil)
		if s := b.next(t); s.queue != i {
			t.Errorf("a frame from pair %d came to queue %d", i, s.queue)
		}
	}
}

func TestControlQueueWithoutPairs(t *testing.T) {
	n := newNet(t, Config{Backend: newCable(3, 0), Pairs: 3})
	d := virtiotest.Start(t, n, virtiotest.Options{Refuse: featureMQ})
	if u := d.Rings[2].Do([][]byte{{0, 0}, {1}}, []int{1}); u.Data[0][0] != answerOK {
		t.Error("queue 2 is not the control queue of a driver with one pair")
	}
}

func TestStopAndStartAgain(t *testing.T) {
	before := runtime.NumGoroutine()
	b := newCable(2, 0)
	n := newNet(t, Config{Backend: b, Pairs: 2})
	d := virtiotest.New(t, virtiotest.Options{})
	for range 20 {
		d.Restart(n, virtiotest.Options{})
		d.Rings[0].Add(nil, []int{1536})
		d.Rings[0].Add(nil, []int{1536})
		d.Rings[0].Kick()
		b.toGuest[0] <- withHeader(frame.Header{}, 60)
		d.Rings[0].Wait()
		d.Stop() // one chain is held
	}
	wait(t, "the workers to end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestDisabledQueues(t *testing.T) {
	b := newCable(2, 0)
	n := newNet(t, Config{Backend: b, Pairs: 2})
	d := virtiotest.Start(t, n, virtiotest.Options{Disabled: []int{0, 2, 3, 4}})
	d.Rings[1].Do([][]byte{withHeader(frame.Header{}, 60)}, nil)
	b.next(t)
}

// quiet is a cable that allocates nothing and carries one frame over and over.
type quiet struct {
	cable
	frame []byte
	ready chan struct{}
	sent  int
}

func (q *quiet) ReadFrame(_ int, bufs [][]byte, wait bool) (int, error) {
	select {
	case <-q.ready:
	default:
		if !wait {
			return 0, nil
		}
		_, cut := q.state()
		select {
		case <-q.ready:
		case <-cut:
			return 0, errInterrupted
		}
	}
	f := q.frame
	for _, b := range bufs {
		f = f[copy(b, f):]
	}
	return len(q.frame), nil
}

func (q *quiet) WriteFrame(int, [][]byte) error {
	q.sent++
	return nil
}

func TestNoAllocations(t *testing.T) {
	for _, size := range []int{60, 3000} {
		q := &quiet{cable: *newCable(1, allOffloads), frame: withHeader(frame.Header{}, size), ready: make(chan struct{})}
		n := newNet(t, Config{Backend: q})
		d := virtiotest.Start(t, n, virtiotest.Options{})
		for range queueSize {
			d.Rings[0].Add(nil, []int{1536})
		}
		d.Rings[0].Kick()
		var count uint64
		receive := func() {
			q.ready <- struct{}{}
			count++
			for n.Stats().Received != count {
				runtime.Gosched()
			}
		}
		for range maxHeld { // each chain's first use makes its slices
			receive()
		}
		if a := testing.AllocsPerRun(50, receive); a != 0 {
			t.Errorf("receiving %d bytes allocates %v times", size, a)
		}
	}

	q := &quiet{cable: *newCable(1, allOffloads)}
	tr := &transmitter{net: newNet(t, Config{Backend: q})}
	whole := [][]byte{withHeader(frame.Header{}, 1514)}
	var readable [1][]byte
	c := &virtio.Chain{}
	if a := testing.AllocsPerRun(1000, func() {
		readable[0] = whole[0]
		c.Readable = readable[:]
		tr.send(c)
	}); a != 0 {
		t.Errorf("sending allocates %v times", a)
	}
	if q.sent == 0 {
		t.Error("nothing was sent")
	}
}

// FuzzNetTx sends what a hostile driver may: any header, any lengths, any cut.
func FuzzNetTx(f *testing.F) {
	f.Add(withHeader(frame.Header{}, 60), uint16(12), uint16(0))
	f.Add(withHeader(frame.Header{Flags: 1, GSOType: 1, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}, 3000), uint16(3), uint16(500))
	f.Add([]byte{1, 2, 3}, uint16(1), uint16(1))
	f.Fuzz(func(t *testing.T, p []byte, first, second uint16) {
		if len(p) == 0 || len(p) > 1<<17 {
			return
		}
		b := newCable(1, allOffloads)
		n := newNet(t, Config{Backend: b})
		d := virtiotest.Start(t, n, virtiotest.Options{Memory: 4 << 20})
		var parts [][]byte
		for _, at := range []uint16{first, second} {
			if k := min(int(at), len(p)); k > 0 {
				parts = append(parts, p[:k])
				p = p[k:]
			}
		}
		if len(p) > 0 {
			parts = append(parts, p)
		}
		d.Rings[1].Add(parts, nil)
		d.Rings[1].Kick()
		wait(t, "the frame", func() bool {
			s := n.Stats()
			return s.Sent+s.SendRefused > 0 || d.Failed() != nil
		})
		if len(b.sent) == 1 {
			got := <-b.sent
			if err := frame.Parse(got.bytes).Check(len(got.bytes)-frame.HeaderLen, allOffloads); err != nil {
				t.Errorf("a bad frame came through: %v", err)
			}
		}
	})
}

// FuzzNetCtrl makes any control request, with any room for the answer.
func FuzzNetCtrl(f *testing.F) {
	f.Add([]byte{0, 0, 1}, uint8(1))
	f.Add([]byte{1, 0, 1, 0, 0, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0}, uint8(1))
	f.Add([]byte{4, 0, 2, 0}, uint8(1))
	f.Add([]byte{1, 0, 0xff, 0xff, 0, 0}, uint8(0))
	f.Fuzz(func(t *testing.T, p []byte, room uint8) {
		if len(p) == 0 || len(p) > 1<<16 {
			return
		}
		b := newCable(2, 0)
		n := newNet(t, Config{Backend: b, Pairs: 2})
		d := virtiotest.Start(t, n, virtiotest.Options{Memory: 4 << 20})
		if room == 0 {
			d.Rings[4].Add([][]byte{p}, nil)
			d.Rings[4].Kick()
			d.WaitFailed()
			return
		}
		if u := d.Rings[4].Do([][]byte{p}, []int{int(room)}); u.Written != 1 || u.Data[0][0] > answerError {
			t.Errorf("answer %d in %d bytes", u.Data[0][0], u.Written)
		}
		if a, _ := b.state(); a < 1 || a > 2 {
			t.Errorf("%d queues are attached", a)
		}
	})
}
