package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"disco/memory"
	"disco/memory/arena"
	"disco/numa"
	"disco/vcpu"
	"disco/vcpu/kvm"
)

// Where the tiny guest coherence finds things (integration/tiny/src/coherence.S).
const (
	coherentPages  = 16
	coherentFirst  = 0x40_0000 - 8*arena.PageSize // over the edge of a 2 MiB block
	coherentParams = 0x20_0000
	coherentNotes  = 0x60_0000
	coherentWords  = 64 // offset of A and B of the first CPU in a page
	// Every round of a guest's stores what it or another will check: the counter
	// by a locked instruction, and two words.
	writesPerRound = 3
)

// TestKVMCoherence has tiny guests in KVM VMs of their own, each on its own
// View, write to the same pages and check all they read, and a device write to
// them, too, while the pages are copied, moved and made one again. The nodes are
// fake. DISCO_COHERENCE_WRITES makes it longer: make soak-memory.
func TestKVMCoherence(t *testing.T) {
	real, err := numa.Read(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	topology, err := real.Fake(3)
	if err != nil {
		t.Fatal(err)
	}
	coherent(t, topology, 100_000)
}

// TestLabNodesCoherence is the same on real nodes and with nested paging.
func TestLabNodesCoherence(t *testing.T) {
	topology, err := numa.Read(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	if len(topology.Nodes()) < 2 {
		t.Fatal("the lab has one node")
	}
	coherent(t, topology, 10_000_000)
}

// coherence is a Space and a KVM VM for each of its Views.
type coherence struct {
	t     *testing.T
	space *memory.Space
	cpus  []*vcpu.VCPU
	ended chan int // what a guest ended with
}

func coherent(t *testing.T, topology *numa.Topology, writes int) {
	if text := os.Getenv("DISCO_COHERENCE_WRITES"); text != "" {
		var err error
		if writes, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	c := newCoherence(t, topology)
	rounds := (writes/writesPerRound + len(c.cpus) - 1) / len(c.cpus)
	for id := range c.cpus {
		c.boot(id, rounds)
	}

	stop := make(chan struct{})
	var agents sync.WaitGroup
	var acts atomic.Int64
	agents.Go(func() { c.device(stop) })
	for range 2 {
		agents.Go(func() { c.policy(stop, topology.Nodes(), &acts) })
	}
	start := time.Now()
	for _, v := range c.cpus {
		v.Start()
	}
	c.watch(time.Duration(rounds)*5*time.Millisecond + patience)
	close(stop)
	agents.Wait()

	got := uint64(0)
	var b [8]byte
	for p := range memory.GPA(coherentPages) {
		if err := c.space.ReadAt(b[:], coherentFirst+p*arena.PageSize); err != nil {
			t.Fatal(err)
		}
		got += binary.LittleEndian.Uint64(b[:])
	}
	if want := uint64(rounds * len(c.cpus)); got != want {
		t.Errorf("the counters say %d, want %d: stores are lost", got, want)
	}
	n := c.space.Stats()
	t.Logf("%d writes checked in %v, %d acts: %d pages replicated, %d migrated, %d collapsed, %d faults", rounds*writesPerRound*len(c.cpus),
		time.Since(start).Round(time.Millisecond), acts.Load(), n.Replicated, n.Migrated, n.Collapsed, n.Faults())
	if n.Replicated == 0 || n.CollapseFaults == 0 {
		t.Errorf("that showed nothing: %+v", n)
	}
}

func newCoherence(t *testing.T, topology *numa.Topology) *coherence {
	t.Helper()
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		t.Fatal(err)
	}
	space, err := memory.Open(memory.Options{
		Name: "coherence", RAM: []memory.Range{{Size: rigMemory}},
		Topology: topology, Nodes: topology.Nodes(), Tracked: true,
	})
	if err != nil {
		t.Fatal(errors.Join(err, sys.Close()))
	}
	c := &coherence{t: t, space: space, ended: make(chan int, memory.MaxViews)}
	var vms []*kvm.VM
	t.Cleanup(func() {
		var errs []error
		for _, v := range c.cpus {
			errs = append(errs, v.Close())
		}
		for _, vm := range vms {
			errs = append(errs, vm.Close())
		}
		errs = append(errs, space.Close(), sys.Close())
		if err := errors.Join(errs...); err != nil {
			t.Errorf("taking it down: %v", err)
		}
	})
	supported, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	for i := range topology.Nodes() {
		vm, err := sys.CreateVM()
		if err != nil {
			t.Fatal(err)
		}
		vms = append(vms, vm)
		for _, err := range []error{
			vm.SplitIRQChip(),
			vm.SetRealModeArea(rigRealMode),
			vm.SetMemory(0, 0, space.View(i).Bytes()),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		body, err := vm.CreateVCPU(0)
		if err != nil {
			t.Fatal(err)
		}
		v := vcpu.New(i, body, c)
		c.cpus = append(c.cpus, v)
		if err := v.Reset(vcpu.CPUID(supported, 0, 1)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// slots is how many words a page has for CPUs and the device, a power of two.
func (c *coherence) slots() int {
	n := 2
	for n <= len(c.cpus) {
		n *= 2
	}
	return n
}

// boot makes CPU id ready to run so many rounds.
func (c *coherence) boot(id, rounds int) {
	c.t.Helper()
	params := memory.GPA(coherentParams + id*arena.PageSize)
	notes := coherentNotes + id*arena.PageSize*4
	var b []byte
	for _, n := range []int{id, c.slots() - 1, coherentPages - 1, coherentFirst, notes, rounds, rand.Int() | 1} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	if err := c.space.WriteAt(b, params); err != nil {
		c.t.Fatal(err)
	}
	entry := loadRig(c.t, c.space, 1, "coherence", "")
	entry.RSI = uint64(params)
	if err := c.cpus[id].SetBoot(entry); err != nil {
		c.t.Fatal(err)
	}
}

// PIO and MMIO make it its vCPUs' Handler.
func (c *coherence) PIO(port uint16, write bool, p []byte) error {
	if port == sparePort && write {
		c.ended <- int(p[0])
	}
	return nil
}

func (c *coherence) MMIO(addr uint64, write bool, p []byte) error {
	return fmt.Errorf("access to RAM at %#x came out as MMIO", addr)
}

// watch returns when all guests have ended, and stops them.
func (c *coherence) watch(most time.Duration) {
	c.t.Helper()
	give := time.After(most)
	what := map[int]string{
		2: "its own word A was stale", 3: "its own word B was stale",
		4: "another's word went back", 5: "another's words came out of order",
	}
	fault := make(chan vcpu.End, len(c.cpus))
	for _, v := range c.cpus {
		go func() { <-v.Done(); fault <- v.End() }()
	}
	for range c.cpus {
		select {
		case code := <-c.ended:
			if code != 1 {
				c.t.Errorf("a guest found that %s (%d)", what[code], code)
			}
		case e := <-fault:
			c.t.Errorf("a guest ended: %v %s", e.Cause, e.Text)
		case <-give:
			c.t.Errorf("guests still ran after %v", most)
		}
	}
	for _, v := range c.cpus {
		v.Stop()
	}
	for _, v := range c.cpus {
		<-v.Done()
	}
}

// device counts up its words of random pages, as a guest does.
func (c *coherence) device(stop chan struct{}) {
	var count [coherentPages]uint64
	word := func(p int, off int) memory.GPA {
		return memory.GPA(coherentFirst + p*arena.PageSize + coherentWords + 16*len(c.cpus) + off)
	}
	for {
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Microsecond):
		}
		p := rand.IntN(coherentPages)
		count[p]++
		b := binary.LittleEndian.AppendUint64(nil, count[p])
		if err := errors.Join(c.space.WriteAt(b, word(p, 0)), c.space.WriteAt(b, word(p^1, 8))); err != nil {
			c.t.Error(err)
			return
		}
	}
}

// policy does at random whatever can be done to pages.
func (c *coherence) policy(stop chan struct{}, nodes []numa.Node, acts *atomic.Int64) {
	for ; ; acts.Add(1) {
		select {
		case <-stop:
			return
		case <-time.After(200 * time.Microsecond): // the guests want the CPUs, too
		}
		first, count := memory.PPN(coherentFirst/arena.PageSize), coherentPages
		if rand.IntN(50) == 0 { // the guests' code, tables and notes
			first, count = 0, rigMemory/arena.PageSize
		}
		p := first + memory.PPN(rand.IntN(count))
		n := 1 + rand.IntN(count-int(p-first))
		on := nodes[rand.IntN(len(nodes))]
		var err error
		switch rand.IntN(12) {
		case 0:
			_, err = c.space.Migrate(p, n, on)
		case 1:
			err = c.space.Watch(p, n, on)
		case 2:
			err = c.space.Guard(p, n)
		case 3:
			err = c.space.Unguard(p, n)
		case 4:
			_, err = c.space.Collapse(p, n)
		case 5:
			c.space.Reclaim(n)
		default:
			_, err = c.space.Replicate(p, n, on)
		}
		if err != nil && !errors.Is(err, memory.ErrPinned) && !errors.Is(err, memory.ErrBusy) {
			c.t.Error(err)
			return
		}
	}
}
