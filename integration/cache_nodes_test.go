package integration

import (
	"bytes"
	"errors"
	"testing"

	"disco/disk/cache"
)

// TestLabNodesCache: what is read from a node is on it, whoever's thread reads, and
// copies are where they are to be.
func TestLabNodesCache(t *testing.T) {
	topology := realNodes(t)
	a, b := int(topology.Nodes()[0]), int(topology.Nodes()[1])
	c, err := cache.New(cache.Config{Size: 16 << 20, Nodes: []int{a, b}})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	f, err := c.Open(bytes.NewReader(data), "nodes")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(f.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	on := func(r *cache.Reader, block, n, want int) {
		t.Helper()
		run, _ := r.Lend(int64(block)*cache.BlockSize, int64(n)*cache.BlockSize)
		if run.N != n {
			t.Fatalf("%d pages", run.N)
		}
		defer r.Return(run, 0)
		at := int(run.Page) * cache.BlockSize
		if !bytes.Equal(run.Arena.Bytes()[at:at+n*cache.BlockSize], data[at:at+n*cache.BlockSize]) {
			t.Errorf("block %d: other bytes", block)
		}
		nodes := make([]int, n)
		if err := run.Arena.Locate(nodes, run.Page); err != nil {
			t.Fatal(err)
		}
		for _, node := range nodes {
			if node != want {
				t.Fatalf("block %d: pages on nodes %v, want %d", block, nodes, want)
			}
		}
	}
	for range 2 {
		on(f.From(0, false), 0, 16, a)
		on(f.From(1, false), 128, 16, b)
		on(f.From(1, false), 0, 16, a) // from where it is
		on(f.From(0, false), 128, 16, b)
	}
	on(f.From(1, true), 0, 16, b)
	on(f.From(0, true), 128, 16, a)
	if n := c.Stats().Copies; n < 32 {
		t.Errorf("%d blocks were copied", n)
	}
}
