package numa

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

var update = flag.Bool("update", false, "write what is found into testdata")

// readTree reads a machine: a comment, then its files, each after a line with
// its name, like "-- proc/meminfo --". A backslash at the end of a line stands for
// the newline that is not there. The last file, "want", is what to find.
func readTree(t testing.TB, name string) (root fstest.MapFS, want string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	root = fstest.MapFS{}
	file := ""
	for line := range strings.Lines(string(b)) {
		if f, ok := strings.CutPrefix(line, "-- "); ok {
			file = strings.TrimSuffix(f, " --\n")
			root[file] = &fstest.MapFile{}
		} else if f := root[file]; f != nil {
			line = strings.TrimSuffix(line, "\\\n")
			f.Data = append(f.Data, line...)
		}
	}
	want = string(root["want"].Data)
	delete(root, "want")
	return root, want
}

func machine(t testing.TB, name string) *Topology {
	t.Helper()
	root, _ := readTree(t, filepath.Join("testdata", name+".txt"))
	topology, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

// describe is all that a Topology says.
func describe(t *Topology) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v\nreal %v\n", t, t.Real())
	for _, n := range t.Nodes() {
		behind, ok := t.Backing(n)
		m := t.Memory(n)
		fmt.Fprintf(&b, "node %d: backing %d %v, %d of %d bytes free, %d CPUs, nearest %v\n",
			n, behind, ok, m.Free, m.Total, len(t.CPUs(n)), t.Nearest(n))
	}
	return b.String()
}

func TestRead(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(names) < 30 {
		t.Fatalf("%d trees, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			root, want := readTree(t, name)
			topology, err := Read(root)
			bad := strings.HasPrefix(filepath.Base(name), "bad-")
			if bad != (err != nil) {
				t.Fatalf("got %v, %v", topology, err)
			}
			got := fmt.Sprintln(err)
			if !bad {
				got = describe(topology)
			}
			if *update {
				b, _ := os.ReadFile(name)
				head, _, _ := strings.Cut(string(b), "-- want --\n")
				if err := os.WriteFile(name, []byte(head+"-- want --\n"+got), 0o666); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			if bad && (strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "/")) {
				t.Errorf("%q: want one line that begins with the file", got)
			}
		})
	}
}

// TestNoSysfs has no file to keep in testdata.
func TestNoSysfs(t *testing.T) {
	if _, err := Read(fstest.MapFS{}); err == nil || !strings.HasPrefix(err.Error(), "/sys/devices/system/cpu/online: ") {
		t.Errorf("got %v", err)
	}
}

func TestReadHere(t *testing.T) {
	topology, err := Read(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range topology.Nodes() {
		for _, c := range topology.CPUs(n) {
			if home, ok := topology.NodeOf(c); !ok || home != n {
				t.Errorf("CPU %d of node %d is node %d's, %v", c, n, home, ok)
			}
		}
	}
	t.Log(topology)
}

func TestNodeOf(t *testing.T) {
	topology := machine(t, "offline-cpus")
	for c, want := range map[CPU]bool{-1: false, 0: true, 1: false, 2: true, 3: true, 4: false, 7: false, 1 << 20: false} {
		if n, ok := topology.NodeOf(c); ok != want || n != 0 {
			t.Errorf("CPU %d: got node %d, %v", c, n, ok)
		}
	}
	if n, ok := machine(t, "four").NodeOf(6); n != 2 || !ok {
		t.Errorf("CPU 6 of four: got node %d, %v", n, ok)
	}
}

func TestDistance(t *testing.T) {
	sparse := machine(t, "sparse")
	for _, tt := range []struct {
		a, b Node
		want int
	}{{0, 0, 10}, {0, 252, 40}, {8, 252, 20}, {252, 8, 20}, {252, 252, 10}} {
		if got := sparse.Distance(tt.a, tt.b); got != tt.want {
			t.Errorf("from %d to %d: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
	if asymmetric := machine(t, "asymmetric"); asymmetric.Distance(0, 1) != 30 || asymmetric.Distance(1, 0) != 20 {
		t.Error("rows and columns are mixed up")
	}
}

func TestUnknownNode(t *testing.T) {
	sparse := machine(t, "sparse")
	asks := map[string]func(Node){
		"CPUs":       func(n Node) { sparse.CPUs(n) },
		"Memory":     func(n Node) { sparse.Memory(n) },
		"Nearest":    func(n Node) { sparse.Nearest(n) },
		"Backing":    func(n Node) { sparse.Backing(n) },
		"from":       func(n Node) { sparse.Distance(n, 0) },
		"to":         func(n Node) { sparse.Distance(0, n) },
		"ReadMemory": func(n Node) { _, _ = sparse.ReadMemory(fstest.MapFS{}, n) },
	}
	for _, n := range []Node{-1, 1, 253, 1 << 40} {
		if sparse.Has(n) {
			t.Errorf("has node %d", n)
		}
		for name, ask := range asks {
			func() {
				defer func() {
					if got, want := fmt.Sprint(recover()), fmt.Sprintf("numa: no node %d among [0 8 252]", n); got != want {
						t.Errorf("%s: got %q, want %q", name, got, want)
					}
				}()
				ask(n)
			}()
		}
	}
	for _, n := range sparse.Nodes() {
		if !sparse.Has(n) {
			t.Errorf("has no node %d", n)
		}
	}
}

// TestAppend is what becomes of a caller who appends to what it was given.
func TestAppend(t *testing.T) {
	topology := machine(t, "four")
	before := describe(topology)
	for _, n := range topology.Nodes() {
		_ = append(topology.CPUs(n), -1)
		_ = append(topology.Nearest(n), -1)
	}
	_ = append(topology.Nodes(), -1)
	if after := describe(topology); after != before {
		t.Errorf("got\n%swant\n%s", after, before)
	}
}

func TestAllocs(t *testing.T) {
	topology := machine(t, "eight")
	sum := 0
	if n := testing.AllocsPerRun(100, func() {
		for _, a := range topology.Nodes() {
			for _, b := range topology.Nearest(a) {
				sum += topology.Distance(a, b)
			}
			for _, c := range topology.CPUs(a) {
				home, _ := topology.NodeOf(c)
				sum += int(home)
			}
			sum += int(topology.Memory(a).Free)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestReadMemory(t *testing.T) {
	const file = nodesDir + "/node1/meminfo"
	root, _ := readTree(t, "testdata/two.txt")
	topology, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	root[file] = &fstest.MapFile{Data: []byte("Node 1 MemTotal: 1572864 kB\nNode 1 MemFree: 8 kB\n" +
		"Node 1 Active(file): 40 kB\nNode 1 Inactive(file): 10 kB\nNode 1 Dirty: 20 kB\nNode 1 SReclaimable: 2 kB\n")}
	if m, err := topology.ReadMemory(root, 1); err != nil || m != (Memory{1536 << 20, 8 << 10, 24 << 10}) {
		t.Errorf("got %+v, %v", m, err)
	}
	if m := topology.Memory(1); m.Free != 1200<<20 {
		t.Errorf("a Topology changed: %+v", m)
	}
	delete(root, file)
	if m, err := topology.ReadMemory(root, 1); err == nil || !strings.HasPrefix(err.Error(), "/"+file+": ") || m != (Memory{}) {
		t.Errorf("got %+v, %v", m, err)
	}
}
