package vsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"disco/devices"
	"disco/virtio"
)

const (
	maxStreams = 512
	maxResets  = 256

	// Ports of streams that the host begins, where guests begin none.
	firstHostPort = 1 << 30
	lastHostPort  = 1<<31 - 1
)

var (
	errShortPacket = errors.New("a vsock packet without a whole header")
	errTruncated   = errors.New("a vsock packet shorter than its header says")
	errSmallBuffer = errors.New("a vsock receive buffer without room for a header")
)

// service is the device from one Start to the Stop after it. The transmit
// worker takes the guest's packets and never waits for anything but them; the
// receive worker sends the streams' packets in turn.
type service struct {
	d      *Device
	queues []*virtio.Queue
	stop   chan struct{}
	ctx    context.Context // ends with stop
	cancel context.CancelFunc
	work   sync.WaitGroup
	todo   chan struct{} // a token when ready or resets may not be empty

	mu       sync.Mutex
	closed   bool
	routes   map[name]*stream
	streams  map[*stream]struct{} // all that live
	ready    []*stream            // each once, in turn
	resets   []name               // for packets that belong to no stream
	nextPort uint32
}

func newService(d *Device, queues []*virtio.Queue) *service {
	s := &service{
		d: d, queues: queues, stop: make(chan struct{}), todo: make(chan struct{}, 1),
		routes: map[name]*stream{}, streams: map[*stream]struct{}{},
		ready: make([]*stream, 0, maxStreams), resets: make([]name, 0, maxResets),
		nextPort: firstHostPort,
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func (s *service) start() {
	if q := s.queues[queueReceive]; q != nil {
		s.work.Go(func() { s.receive(q) })
	}
	if q := s.queues[queueTransmit]; q != nil {
		s.work.Go(func() { s.transmit(q) })
	}
}

func (s *service) close() {
	close(s.stop)
	s.cancel()
	for _, q := range s.queues {
		if q != nil {
			q.Stop()
		}
	}
	s.mu.Lock()
	s.closed = true
	for c := range s.streams {
		s.drop(c)
		if c.sock != nil {
			c.sock.Close()
		}
	}
	s.mu.Unlock()
	s.work.Wait()
}

// The functions from here on to receive are called with s.mu held, unless they
// take it.

// add makes a stream for the goroutine that is going to connect it, or nil when
// there are too many.
func (s *service) add(n name) *stream {
	if s.closed || len(s.streams) >= maxStreams {
		s.d.refused.Add(1)
		return nil
	}
	c := &stream{
		s: s, name: n, routed: true, users: 1,
		out: devices.NewPipe(bufAlloc), in: devices.NewPipe(inSize),
		answer: make(chan bool, 1),
	}
	s.routes[n] = c
	s.streams[c] = struct{}{}
	return c
}

// drop forgets the route to a stream: nothing more is exchanged with the guest.
// What the guest has sent in good order still goes to the socket.
func (s *service) drop(c *stream) {
	if !c.routed {
		return
	}
	c.routed = false
	delete(s.routes, c.name)
	if c.queued {
		c.queued = false
		s.ready = slices.DeleteFunc(s.ready, func(x *stream) bool { return x == c })
	}
	select {
	case c.answer <- false:
	default:
	}
	c.in.Close()
	c.out.Close()
	switch {
	case c.sock == nil:
	case c.guestShut&shutdownSend != 0:
		_ = c.sock.CloseRead()
	default:
		c.sock.Close()
	}
	s.bury(c)
}

// bury frees a stream's place when nothing holds it.
func (s *service) bury(c *stream) {
	if c.routed || c.users > 0 {
		return
	}
	delete(s.streams, c)
	if c.sock != nil {
		c.sock.Close()
	}
}

// reset drops a stream and tells the guest.
func (s *service) reset(c *stream) {
	if c.routed {
		s.drop(c)
		s.refuse(c.name)
	}
}

// refuse resets what is no stream.
func (s *service) refuse(n name) {
	if len(s.resets) == maxResets {
		s.d.dropped.Add(1)
		return
	}
	s.resets = append(s.resets, n)
	s.wake()
}

// poke has the receive worker look at a stream.
func (s *service) poke(c *stream) {
	if c.routed && !c.queued && c.wants() {
		c.queued = true
		s.ready = append(s.ready, c)
		s.wake()
	}
}

func (s *service) wake() {
	select {
	case s.todo <- struct{}{}:
	default:
	}
}

// connected gives a stream its socket and begins to carry bytes, or closes the
// socket when the guest is gone.
func (s *service) connected(c *stream, sock *net.UnixConn) {
	if s.closed {
		sock.Close()
		return
	}
	c.sock = sock
	if !c.routed || c.guestShut&shutdownReceive != 0 {
		_ = sock.CloseRead()
	}
	c.users += 2
	s.work.Go(c.pumpOut)
	s.work.Go(c.pumpIn)
}

// settle ends a stream of which the guest wants no more and has got rid of all.
func (s *service) settle(c *stream) {
	if c.guestShut == shutdownBoth && c.users == 0 {
		s.reset(c)
	}
}

// leave ends one goroutine's work for a stream.
func (s *service) leave(c *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.users--
	s.settle(c)
	s.bury(c)
}

// hostDone notes what the socket does no more.
func (s *service) hostDone(c *stream, how uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.hostShut |= how
	s.poke(c)
}

// moved is called when bytes have come for the guest or gone from it.
func (s *service) moved(c *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.poke(c)
}

// connectGuest carries sock, which a host program has opened, to a port of the
// guest. It takes over sock, and gives up when gone is closed.
func (s *service) connectGuest(sock *net.UnixConn, port uint32, gone <-chan struct{}) {
	c := s.request(port)
	if c == nil {
		sock.Close()
		return
	}
	defer s.leave(c)
	late := time.NewTimer(patience)
	defer late.Stop()
	ok := false
	select {
	case ok = <-c.answer:
	case <-late.C:
	case <-gone:
	case <-s.stop:
	}
	if ok {
		_ = sock.SetDeadline(time.Time{})
		_, err := fmt.Fprintf(sock, "OK %d\n", c.name.host)
		ok = err == nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok {
		s.reset(c)
		sock.Close()
		return
	}
	// The guest may have ended the stream again; what it said still counts.
	s.connected(c, sock)
}

// request begins a stream to a port of the guest.
func (s *service) request(port uint32) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := name{guest: port}
	for range maxStreams + 1 { // one more than can be taken
		n.host = s.nextPort
		if s.nextPort++; s.nextPort > lastHostPort {
			s.nextPort = firstHostPort
		}
		if s.routes[n] == nil {
			break
		}
	}
	c := s.add(n)
	if c != nil {
		c.ours = true
		c.tell = tellRequest
		s.poke(c)
	}
	return c
}

// accept takes a stream that the guest begins.
func (s *service) accept(n name, bufAlloc, fwdCnt uint32) {
	c := s.add(n)
	if c == nil {
		s.refuse(n)
		return
	}
	c.guestBuf, c.guestFwd = bufAlloc, fwdCnt
	s.work.Go(func() { s.connectHost(c) })
}

// connectHost carries a stream of the guest to the UNIX socket for its port.
func (s *service) connectHost(c *stream) {
	defer s.leave(c)
	dialer := net.Dialer{Timeout: patience}
	conn, err := dialer.DialContext(s.ctx, "unix", fmt.Sprintf("%s_%d", s.d.path, c.name.host))
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.reset(c)
	case !c.routed:
		conn.Close()
	default:
		c.open = true
		c.tell |= tellResponse
		s.connected(c, conn.(*net.UnixConn))
		s.poke(c)
	}
}

// transmit serves the queue of the guest's packets.
func (s *service) transmit(q *virtio.Queue) {
	q.Serve(func(c *virtio.Chain) uint32 {
		if err := s.packet(c); err != nil {
			q.Fail(err)
		}
		return 0
	})
}

// packet takes one packet of the guest.
func (s *service) packet(chain *virtio.Chain) error {
	var raw [headerSize]byte
	if chain.Read(raw[:]) < headerSize {
		return errShortPacket
	}
	var h header
	h.decode(&raw)
	if uint64(h.length) > uint64(virtio.Len(chain.Readable)) {
		return errTruncated
	}
	if h.srcCID != s.d.cid || h.dstCID != hostCID {
		s.d.dropped.Add(1)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := name{guest: h.srcPort, host: h.dstPort}
	c := s.routes[n]
	switch {
	case c != nil && h.kind == typeStream:
		if !s.take(c, &h, chain) {
			s.d.violated.Add(1)
			s.reset(c)
		}
	case h.op == opReset:
	case h.op == opRequest && h.kind == typeStream:
		s.accept(n, h.bufAlloc, h.fwdCnt)
	default:
		s.refuse(n)
	}
	return nil
}

// take takes a packet for a stream. It returns false when it breaks the
// protocol.
func (s *service) take(c *stream, h *header, chain *virtio.Chain) bool {
	c.guestBuf, c.guestFwd = h.bufAlloc, h.fwdCnt
	if c.credit() > 0 {
		c.asked = false
		c.tell &^= askCredit
	}
	switch h.op {
	case opReset:
		s.drop(c)
		return true
	case opResponse:
		if c.open || !c.ours || c.tell&tellRequest != 0 {
			return false
		}
		c.open = true
		c.answer <- true
	case opData:
		if !c.open || c.guestShut&shutdownSend != 0 || int64(h.length) > int64(c.out.Room()) {
			return false
		}
		left := int(h.length)
		for _, b := range chain.Readable {
			b = b[:min(len(b), left)]
			c.out.Put(b, nil) // there is room, and nobody else puts
			left -= len(b)
		}
		c.received += h.length
	case opShutdown:
		if !c.open {
			return false
		}
		c.guestShut |= h.flags & shutdownBoth
		if c.guestShut&shutdownSend != 0 {
			c.out.Close()
		}
		if c.guestShut&shutdownReceive != 0 {
			s.deafen(c)
		}
		s.settle(c)
	case opCreditUpdate:
		if !c.open {
			return false
		}
	case opCreditRequest:
		if !c.open {
			return false
		}
		c.tell |= tellCredit
	default:
		return false
	}
	s.poke(c)
	return true
}

// deafen drops what is on its way to a guest that does not read any more.
func (s *service) deafen(c *stream) {
	c.in.Close()
	var waste [512]byte
	for c.in.TakeNow(waste[:]) > 0 {
	}
	if c.sock != nil {
		_ = c.sock.CloseRead()
	}
}

// receive serves the queue of packets to the guest. It takes a buffer only when
// there is a packet.
func (s *service) receive(q *virtio.Queue) {
	var chain virtio.Chain
	for {
		n, c, ok := s.next()
		if !ok {
			return
		}
		for !q.Next(&chain) {
			if !q.Wait() {
				return
			}
		}
		mark := q.Begin()
		written, err := s.fill(&chain, n, c)
		if err != nil {
			q.Fail(err)
		}
		q.Done(&chain, written)
		q.Flush()
		q.End(mark)
	}
}

// next waits for the next stream in turn, or the next reset (with no stream).
func (s *service) next() (n name, c *stream, ok bool) {
	for {
		s.mu.Lock()
		switch {
		case len(s.resets) > 0:
			n, ok = s.resets[0], true
			s.resets = s.resets[:copy(s.resets, s.resets[1:])]
		case len(s.ready) > 0:
			c, ok = s.ready[0], true
			n = c.name
			s.ready = slices.Delete(s.ready, 0, 1)
			c.queued = false
		}
		s.mu.Unlock()
		if ok {
			return n, c, true
		}
		select {
		case <-s.todo:
		case <-s.stop:
			return n, nil, false
		}
	}
}

// fill puts one packet in chain. A stream that has ended since it was found
// ready sends a reset; one that has nothing left to say, its credit.
func (s *service) fill(chain *virtio.Chain, n name, c *stream) (written uint32, err error) {
	room := virtio.Len(chain.Writable)
	if room < headerSize {
		return 0, errSmallBuffer
	}
	h := header{
		srcCID: hostCID, dstCID: s.d.cid, srcPort: n.host, dstPort: n.guest,
		kind: typeStream, op: opReset,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c != nil && c.routed {
		s.say(c, &h, uint32(min(room-headerSize, inSize)))
	}
	var raw [headerSize]byte
	h.encode(&raw)
	chain.Write(raw[:])
	for left := h.length; left > 0; {
		b := chain.Writable[0]
		m := c.in.TakeNow(b[:min(uint32(len(b)), left)])
		chain.Writable = chain.Writable[1:]
		left -= uint32(m)
	}
	if c != nil {
		s.poke(c)
	}
	return headerSize + h.length, nil
}

// say chooses a stream's next packet, with at most room bytes of data.
func (s *service) say(c *stream, h *header, room uint32) {
	h.bufAlloc, h.fwdCnt = bufAlloc, c.forwarded()
	c.toldFwd = h.fwdCnt
	n := min(c.sendable(), room)
	switch {
	case c.tell&tellRequest != 0:
		h.op = opRequest
		c.tell &^= tellRequest
	case c.tell&tellResponse != 0:
		h.op = opResponse
		c.tell &^= tellResponse
	case n > 0:
		h.op, h.length = opData, n
		c.sent += n
	case c.tell&askCredit != 0:
		h.op = opCreditRequest
		c.tell &^= askCredit
	case c.open && c.shutdowns() != 0:
		c.toldShut |= c.shutdowns()
		h.op, h.flags = opShutdown, c.toldShut
	default:
		h.op = opCreditUpdate
	}
	c.tell &^= tellCredit
}
