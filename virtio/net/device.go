// Package netdev is the virtio network device (virtio 1.2 §5.1).
//
// (Its folder is virtio/net; the name keeps it from shadowing package net.)
//
// A device has up to eight queue pairs, each with a goroutine that receives and
// one that transmits, and a control queue. Frames pass between guest memory and
// the [Backend] in one step: the backend reads and writes the guest's own
// buffers, and nothing on that path allocates. Checksums and TCP segmentation
// are left undone in both directions as far as the backend allows and the
// driver agrees, and received frames are merged over several buffers.
//
// Behind a [Switch] there is one step for both guests: the worker that transmits
// puts a frame from its guest's buffers into the other's, or has the other guest
// map its pages, and there is no worker that receives.
//
// Not done here: filtering by MAC address, VLAN or promiscuity (the guest is
// given every frame that the backend has; the rules are accepted, and the guest
// filters again itself), receive-side scaling by a guest's hash key, UDP
// segmentation, and migration announcements.
package netdev

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"

	"disco/net/frame"
	"disco/virtio"
)

// Feature bits (virtio 1.2 §5.1.3).
const (
	featureCsum      = 1 << 0  // frames from the driver may lack their checksum
	featureGuestCsum = 1 << 1  // frames to the driver may
	featureMTU       = 1 << 3  //
	featureMAC       = 1 << 5  //
	featureGuestTSO4 = 1 << 7  // frames to the driver may be long TCP segments
	featureGuestTSO6 = 1 << 8  //
	featureGuestECN  = 1 << 9  //
	featureHostTSO4  = 1 << 11 // frames from the driver may
	featureHostTSO6  = 1 << 12 //
	featureHostECN   = 1 << 13 //
	featureMrgRxbuf  = 1 << 15 // a frame may take up several receive buffers
	featureStatus    = 1 << 16 //
	featureCtrlVQ    = 1 << 17 //
	featureCtrlRx    = 1 << 18 //
	featureMQ        = 1 << 22 //
	featureCtrlMAC   = 1 << 23 //
)

const (
	// MaxPairs is the largest number of queue pairs of one device.
	MaxPairs = 8

	queueSize   = 256
	controlSize = 64
)

// Backend is the far end of a network device's cable. Frames carry the header
// of package frame. Queue i of the backend serves queue pair i of the device;
// each queue has one reader and one writer at a time, and the queues run beside
// each other.
type Backend interface {
	// Queues is how many queues there are, at least 1.
	Queues() int
	// Offloads is what frames may carry, in both directions.
	Offloads() frame.Offloads
	// MTU is the largest IP packet in bytes, or 0 if the driver is to choose.
	MTU() int
	// Attach takes the first n queues into use and the others out of it, and
	// lets frames that are read from now on carry the offloads in accept. It
	// ends what Interrupt began. Queues may be in use meanwhile.
	Attach(n int, accept frame.Offloads) error
	// ReadFrame fills bufs, one after the other, with the next frame and its
	// header, and gives the length of both. The bufs have room for any frame.
	// If there is none it waits, or returns 0 at once if wait is false. It does
	// not keep bufs.
	ReadFrame(queue int, bufs [][]byte, wait bool) (int, error)
	// WriteFrame sends a frame: bufs is its header, checked, then its bytes,
	// which the guest may change at any time. It may drop the frame, with an
	// error, but does not wait for long. It does not keep bufs.
	WriteFrame(queue int, bufs [][]byte) error
	// Interrupt ends every ReadFrame that waits, and those that come, with an
	// error, until the next Attach.
	Interrupt()
}

// Config says what device to make.
type Config struct {
	// Backend is the far end, or nil if Switch is.
	Backend Backend
	Switch  Switch
	// Manners are those of all devices of the Switch's network; nil for the device's
	// own. A Backend has none.
	Manners *Manners
	// MAC is the guest's address; zero for one made up at random.
	MAC [6]byte
	// Pairs is the number of queue pairs, 1 to MaxPairs; 0 for 1. It is cut to
	// what the far end has. One for each vCPU serves best.
	Pairs int
	// Log takes the few lines of what goes wrong; nil for slog's default.
	Log *slog.Logger
}

// Stats counts frames since the device was made, as the guest sees them.
type Stats struct {
	Received        uint64 // frames handed to the guest
	ReceivedBytes   uint64
	ReceiveDropped  uint64 // frames for which the guest had too little room
	Sent            uint64 // frames taken from the guest and sent
	SentBytes       uint64
	SendRefused     uint64 // malformed frames from the guest, dropped
	SendDropped     uint64 // frames that the backend did not take
	ControlRequests uint64
}

// Net is a network device. It implements virtio.Device.
type Net struct {
	backend Backend // or nil
	sw      Switch  // or nil
	manners *Manners
	far     far // one of the two
	log     *slog.Logger
	pairs   int
	config  config

	counters struct {
		received, receivedBytes, receiveDropped   atomic.Uint64
		sent, sentBytes, sendRefused, sendDropped atomic.Uint64
		control                                   atomic.Uint64
	}

	// Of the service between Start and Stop.
	features uint64
	accept   frame.Offloads // what the driver takes
	allowed  frame.Offloads // what the driver may leave undone
	queues   []*virtio.Queue
	bays     []*bay    // of a Switch, by pair
	senders  []*sender // of a Switch
	workers  sync.WaitGroup
	active   atomic.Int32 // queue pairs in use
	mu       sync.Mutex   // guards stopping and changes of active
	change   *sync.Cond   // of them, on mu
	stopping bool
}

var (
	_ virtio.Device = (*Net)(nil)
	_ frame.Sink    = (*Net)(nil)
)

// far is what both kinds of far ends say of themselves.
type far interface {
	Queues() int
	Offloads() frame.Offloads
	MTU() int
}

// New makes a device. The backend stays the caller's, who closes it after the
// device's last Stop.
func New(c Config) (*Net, error) {
	if c.Pairs == 0 {
		c.Pairs = 1
	}
	if c.Pairs < 0 || c.Pairs > MaxPairs {
		return nil, fmt.Errorf("network device: %d queue pairs: there can be 1 to %d", c.Pairs, MaxPairs)
	}
	if c.MAC[0]&1 != 0 {
		return nil, fmt.Errorf("network device: %x is no device's address but a group's", c.MAC)
	}
	if c.MAC == [6]byte{} {
		if _, err := rand.Read(c.MAC[:]); err != nil {
			return nil, fmt.Errorf("network device: %w", err)
		}
		c.MAC[0] = c.MAC[0]&^1 | 2 // one device, locally administered
	}
	if (c.Backend == nil) == (c.Switch == nil) {
		return nil, errors.New("network device: it needs one far end: a Backend or a Switch")
	}
	end := far(c.Backend)
	if c.Switch != nil {
		end = c.Switch
	}
	mtu := end.MTU()
	if mtu < 0 || mtu > math.MaxUint16 {
		return nil, fmt.Errorf("network device: MTU %d: it can be at most %d", mtu, math.MaxUint16)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	n := &Net{backend: c.Backend, sw: c.Switch, manners: cmp.Or(c.Manners, new(Manners)), far: end, log: c.Log, pairs: min(c.Pairs, end.Queues())}
	n.change = sync.NewCond(&n.mu)
	n.config = config{mac: c.MAC, pairs: uint16(n.pairs), mtu: uint16(mtu)}
	return n, nil
}

// ID is virtio.IDNet.
func (n *Net) ID() virtio.DeviceID { return virtio.IDNet }

// Features are those of the backend, and those of every device.
func (n *Net) Features() uint64 {
	f := uint64(featureMAC | featureMrgRxbuf | featureStatus | featureCtrlVQ | featureCtrlRx | featureCtrlMAC)
	if n.config.mtu != 0 {
		f |= featureMTU
	}
	if n.pairs > 1 {
		f |= featureMQ
	}
	for _, o := range offloads {
		if n.far.Offloads().Has(o.offload) {
			f |= o.host | o.guest
		}
	}
	return f
}

// offloads says which feature lets which side leave what undone.
var offloads = []struct {
	offload     frame.Offloads
	host, guest uint64
}{
	{frame.Checksum, featureCsum, featureGuestCsum},
	{frame.TSO4, featureHostTSO4, featureGuestTSO4},
	{frame.TSO6, featureHostTSO6, featureGuestTSO6},
	{frame.ECN, featureHostECN, featureGuestECN},
}

// agreed is what each side may leave undone under features. No segments are
// without checksums (virtio 1.2 §5.1.3.1).
func agreed(features uint64) (fromDriver, toDriver frame.Offloads) {
	for _, o := range offloads {
		if features&o.host != 0 {
			fromDriver |= o.offload
		}
		if features&o.guest != 0 {
			toDriver |= o.offload
		}
	}
	if !fromDriver.Has(frame.Checksum) {
		fromDriver = 0
	}
	if !toDriver.Has(frame.Checksum) {
		toDriver = 0
	}
	return fromDriver, toDriver
}

// QueueSizes are those of receive and transmit in turn for each pair, then the
// control queue (virtio 1.2 §5.1.2).
func (n *Net) QueueSizes() []uint16 {
	sizes := make([]uint16, 2*n.pairs, 2*n.pairs+1)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return append(sizes, controlSize)
}

// config is struct virtio_net_config (virtio 1.2 §5.1.4).
type config struct {
	mac   [6]byte
	pairs uint16
	mtu   uint16
}

const linkUp = 1

// ReadConfig fills p from the config space.
func (n *Net) ReadConfig(offset uint64, p []byte) {
	var b [12]byte
	n.mu.Lock()
	copy(b[:], n.config.mac[:])
	n.mu.Unlock()
	binary.LittleEndian.PutUint16(b[6:], linkUp)
	binary.LittleEndian.PutUint16(b[8:], n.config.pairs)
	binary.LittleEndian.PutUint16(b[10:], n.config.mtu)
	clear(p)
	if offset < uint64(len(b)) {
		copy(p, b[offset:])
	}
}

// WriteConfig ignores the write: nothing is writable.
func (n *Net) WriteConfig(uint64, []byte) {}

// Start begins service with one queue pair in use; the driver asks for more on
// the control queue (virtio 1.2 §5.1.6.5.5).
func (n *Net) Start(features uint64, queues []*virtio.Queue) error {
	n.features = features
	n.allowed, n.accept = agreed(features)
	n.queues = queues
	n.stopping = false
	n.active.Store(1)

	// Without multiple queues the control queue follows the one pair, whatever
	// the device could do (virtio 1.2 §5.1.2).
	pairs := n.pairs
	if features&featureMQ == 0 {
		pairs = 1
	}
	n.bays = make([]*bay, pairs)
	for i, q := range queues[:2*pairs] {
		if n.sw != nil && q != nil && i%2 == 0 {
			n.bays[i/2] = newBay(n, q)
		}
	}
	if err := n.attach(1); err != nil {
		return fmt.Errorf("network device: %w", err)
	}
	for i, q := range queues[:2*pairs] {
		if q != nil {
			n.serve(i/2, i%2 == 0, q)
		}
	}
	if q := queues[2*pairs]; q != nil && features&featureCtrlVQ != 0 {
		c := &controller{net: n, queue: q, pairs: pairs}
		n.workers.Go(c.run)
	}
	return nil
}

// attach takes pairs queue pairs of the far end into use.
func (n *Net) attach(pairs int) error {
	if n.sw != nil {
		return n.sw.Attach(pairs, n.accept, n)
	}
	return n.backend.Attach(pairs, n.accept)
}

// serve has a queue of a pair served by a worker.
func (n *Net) serve(pair int, receive bool, q *virtio.Queue) {
	switch {
	case n.sw != nil && receive:
		l := &listener{net: n, pair: pair, queue: q}
		n.workers.Go(l.run)
	case n.sw != nil:
		s := newSender(n, pair, q)
		n.senders = append(n.senders, s)
		n.workers.Go(s.run)
	case receive:
		r := newReceiver(n, pair, q)
		n.workers.Go(r.run)
	default:
		t := &transmitter{net: n, pair: pair, queue: q}
		n.workers.Go(t.run)
	}
}

// Stop ends service and returns when all workers have.
func (n *Net) Stop() {
	n.mu.Lock()
	n.stopping = true
	if n.sw != nil {
		n.sw.Detach()
	} else {
		n.backend.Interrupt()
	}
	n.change.Broadcast()
	n.mu.Unlock()
	for _, q := range n.queues {
		if q != nil {
			q.Stop()
		}
	}
	n.workers.Wait()
	for _, b := range n.bays {
		if b != nil {
			b.clear()
		}
	}
	for _, s := range n.senders {
		s.reap()
	}
	n.queues, n.bays, n.senders = nil, nil, nil
}

// setPairs takes pairs queue pairs into use.
func (n *Net) setPairs(pairs int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopping {
		return errors.New("the device is stopping")
	}
	if err := n.attach(pairs); err != nil {
		return err
	}
	n.active.Store(int32(pairs))
	n.change.Broadcast()
	return nil
}

// waitActive blocks until a queue pair is in use, and returns false when the
// device is stopping.
func (n *Net) waitActive(pair int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for int(n.active.Load()) <= pair && !n.stopping {
		n.change.Wait()
	}
	return !n.stopping
}

func (n *Net) isActive(pair int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return int(n.active.Load()) > pair && !n.stopping
}

// MAC is the guest's address: the one it was given, or has set since.
func (n *Net) MAC() [6]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.config.mac
}

// Stats gives the counters. They do not agree with each other to the frame
// while the device runs.
func (n *Net) Stats() Stats {
	c := &n.counters
	return Stats{
		Received:        c.received.Load(),
		ReceivedBytes:   c.receivedBytes.Load(),
		ReceiveDropped:  c.receiveDropped.Load(),
		Sent:            c.sent.Load(),
		SentBytes:       c.sentBytes.Load(),
		SendRefused:     c.sendRefused.Load(),
		SendDropped:     c.sendDropped.Load(),
		ControlRequests: c.control.Load(),
	}
}
