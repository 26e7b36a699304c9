package balance

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"disco/memory"
	"disco/numa"
)

func TestNewRefuses(t *testing.T) {
	m, top := newModel(2, 512), topology(t, 2)
	for name, c := range map[string]struct {
		cfg   Config
		nodes []numa.Node
	}{
		"off":            {Config{}, m.nodes},
		"one node":       {Config{Policy: Full}, m.nodes[:1]},
		"no such node":   {Config{Policy: Full}, []numa.Node{0, 5}},
		"too many nodes": {Config{Policy: Full}, make([]numa.Node, 17)},
		"bad thresholds": {Config{Policy: Full, Tick: 1}, m.nodes},
	} {
		if _, err := New(c.cfg, m, top, c.nodes, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestDaemonTicks runs the goroutine itself, in time that the test makes.
func TestDaemonTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(2, each+512)
		var mu sync.Mutex // the model's, against the daemon
		d, err := New(Config{Policy: Full}, locked{m, &mu}, topology(t, 2), m.nodes, nil)
		if err != nil {
			t.Fatal(err)
		}
		d.free = func(numa.Node) (numa.Memory, error) { return numa.Memory{Total: 1 << 40, Available: 1 << 40}, nil }
		for i := range m.page {
			m.access(memory.PPN(i), 0, true)
		}
		r, next := rand.New(rand.NewPCG(1, 2)), far(each)
		work := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				mu.Lock()
				for range 1000 {
					for v := range m.nodes {
						p, write := next(r, v, 0)
						m.access(p, v, write)
					}
				}
				mu.Unlock()
			}
		}
		d.Start()
		d.Start()
		d.Pause()
		work(5 * time.Second)
		if m.migrated > 0 || !d.Stats().Paused {
			t.Errorf("%d pages migrated while it paused", m.migrated)
		}
		d.Resume()
		work(10 * time.Second)
		synctest.Wait()
		s := d.Stats()
		if m.migrated != each || s.Migrated != each || s.Paused || s.Policy != Full || s.LocalShare != 1 || s.Faults == 0 {
			t.Errorf("%d of %d pages migrated; %+v", m.migrated, each, s)
		}
		d.Close()
		d.Close()
		if d.Stats().Migrated != each {
			t.Error("the counters are gone")
		}
	})
}

// TestCloseWithoutStart leaves nothing to wait for.
func TestCloseWithoutStart(t *testing.T) {
	m := newModel(2, 512)
	d, err := New(Config{Policy: Migrate}, m, topology(t, 2), m.nodes, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	d.Start() // too late
	d.Close()
}

// locked is a model that a goroutine of its own uses, too.
type locked struct {
	*model
	mu *sync.Mutex
}

func (l locked) Locate(dst []numa.Node, p memory.PPN) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Locate(dst, p)
}

func (l locked) States(dst []memory.State, p memory.PPN) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.States(dst, p)
}

func (l locked) Replicas(p memory.PPN) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Replicas(p)
}

func (l locked) Watch(p memory.PPN, n int, on numa.Node) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Watch(p, n, on)
}

func (l locked) Unwatch(p memory.PPN, n int, on numa.Node) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Unwatch(p, n, on)
}

func (l locked) Guard(p memory.PPN, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Guard(p, n)
}

func (l locked) Unguard(p memory.PPN, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Unguard(p, n)
}

func (l locked) Migrate(p memory.PPN, n int, to numa.Node) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Migrate(p, n, to)
}

func (l locked) Replicate(p memory.PPN, n int, on numa.Node) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Replicate(p, n, on)
}

func (l locked) Collapse(p memory.PPN, n int) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Collapse(p, n)
}

// TestStepAllocates nothing once a guest has settled, nor while it is written to
// from everywhere.
func TestStepAllocates(t *testing.T) {
	for _, w := range workloads[:4] {
		g := newGuest(t, newModel(4, w.pages(4)), Config{Policy: Full})
		g.next = w.next(4)
		g.fill(0)
		g.run(settle)
		n := testing.AllocsPerRun(50, func() { g.run(100 * time.Millisecond) })
		if n != 0 {
			t.Errorf("%s: %v allocations in a tick", w.name, n)
		}
	}
}
