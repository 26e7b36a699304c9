package locality

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/numa"
)

const (
	// chaseSize is more than CPUs' caches hold, in bytes.
	chaseSize  = 256 << 20
	chaseLine  = 64
	chaseLoads = 4 << 20
)

// Latencies are measured ones, in ns, by node.
type Latencies map[[2]numa.Node]float64

// Of is the Latency; 0 for what was not measured.
func (l Latencies) Of(from, to numa.Node) float64 { return l[[2]numa.Node{from, to}] }

// String is the range of local and of remote ones, for people.
func (l Latencies) String() string {
	low, high := [2]float64{math.Inf(1), math.Inf(1)}, [2]float64{}
	for pair, ns := range l {
		i := 0
		if pair[0] != pair[1] {
			i = 1
		}
		low[i], high[i] = min(low[i], ns), max(high[i], ns)
	}
	span := func(i int) string {
		if s := fmt.Sprintf("%.0f", low[i]); s != fmt.Sprintf("%.0f", high[i]) {
			return fmt.Sprintf("%s to %.0f", s, high[i])
		}
		return fmt.Sprintf("%.0f", high[i])
	}
	return span(0) + " ns local, " + span(1) + " ns remote"
}

// Measure times dependent loads from a CPU of each node to memory of each, spread over
// 256 MiB, in ns: what a cache miss costs, and a TLB miss of a 4 KiB page too. It needs
// real nodes, each with CPUs and that much memory to spare, and takes some
// seconds.
func Measure(t *numa.Topology, nodes []numa.Node) (Latencies, error) {
	if !t.Real() {
		return nil, errors.New("the nodes are not real")
	}
	l := Latencies{}
	for _, to := range nodes {
		chain, err := newChain(to)
		if err != nil {
			return nil, fmt.Errorf("memory of node %d: %w", to, err)
		}
		for _, from := range nodes {
			ns, err := chain.time(t.CPUs(from))
			if err != nil {
				unix.Munmap(chain)
				return nil, fmt.Errorf("CPUs of node %d: %w", from, err)
			}
			l[[2]numa.Node{from, to}] = ns
		}
		if err := unix.Munmap(chain); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// chain is memory whose lines each hold the offset of another, all in one cycle.
type chain []byte

func newChain(n numa.Node) (chain, error) {
	b, err := unix.Mmap(-1, 0, chaseSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	var mask [16]uint64 // 1,024 nodes
	mask[n/64] = 1 << (n % 64)
	_, _, errno := unix.Syscall6(unix.SYS_MBIND, uintptr(unsafe.Pointer(unsafe.SliceData(b))), chaseSize,
		unix.MPOL_BIND, uintptr(unsafe.Pointer(&mask)), uintptr(len(mask)*64), 0)
	if errno != 0 {
		unix.Munmap(b)
		return nil, fmt.Errorf("mbind: %w", errno)
	}
	lines := rand.New(rand.NewPCG(1, 1)).Perm(chaseSize / chaseLine)
	for i, line := range lines {
		next := lines[(i+1)%len(lines)]
		*(*uint64)(unsafe.Pointer(&b[line*chaseLine])) = uint64(next * chaseLine)
	}
	return b, nil
}

// time is what one load takes on one of the CPUs, in ns.
func (c chain) time(cpus []numa.CPU) (float64, error) {
	if len(cpus) == 0 {
		return 0, errors.New("there are none")
	}
	done := make(chan struct{})
	var ns float64
	var err error
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with its affinity.
		runtime.LockOSThread()
		var one unix.CPUSet
		one.Set(int(cpus[0]))
		if err = unix.SchedSetaffinity(0, &one); err != nil {
			return
		}
		at := c.follow(0, chaseLoads/4)
		began := time.Now()
		at = c.follow(at, chaseLoads)
		ns = float64(time.Since(began).Nanoseconds()) / chaseLoads
		runtime.KeepAlive(at)
	}()
	<-done
	return ns, err
}

//go:noinline
func (c chain) follow(at uint64, loads int) uint64 {
	base := unsafe.Pointer(unsafe.SliceData(c))
	for range loads {
		at = *(*uint64)(unsafe.Add(base, at))
	}
	return at
}
