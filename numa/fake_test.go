package numa

import (
	"slices"
	"strings"
	"testing"
)

func TestFake(t *testing.T) {
	tests := []struct {
		machine string
		n       int
		want    string
	}{
		{"one", 1, `1 fake node; node 0: CPUs 0-7, 16384 MiB
real false
node 0: backing 0 true, 9437184000 of 17179869184 bytes free, 8 CPUs, nearest [0]
`},
		{"one", 3, `3 fake nodes; node 0: CPUs 0,3,6, 5461 MiB, distances 10 20 20; node 1: CPUs 1,4,7, 5461 MiB, distances 20 10 20; node 2: CPUs 2,5, 5461 MiB, distances 20 20 10
real false
node 0: backing 0 true, 3145728000 of 5726623061 bytes free, 3 CPUs, nearest [0 1 2]
node 1: backing 0 true, 3145728000 of 5726623061 bytes free, 3 CPUs, nearest [1 0 2]
node 2: backing 0 true, 3145728000 of 5726623061 bytes free, 2 CPUs, nearest [2 0 1]
`},
		{"no-numa", 2, `2 fake nodes; node 0: CPUs 0,2, 2048 MiB, distances 10 20; node 1: CPUs 1,3, 2048 MiB, distances 20 10
real false
node 0: backing 0 false, 536870912 of 2147483648 bytes free, 2 CPUs, nearest [0 1]
node 1: backing 0 false, 536870912 of 2147483648 bytes free, 2 CPUs, nearest [1 0]
`},
		// Its node 0 has no CPUs.
		{"sparse", 2, `2 fake nodes; node 0: CPUs 8,10,12,14, 4096 MiB, distances 10 20; node 1: CPUs 9,11,13,15, 4096 MiB, distances 20 10
real false
node 0: backing 8 true, 3145728000 of 4294967296 bytes free, 4 CPUs, nearest [0 1]
node 1: backing 8 true, 3145728000 of 4294967296 bytes free, 4 CPUs, nearest [1 0]
`},
	}
	for _, tt := range tests {
		f, err := machine(t, tt.machine).Fake(tt.n)
		if err != nil {
			t.Errorf("%d of %s: %v", tt.n, tt.machine, err)
		} else if got := describe(f); got != tt.want {
			t.Errorf("%d of %s: got\n%swant\n%s", tt.n, tt.machine, got, tt.want)
		}
	}
}

func TestFakeSharesCPUs(t *testing.T) {
	f, err := machine(t, "two").Fake(8)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Nodes() {
		if got := f.CPUs(n); !slices.Equal(got, []CPU{0, 1}) {
			t.Errorf("node %d: got CPUs %v", n, got)
		}
	}
	if n, ok := f.NodeOf(1); n != 0 || !ok {
		t.Errorf("CPU 1: got node %d, %v", n, ok)
	}
	if n, ok := f.NodeOf(2); ok {
		t.Errorf("CPU 2, which no fake node has: got node %d", n)
	}
}

func TestFakeReadMemory(t *testing.T) {
	for _, tt := range []struct {
		machine string
		total   uint64
	}{{"two", 1536 << 20}, {"no-numa", 4 << 30}} {
		root, _ := readTree(t, "testdata/"+tt.machine+".txt")
		topology, err := Read(root)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // a part, and a part of it
			if topology, err = topology.Fake(4); err != nil {
				t.Fatal(err)
			}
			tt.total /= 4
			if m, err := topology.ReadMemory(root, 3); err != nil || m != topology.Memory(3) || m.Total != tt.total {
				t.Errorf("%s: got %+v, %v, want %d in all", tt.machine, m, err, tt.total)
			}
		}
	}
}

func TestFakeRefused(t *testing.T) {
	one := machine(t, "one")
	for _, n := range []int{-1, 0, MaxFake + 1} {
		if f, err := one.Fake(n); err == nil || !strings.Contains(err.Error(), "choose 1 to 64") {
			t.Errorf("%d: got %v, %v", n, f, err)
		}
	}
	apart := newTopology([]Node{0, 1}, []place{
		{cpus: []CPU{0}, distance: []int{10, 20}},
		{memory: Memory{Total: 1 << 30}, distance: []int{20, 10}},
	})
	if f, err := apart.Fake(2); err == nil || !strings.Contains(err.Error(), "both CPUs and memory") {
		t.Errorf("CPUs and memory apart: got %v, %v", f, err)
	}
}
