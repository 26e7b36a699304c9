package virtio

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"

	"disco/devices/pci"
	"disco/memory"
)

// Bits of the device status (virtio 1.2 §2.1).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 64
	statusFailed      = 128

	statusOfDriver = statusAcknowledge | statusDriver | statusDriverOK | statusFeaturesOK | statusFailed
)

// Bits of the ISR status (virtio 1.2 §4.1.4.5).
const (
	isrQueue  = 1
	isrConfig = 2
)

// noVector is VIRTIO_MSI_NO_VECTOR.
const noVector = 0xffff

// maxComplaints bounds the log lines that one guest can cause by misbehaving
// and resetting, over and over. What comes later is counted only.
const maxComplaints = 8

// Transport is the PCI function in front of a Device: virtio 1.2 §4.1, modern
// only, with MSI-X and no INTx pin.
//
// Guests reach it from many vCPUs at once. One lock, mu, guards the registers,
// and is held while the Device starts, stops and has its config space accessed.
// What a Device's workers call (the queues, and through them fail and
// interrupt) takes no lock that is held meanwhile, only atomics; so Stop may
// wait for the workers under mu, and a reset is done when its register write
// returns. The order of locks is that of the Root, mu, a Device's own, MSI-X's.
type Transport struct {
	dev     Device
	space   *memory.Space
	host    pci.Host
	log     *slog.Logger
	payer   Payer // or nil
	config  *pci.Config
	msix    *pci.MSIX
	offered uint64
	sizes   []uint16

	status     atomic.Uint32
	vector     atomic.Uint32 // for configuration changes
	generation atomic.Uint32
	isr        atomic.Uint32
	kicks      atomic.Uint64
	interrupts atomic.Uint64
	failures   atomic.Uint64
	halts      sync.WaitGroup

	mu           sync.Mutex
	closed       bool
	running      bool // between the Device's Start and Stop
	base         uint64
	mapped       bool
	memory       uint64 // where the shared memory region is mapped, or 0
	deviceSelect uint32
	driverSelect uint32
	accepted     uint64
	queueSelect  uint16
	queues       []queueState
}

// queueState is what the registers say of one queue. Workers and kicks use the
// atomics.
type queueState struct {
	index   int
	size    uint16
	rings   [3]memory.GPA // descriptor table, available ring, used ring
	enabled bool
	bound   uint64 // where its doorbell is an ioeventfd, or 0
	vector  atomic.Uint32
	queue   atomic.Pointer[Queue] // nil while not enabled
}

// NewTransport puts dev behind a PCI function, to be plugged into a pci.Root.
// The caller owns it; Close ends it before dev and space end. Another may
// follow for the same dev.
func NewTransport(dev Device, space *memory.Space, host pci.Host, log *slog.Logger) (*Transport, error) {
	sizes := dev.QueueSizes()
	if len(sizes) == 0 || len(sizes) > maxQueues {
		return nil, fmt.Errorf("virtio %v: %d queues, not 1 to %d", dev.ID(), len(sizes), maxQueues)
	}
	for i, n := range sizes {
		if bits.OnesCount16(n) != 1 {
			return nil, fmt.Errorf("virtio %v: queue %d of size %d, no power of two", dev.ID(), i, n)
		}
	}
	log = log.With("device", "virtio-"+dev.ID().String())
	t := &Transport{
		dev: dev, space: space, host: host, log: log, sizes: sizes,
		msix:    pci.NewMSIX(host, len(sizes)+1, log), // one more for configuration changes
		offered: dev.Features() | TransportFeatures,
		queues:  make([]queueState, len(sizes)),
	}
	for i := range t.queues {
		t.queues[i].index = i
	}
	t.forget()
	t.configure()
	return t, nil
}

// PaidBy has the device's workers be paid for by p. It comes before the guest runs.
func (t *Transport) PaidBy(p Payer) { t.payer = p }

// Config is the function's config space.
func (t *Transport) Config() *pci.Config { return t.config }

// Moved binds the doorbells at BAR 0's new place.
func (t *Transport) Moved(base uint64, mapped bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.base, t.mapped = base, mapped
	for i := range t.queues {
		t.unbind(&t.queues[i])
		t.bind(&t.queues[i])
	}
}

// sharedMemory is the Device's region, if it has one.
func (t *Transport) sharedMemory() (id uint8, memory []byte) {
	if d, ok := t.dev.(SharedMemory); ok {
		return d.SharedMemory()
	}
	return 0, nil
}

// MovedMemory maps the shared memory region at BAR 2's new place.
func (t *Transport) MovedMemory(base uint64, mapped bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unmapMemory()
	if !mapped || t.closed {
		return
	}
	_, memory := t.sharedMemory()
	if err := t.host.MapMemory(base, memory); err != nil {
		t.log.Error("the guest cannot reach the device's memory", "err", err)
		return
	}
	t.memory = base
}

func (t *Transport) unmapMemory() {
	if t.memory == 0 {
		return
	}
	_, memory := t.sharedMemory()
	if err := t.host.UnmapMemory(t.memory, memory); err != nil {
		t.log.Error("the device's memory stays where it was", "err", err)
	}
	t.memory = 0
}

// Read is a guest's read of BAR 0.
func (t *Transport) Read(offset uint64, p []byte) {
	switch {
	case offset >= tableOffset+t.msix.TableSize():
		t.msix.ReadPBA(offset-tableOffset-t.msix.TableSize(), p)
	case offset >= tableOffset:
		t.msix.ReadTable(offset-tableOffset, p)
	case offset >= notifyOffset:
		clear(p)
	case offset >= configOffset:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.dev.ReadConfig(offset-configOffset, p)
	case offset >= isrOffset:
		clear(p)
		if offset == isrOffset {
			p[0] = byte(t.isr.Swap(0)) // reading clears it
		}
	default:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.readCommon(offset, p)
	}
}

// Write is a guest's write to BAR 0.
func (t *Transport) Write(offset uint64, p []byte) {
	switch {
	case offset >= tableOffset:
		t.msix.WriteTable(offset-tableOffset, p)
	case offset >= notifyOffset:
		t.kick(offset - notifyOffset)
	case offset >= configOffset:
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.closed {
			t.dev.WriteConfig(offset-configOffset, p)
		}
	case offset >= isrOffset:
	default:
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.closed {
			t.writeCommon(offset, p)
		}
	}
}

// kick is a notification that came as an exit: through config space, or because
// the host would not bind the doorbell.
func (t *Transport) kick(offset uint64) {
	t.kicks.Add(1)
	if i := offset / notifyMultiplier; i < uint64(len(t.queues)) {
		if q := t.queues[i].queue.Load(); q != nil {
			q.Kick()
		}
	}
}

// accept takes the driver's choice of features, until it is settled.
func (t *Transport) accept(v uint32) {
	if t.driverSelect > 1 || t.status.Load()&statusFeaturesOK != 0 {
		return
	}
	shift := 32 * t.driverSelect
	t.accepted = t.accepted&^(0xffffffff<<shift) | uint64(v)<<shift
}

// setStatus moves the device through its life (virtio 1.2 §3.1.1). A driver
// sets bits one after the other, and clears them all by a reset.
func (t *Transport) setStatus(v uint32) {
	if v == 0 {
		t.reset()
		return
	}
	add := v & statusOfDriver &^ t.status.Load()
	if add&statusFeaturesOK != 0 && (t.accepted&^t.offered != 0 || t.accepted&FeatureVersion1 == 0) {
		// The driver reads it back, and sees that it was refused.
		add &^= statusFeaturesOK
	}
	now := t.status.Or(add&^statusDriverOK) | add&^statusDriverOK
	if add&statusDriverOK == 0 || now&statusNeedsReset != 0 {
		return
	}
	if now&statusFeaturesOK == 0 {
		t.fail(errors.New("DRIVER_OK before FEATURES_OK"))
		return
	}
	// Workers may fail as soon as they run, and the driver is then to be told.
	t.status.Or(statusDriverOK)
	queues := make([]*Queue, len(t.queues))
	for i := range t.queues {
		queues[i] = t.queues[i].queue.Load()
	}
	if err := t.dev.Start(t.accepted, queues); err != nil {
		t.fail(fmt.Errorf("start: %w", err))
		return
	}
	t.running = true
}

// enable takes a queue into use as its registers say.
func (t *Transport) enable(q *queueState) {
	status := t.status.Load()
	if q.enabled || status&(statusNeedsReset|statusDriverOK) != 0 {
		return
	}
	if status&statusFeaturesOK == 0 {
		t.fail(fmt.Errorf("queue %d: enabled before FEATURES_OK", q.index))
		return
	}
	if q.size > t.sizes[q.index] {
		t.fail(fmt.Errorf("queue %d: size %d is more than %d", q.index, q.size, t.sizes[q.index]))
		return
	}
	queue, err := NewQueue(QueueConfig{
		Index: q.index, Size: q.size, Desc: q.rings[0], Avail: q.rings[1], Used: q.rings[2],
		Features: t.accepted, Space: t.space, Failed: t.fail, Payer: t.payer,
		Interrupt: func() { t.interrupt(q.vector.Load(), isrQueue) },
	})
	if err != nil {
		t.fail(err)
		return
	}
	q.enabled = true
	q.queue.Store(queue)
	t.bind(q)
}

// bind makes a queue's doorbell an ioeventfd, where it can be hit. If the host
// will not, kicks come as exits.
func (t *Transport) bind(q *queueState) {
	queue := q.queue.Load()
	if queue == nil || !t.mapped {
		return
	}
	at := t.base + notifyOffset + notifyMultiplier*uint64(q.index)
	if err := t.host.BindDoorbell(at, queue.Doorbell()); err != nil {
		t.log.Warn("kicks will be slow", "queue", q.index, "err", err)
		return
	}
	q.bound = at
}

func (t *Transport) unbind(q *queueState) {
	if q.bound == 0 {
		return
	}
	if err := t.host.UnbindDoorbell(q.bound, q.queue.Load().Doorbell()); err != nil {
		t.log.Error("doorbell stays", "queue", q.index, "err", err)
	}
	q.bound = 0
}

// halt stops the device and lets its queues go. The registers stay.
func (t *Transport) halt() {
	for i := range t.queues {
		if q := t.queues[i].queue.Load(); q != nil {
			q.Stop()
		}
	}
	if t.running {
		t.dev.Stop()
		t.running = false
	}
	for i := range t.queues {
		q := &t.queues[i]
		t.unbind(q)
		if queue := q.queue.Swap(nil); queue != nil {
			queue.Close()
		}
	}
}

func (t *Transport) reset() {
	t.halt()
	t.forget()
	t.status.Store(0)
}

// forget gives the registers their values of after a reset.
func (t *Transport) forget() {
	t.deviceSelect, t.driverSelect, t.accepted, t.queueSelect = 0, 0, 0, 0
	t.isr.Store(0)
	t.vector.Store(noVector)
	for i := range t.queues {
		q := &t.queues[i]
		q.size, q.rings, q.enabled = t.sizes[i], [3]memory.GPA{}, false
		q.vector.Store(noVector)
	}
}

// fail stops a device whose driver misbehaved (virtio 1.2 §2.1.2). Workers call
// it, so the device itself is stopped by another goroutine.
func (t *Transport) fail(err error) {
	old := t.status.Or(statusNeedsReset)
	if old&statusNeedsReset != 0 {
		return
	}
	if n := t.failures.Add(1); n <= maxComplaints {
		t.log.Warn("device stopped: its driver misbehaved", "err", err)
	}
	for i := range t.queues {
		if q := t.queues[i].queue.Load(); q != nil {
			q.Stop()
		}
	}
	if old&statusDriverOK != 0 {
		t.interrupt(t.vector.Load(), isrConfig)
	}
	t.halts.Go(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.status.Load()&statusNeedsReset != 0 {
			t.halt()
		}
	})
}

// interrupt takes no lock that is held for long: workers call it.
func (t *Transport) interrupt(vector, isr uint32) {
	if !t.msix.Enabled() {
		t.isr.Or(isr) // for a driver that polls: there is no pin
		return
	}
	if isr == isrConfig {
		t.isr.Or(isr)
	}
	if vector != noVector {
		t.interrupts.Add(1)
		t.msix.Signal(int(vector))
	}
}

// ConfigChanged tells the driver, if there is one, to read the device's config
// space again. It comes after the change, from any goroutine; the driver may
// have read the new values before it.
func (t *Transport) ConfigChanged() {
	t.generation.Add(1)
	if t.status.Load()&(statusDriverOK|statusNeedsReset) == statusDriverOK {
		t.interrupt(t.vector.Load(), isrConfig)
	}
}

// Stats are counts since the Transport was made.
type Stats struct {
	Kicks      uint64 // notifications that came as exits
	Interrupts uint64 // raised, masked or not
	Failures   uint64 // times that the driver misbehaved
}

// Stats may be called at any time.
func (t *Transport) Stats() Stats {
	return Stats{t.kicks.Load(), t.interrupts.Load(), t.failures.Load()}
}

// Close stops the device and frees doorbells and interrupts. The guest should
// not run any more; what it may still write does nothing.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.reset()
	t.unmapMemory()
	t.closed = true
	t.mu.Unlock()
	t.halts.Wait()
	return t.msix.Close()
}
