package balance

import (
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/numa"
)

// real is a tracked Space on fake nodes of this machine, and a thread on each
// that uses it through its View by system calls, as guests' accesses cannot be
// made from Go.
type real struct {
	t     *testing.T
	space *memory.Space
	nodes []numa.Node
	d     *Daemon
}

func newReal(t *testing.T, n, pages int, cfg Config) *real {
	t.Helper()
	host, err := numa.Read(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	top, err := host.Fake(n)
	if err != nil {
		t.Fatal(err)
	}
	s, err := memory.Open(memory.Options{Name: "balance", RAM: []memory.Range{{Size: uint64(pages) * pageSize}},
		Topology: top, Nodes: top.Nodes(), Tracked: true})
	if err != nil {
		t.Fatal(err)
	}
	g := &real{t: t, space: s, nodes: top.Nodes()}
	t.Cleanup(func() {
		g.d.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if g.d, err = New(cfg, s, top, top.Nodes(), nil); err != nil {
		t.Fatal(err)
	}
	for p := range memory.PPN(pages) {
		g.access(p, 0, true)
	}
	return g
}

func (g *real) access(p memory.PPN, v int, write bool) {
	var b [8]byte
	call := uintptr(unix.SYS_PROCESS_VM_READV)
	if write {
		call = unix.SYS_PROCESS_VM_WRITEV
	}
	local := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	remote := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(unsafe.SliceData(g.space.View(v).Bytes()))) + uintptr(p)*pageSize, Len: len(b)}
	if _, _, errno := unix.Syscall6(call, uintptr(os.Getpid()), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0); errno != 0 {
		g.t.Errorf("access to page %d from node %d: %v", p, v, errno)
	}
}

// run lets the threads work for a time.
func (g *real) run(d time.Duration, next pattern) {
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for v := range g.nodes {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(v), 2))
			for time.Now().Before(end) {
				for range 16 {
					p, write := next(r, v, 0)
					g.access(p, v, write)
				}
				time.Sleep(100 * time.Microsecond) // two CPUs must do for all
			}
		})
	}
	wg.Wait()
}

// share is the part of many accesses that would be local now.
func (g *real) share(next pattern) float64 {
	var on [1]numa.Node
	local, all := 0, 0
	r := rand.New(rand.NewPCG(7, 7))
	for range 5000 {
		for v, n := range g.nodes {
			p, _ := next(r, v, 0)
			if err := g.space.Locate(on[:], p); err != nil {
				g.t.Fatal(err)
			}
			if on[0] == n || g.space.Replicas(p)>>v&1 != 0 {
				local++
			}
			all++
		}
	}
	return float64(local) / float64(all)
}

// TestHostSettles has the daemon work on real memory, for some seconds.
func TestHostSettles(t *testing.T) {
	for _, w := range workloads[:4] {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			g := newReal(t, 2, w.pages(2), Config{Policy: Full})
			next := w.next(2)
			before := g.share(next)
			g.d.Start()
			g.run(6*time.Second, next)
			for range 4 {
				if g.share(next) < w.local {
					g.run(4*time.Second, next) // a busy machine
				}
			}
			s := g.d.Stats()
			g.run(3*time.Second, next)
			after, e := g.share(next), g.d.Stats()
			t.Logf("local %.3f, then %.3f; %+v; %+v", before, after, e, g.space.Stats())
			if before > 0.6 {
				t.Errorf("%.3f of accesses are local untreated", before)
			}
			if after < w.local || after < before-0.01 {
				t.Errorf("%.3f of accesses are local, want %.2f", after, w.local)
			}
			if n := float64(e.Faults-s.Faults) / 3 / 2; n > 50 {
				t.Errorf("%.1f faults per second and node when settled", n)
			}
			if w.name == "writeshared" && e.Replicated > s.Replicated {
				t.Errorf("%d pages were replicated when settled", e.Replicated-s.Replicated)
			}
		})
	}
}
