package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/memory/arena"
	"disco/numa"
)

const pageSize = arena.PageSize

// realNodes is this machine, which must have several nodes.
func realNodes(t *testing.T) *numa.Topology {
	t.Helper()
	topology, err := numa.Read(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	if len(topology.Nodes()) < 2 {
		t.Fatal("the lab has one node")
	}
	return topology
}

// onNode runs f on a thread of its own on a CPU of node n.
func onNode(t *testing.T, topology *numa.Topology, n numa.Node, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		var set unix.CPUSet
		for _, c := range topology.CPUs(n) {
			set.Set(int(c))
		}
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// guestReads reads as a guest does: package memory's tests say why so.
func guestReads(v *memory.View, p []byte, a memory.GPA) error {
	local := []unix.Iovec{{Base: &p[0], Len: uint64(len(p))}}
	base := uintptr(unsafe.Pointer(unsafe.SliceData(v.Bytes())))
	remote := []unix.RemoteIovec{{Base: base + uintptr(a), Len: len(p)}}
	n, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0)
	if err != nil || n != len(p) {
		return fmt.Errorf("read %d bytes of guest memory at %#x: %d, %w", len(p), uint64(a), n, err)
	}
	return nil
}

func openSpace(t *testing.T, o memory.Options) *memory.Space {
	t.Helper()
	o.Name = "nodes"
	s, err := memory.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func located(t *testing.T, s *memory.Space, p memory.PPN, want ...numa.Node) {
	t.Helper()
	got := make([]numa.Node, len(want))
	if err := s.Locate(got, p); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("pages from %d are on nodes %v, want %v", p, got, want)
	}
}

// TestLabNodesPlacement makes pages on real nodes in each way that there is.
func TestLabNodesPlacement(t *testing.T) {
	topology := realNodes(t)
	a, b := topology.Nodes()[0], topology.Nodes()[1]
	ram := []memory.Range{{Size: 4 << 20}}
	write := func(s *memory.Space, p memory.PPN, on numa.Node) {
		t.Helper()
		onNode(t, topology, on, func() error { return s.WriteAt(make([]byte, 4*pageSize), memory.GPA(p)*pageSize) })
	}

	s := openSpace(t, memory.Options{RAM: ram, Topology: topology, Nodes: []numa.Node{a, b}, Huge: memory.HugeOff})
	write(s, 0, a)
	write(s, 4, b)
	located(t, s, 0, a, a, a, a, b, b, b, b, -1)

	s = openSpace(t, memory.Options{RAM: ram, Topology: topology, Nodes: []numa.Node{a, b}, Place: memory.Interleaved, Huge: memory.HugeOff})
	write(s, 0, b)
	on := make([]numa.Node, 4)
	if err := s.Locate(on, 0); err != nil || on[0] == on[1] || on[0] != on[2] || on[1] != on[3] {
		t.Errorf("interleaved: %v, %v", on, err)
	}

	s = openSpace(t, memory.Options{RAM: ram, Topology: topology, Nodes: []numa.Node{b}, Place: memory.Bound, Huge: memory.HugeOff})
	write(s, 0, a)
	if err := s.SetNode(a); err != nil {
		t.Fatal(err)
	}
	write(s, 4, b)
	located(t, s, 0, b, b, b, b, a, a, a, a)
	if done, err := s.Migrate(0, 1024, a); err != nil || done != 4 {
		t.Errorf("%d pages of a thin guest moved, %v", done, err)
	}
	located(t, s, 0, a, a, a, a)
}

// TestLabNodesMoveAndCopy moves pages between real nodes in every state, small and
// huge, and looks where they and their copies are and what they hold.
func TestLabNodesMoveAndCopy(t *testing.T) {
	topology := realNodes(t)
	a, b := topology.Nodes()[0], topology.Nodes()[1]
	for _, huge := range []memory.Huge{memory.HugeOff, memory.HugeTHP} {
		s := openSpace(t, memory.Options{
			RAM: []memory.Range{{Size: 8 << 20}}, Topology: topology, Nodes: []numa.Node{a, b}, Tracked: true, Huge: huge,
		})
		data := bytes.Repeat([]byte("disco!"), 4<<20/6)
		onNode(t, topology, a, func() error { return s.WriteAt(data, 0) })
		same := func() {
			t.Helper()
			got := make([]byte, len(data))
			for i := range 2 {
				if err := guestReads(s.View(i), got, 0); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("View %d has other bytes (%v)", i, err)
				}
			}
		}
		// The kernel leaves pages that it holds itself just now; they move when it is
		// asked again.
		move := func(p memory.PPN, n int, to numa.Node) {
			t.Helper()
			for try := 0; ; try++ {
				_, err := s.Migrate(p, n, to)
				if err != nil && !errors.Is(err, memory.ErrBusy) {
					t.Fatal(err)
				}
				on := make([]numa.Node, n)
				if err := s.Locate(on, p); err != nil {
					t.Fatal(err)
				}
				if !slices.ContainsFunc(on, func(n numa.Node) bool { return n != to }) {
					return
				}
				if try == 10 {
					t.Fatalf("pages stay where they are: %v", on)
				}
			}
		}
		same()
		move(0, 1024, b)
		same()
		if err := s.Guard(100, 20); err != nil {
			t.Fatal(err)
		}
		if done, err := s.Replicate(110, 20, a); err != nil || done != 20 {
			t.Fatalf("%d replicated, %v", done, err)
		}
		move(0, 512, a)
		same()
		states := make([]memory.State, 1)
		if err := s.States(states, 120); err != nil || states[0] != memory.Replicated {
			t.Errorf("a page that migrated is %v, %v", states[0], err)
		}
		data[120*pageSize] = 'D'
		if err := s.WriteAt([]byte("D"), 120*pageSize); err != nil {
			t.Fatal(err)
		}
		same()
		if n := s.Stats(); n.VMAs == 0 || n.Replicas[0] != 19 {
			t.Errorf("%+v", n)
		}
	}
}

// TestLabNodesFull fills a node with something else: the guest gets no copy there
// and keeps its pages, and nobody is killed.
func TestLabNodesFull(t *testing.T) {
	topology := realNodes(t)
	a, b := topology.Nodes()[0], topology.Nodes()[1]
	s := openSpace(t, memory.Options{
		RAM: []memory.Range{{Size: 64 << 20}}, Topology: topology, Nodes: []numa.Node{a, b}, Tracked: true, Huge: memory.HugeOff,
	})
	onNode(t, topology, a, func() error { return s.WriteAt(bytes.Repeat([]byte{7}, 64<<20), 0) })

	ballast, err := arena.New("ballast", 8<<30, arena.HugeOff)
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	if err := ballast.Place(arena.Preferred, int(b)); err != nil {
		t.Fatal(err)
	}
	var at [arena.Batch]int
	spilt := 0
	for p := uint64(0); spilt < arena.Batch; p += arena.Batch {
		part := ballast.Bytes()[p*pageSize : (p+arena.Batch)*pageSize]
		for i := 0; i < len(part); i += pageSize {
			part[i] = 1
		}
		if err := ballast.Locate(at[:], p); err != nil {
			t.Fatal(err)
		}
		for _, n := range at {
			if n != int(b) {
				spilt++
			}
		}
	}

	_, err = s.Replicate(0, 8192, b)
	if !errors.Is(err, memory.ErrNodeFull) {
		t.Errorf("replicated on a full node: %v", err)
	}
	// For what moves, the kernel makes room if there is anything to give up.
	done, err := s.Migrate(8192, 8192, b)
	if !errors.Is(err, memory.ErrNodeFull) && !errors.Is(err, memory.ErrBusy) && (err != nil || done == 0) {
		t.Errorf("%d pages migrated to a full node: %v", done, err)
	}
	got, want := make([]byte, 1<<20), bytes.Repeat([]byte{7}, 1<<20)
	for i := range 2 {
		for off := memory.GPA(0); off < 64<<20; off += 1 << 20 {
			if err := guestReads(s.View(i), got, off); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("View %d has other bytes at %#x (%v)", i, uint64(off), err)
			}
		}
	}
	t.Logf("%+v", s.Stats())
}
