package blk

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/numa"
	"disco/virtio/virtiotest"
)

// seen is what a guest's CPUs on the node of View v find at a. Reading through a
// View is left to the kernel: see package arena.
func seen(t *testing.T, v *memory.View, a memory.GPA, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	local := []unix.Iovec{{Base: &p[0], Len: uint64(n)}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&v.Bytes()[0])) + uintptr(a), Len: n}}
	if got, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0); err != nil || got != n {
		t.Fatalf("%d of %d bytes at %#x: %v", got, n, uint64(a), err)
	}
	return p
}

// TestHostReadIntoReplicas has a disk read into pages that every node has a copy of:
// no node may go on seeing what was there before.
func TestHostReadIntoReplicas(t *testing.T) {
	host, err := numa.Read(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	topology, err := host.Fake(3)
	if err != nil {
		t.Fatal(err)
	}
	nodes := topology.Nodes()
	space, err := memory.Open(memory.Options{
		Name: "replicas", RAM: []memory.Range{{Start: 0, Size: 16 << 20}}, Topology: topology, Nodes: nodes, Tracked: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	}()
	const pages, at = 16, memory.GPA(8 << 20)
	const size = pages * 4096
	f := &fake{data: make([]byte, 64*size)}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range f.data {
		f.data[i] = byte(random.Uint32())
	}
	_, d := start(t, f, virtiotest.Options{Space: space})
	defer d.Stop()
	r := d.Rings[0]
	head, status := d.Alloc(headerSize), d.Alloc(1)

	for round := range 40 {
		stale := bytes.Repeat([]byte{byte(round)}, size)
		d.Put(at, stale)
		for _, n := range nodes {
			if _, err := space.Replicate(memory.PPN(at/4096), pages, n); err != nil {
				t.Fatal(err)
			}
		}
		for i := range nodes {
			if got := seen(t, space.View(i), at, size); !bytes.Equal(got, stale) {
				t.Fatalf("round %d: node %d has no copy of what was written", round, i)
			}
		}
		if space.Replicas(memory.PPN(at/4096)) == 0 {
			t.Fatalf("round %d: nothing was replicated", round)
		}
		// A part of the pages, at any sector, in two pieces.
		first := random.IntN(size/SectorSize - 2)
		count := 2 + random.IntN(size/SectorSize-first-1)
		cut := (1 + random.IntN(count-1)) * SectorSize
		sector := random.IntN(len(f.data)/SectorSize - count)
		to, n := at+memory.GPA(first*SectorSize), count*SectorSize
		d.Put(head, header(typeIn, uint64(sector)))
		r.AddRaw(
			virtiotest.Descriptor{Addr: head, Len: headerSize},
			virtiotest.Descriptor{Addr: to, Len: uint32(cut), Flags: virtiotest.Write},
			virtiotest.Descriptor{Addr: to + memory.GPA(cut), Len: uint32(n - cut), Flags: virtiotest.Write},
			virtiotest.Descriptor{Addr: status, Len: 1, Flags: virtiotest.Write})
		r.Kick()
		r.Wait()
		if s := d.Get(status, 1)[0]; s != statusOK {
			t.Fatalf("round %d: status %d", round, s)
		}
		want := bytes.Clone(stale)
		copy(want[first*SectorSize:], f.data[sector*SectorSize:][:n])
		sum := sha256.Sum256(want)
		for i := range nodes {
			if sha256.Sum256(seen(t, space.View(i), at, size)) != sum {
				t.Fatalf("round %d: node %d does not see what was read", round, i)
			}
		}
		if sha256.Sum256(d.Get(at, size)) != sum {
			t.Fatalf("round %d: the monitor does not see what was read", round)
		}
	}
}
