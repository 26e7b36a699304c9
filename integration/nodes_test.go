package integration

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"disco/integration/guest"
	"disco/integration/lab"
	"disco/numa"
	"disco/numa/balance"
	"disco/vmm"
)

// The tests of guests on several nodes run in a lab with two, of one CPU each.

// brisk are thresholds that have the monitor look and move more often than it
// would, and eager far more than it should.
const brisk = "full,tick=50ms,window=100ms,guard=200ms,hold=500ms"
const eager = "full,tick=20ms,window=40ms,guard=40ms,hold=100ms,max-hold=200ms,max-moves=100,decay=1s,fault-rate=4000,sample-share=0.5"

// TestLabNodes runs a stock kernel with a KVM VM on each of two nodes while its
// pages move: under load, with devices, over a restart, to a power-off.
func TestLabNodes(t *testing.T) {
	const size = 4 << 20
	report := filepath.Join(t.TempDir(), "report.json")
	mark, data := testDisk(t, "mark", 1<<20), testDisk(t, "data", size)
	before := pageTables(t)
	l := bootGuest(t, "cpus,net,clock=4,load=4,disk-read=vdb,reboot-once=vda,memory=40,disk=vdb",
		"--cpus", "2", "--memory", "512M", "--disk", mark, "--disk", data,
		"--placement", "nodes=0,1", "--numa", brisk, "--report", report)
	l.says(guest.Marker)
	during := pageTables(t)
	l.ends(0)
	l.did("cpus", "net", "clock", "load", "disk-read", "reboot-once", "memory", "disk")
	holds(t, data, size, guest.PatternGuest)
	for n := range before {
		if during[n] <= before[n] {
			t.Errorf("second-level page tables on node %d: %d KiB before and %d KiB with the guest", n, before[n], during[n])
		}
	}
	if got := l.number("clock-exchanges"); got < 100 {
		t.Errorf("%d timestamps were exchanged", got)
	}
	r := readReport(t, report)
	if r.NUMA == nil || !r.NUMA.Wide || !r.NUMA.Real || r.NUMA.Relayed == 0 || r.Reboots != 1 {
		t.Fatalf("report %+v", r)
	}
	if a := r.NUMA.Acts; a.Migrated == 0 || a.Faults() == 0 {
		t.Errorf("nothing was moved: %+v", a)
	}
	t.Logf("%+v", *r.NUMA)
}

// TestLabNodesStress has stress-ng check what it writes to memory on two nodes while
// pages are moved and copied: for DISCO_STRESS seconds on four vCPUs, all the time,
// or else for a moment. It is not of the lab ring: make soak-nodes runs it.
func TestLabNodesStress(t *testing.T) {
	seconds, cpus, policy := os.Getenv("DISCO_STRESS"), "4", eager
	if seconds == "" {
		seconds, cpus, policy = "8", "2", brisk
	}
	limit, err := time.ParseDuration(seconds + "s")
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "report.json")
	l := bootGuest(t, "stress="+seconds, "--cpus", cpus, "--memory", "768M", "--net", "none", "--initrd", inTree(t, "DISCO_STRESS_INITRD", "build/guest/stress.img"),
		"--placement", "nodes=0,1", "--numa", policy, "--report", report)
	// Emulated CPUs that share one are slow to boot, and stress-ng finishes what it
	// has begun.
	l.endsWithin(0, 3*limit+2*step)
	l.did("stress")
	n := readReport(t, report).NUMA
	if n == nil || n.Acts.Migrated == 0 {
		t.Fatalf("nothing moved: %+v", n)
	}
	t.Logf("%s s: %+v", seconds, n.Acts)
}

// TestLabNodesStill: with the policy off nothing is sampled and nothing moves, and a
// guest that fits on a node has one KVM VM there.
func TestLabNodesStill(t *testing.T) {
	report := filepath.Join(t.TempDir(), "report.json")
	l := bootGuest(t, "cpus,load=2", "--cpus", "2", "--memory", "256M", "--net", "none",
		"--placement", "interleave", "--numa", "off", "--report", report)
	l.ends(0)
	l.did("cpus", "load")
	n := readReport(t, report).NUMA
	if n == nil || !n.Wide || n.Acts.Faults() != 0 || n.Acts.Migrated != 0 || n.Balance != nil {
		t.Errorf("the policy is off: %+v", n)
	}
	if a, b := float64(n.Memory[0].Pages), float64(n.Memory[1].Pages); a/b < 0.8 || a/b > 1.25 {
		t.Errorf("interleaved memory has %v pages on node 0 and %v on node 1", a, b)
	}

	l = bootGuest(t, "cpus", "--cpus", "1", "--memory", "256M", "--net", "none", "--report", report)
	l.ends(0)
	l.did("cpus")
	n = readReport(t, report).NUMA
	if n == nil || n.Wide || len(n.Nodes) != 1 || n.Relayed != 0 || n.Acts.Faults() != 0 || n.Balance != nil {
		t.Errorf("the guest fits on one node: %+v", n)
	}
}

// TestLabNodesKilled kills the monitor while it moves pages: nothing of it is left,
// and the next guest runs.
func TestLabNodesKilled(t *testing.T) {
	l := bootGuest(t, "load=60", "--cpus", "2", "--memory", "256M", "--net", "none", "--placement", "nodes=0,1", "--numa", brisk)
	l.says(guest.Marker)
	time.Sleep(2 * time.Second)
	if err := l.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-l.done
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		tables := pageTables(t)
		if sum(tables) < 512 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("second-level page tables are left: %v KiB", tables)
		}
	}
	l = bootGuest(t, "cpus", "--cpus", "2", "--memory", "256M", "--net", "none", "--placement", "nodes=0,1")
	l.ends(0)
	l.did("cpus")
}

func sum(of []uint64) (n uint64) {
	for _, x := range of {
		n += x
	}
	return n
}

// pageTables is what each node of the host spends on second-level page tables, in
// KiB.
func pageTables(t *testing.T) []uint64 {
	t.Helper()
	files, err := filepath.Glob("/sys/devices/system/node/node[0-9]/meminfo")
	if err != nil || len(files) < 2 {
		t.Fatalf("this test needs a lab with two nodes: run it by make test-lab (%v)", err)
	}
	sizes := make([]uint64, len(files))
	for i, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		_, after, ok := strings.Cut(string(b), "SecPageTables:")
		if !ok {
			t.Fatalf("%s has no SecPageTables", f)
		}
		for _, c := range strings.Fields(after)[0] {
			sizes[i] = sizes[i]*10 + uint64(c-'0')
		}
	}
	return sizes
}

// inProcess builds a guest of this process's own, for what the command line cannot
// ask for yet, and runs it until it ends.
func inProcess(t *testing.T, tasks string, cpus int, n vmm.NUMA) (g *vmm.Guest, console *screen, ended <-chan vmm.Outcome) {
	t.Helper()
	if os.Getenv(lab.InLab) == "" {
		t.Fatal("this test needs the lab: run it by make test-lab")
	}
	console = &screen{}
	g, err := vmm.New(vmm.Config{
		Kernel: guestKernel(t), Initrd: guestInitrd(t), Cmdline: "nohz=off quiet loglevel=3 disco.task=" + tasks,
		CPUs: cpus, Memory: 256 << 20, NUMA: n, Stdout: console, Stdin: io.LimitReader(nil, 0), Timeout: 2 * step,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	done := make(chan vmm.Outcome, 1)
	go func() {
		o, err := g.Run(context.Background())
		if err != nil {
			t.Error(err)
		}
		done <- o
	}()
	return g, console, done
}

func waitFor(t *testing.T, s *screen, text string, ended <-chan vmm.Outcome) {
	t.Helper()
	for end := time.Now().Add(step); !contains(s, text); time.Sleep(20 * time.Millisecond) {
		select {
		case o := <-ended:
			t.Fatalf("the guest ended (%v) and did not say %q:\n%s", o, text, tail(s.String(), 20))
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("the guest does not say %q:\n%s", text, tail(s.String(), 20))
		}
	}
}

// TestLabNodesMoveVCPU has vCPUs change their nodes while Linux runs on them.
func TestLabNodesMoveVCPU(t *testing.T) {
	b := balance.Default()
	g, console, ended := inProcess(t, "cpus,load=12,clock=2", 2, vmm.NUMA{
		Placement: vmm.Placement{Kind: vmm.PlaceNodes, Nodes: []numa.Node{0, 1}}, Balance: b})
	waitFor(t, console, "task=cpus", ended)
	moves := 0
	for !contains(console, "task=load") {
		id := moves % 2
		p, ok := g.Placed()
		if !ok {
			break
		}
		if err := g.MoveVCPU(id, 1-p.Homes[id]); err != nil {
			t.Fatalf("move %d: %v", moves, err)
		}
		moves++
		time.Sleep(100 * time.Millisecond)
	}
	o := <-ended
	if o.Kind != vmm.PoweredOff || !contains(console, "task=load result=ok") || !contains(console, "task=clock result=ok") {
		t.Errorf("after %d moves: %v\n%s", moves, o, tail(console.String(), 30))
	}
	if moves < 10 {
		t.Errorf("only %d moves", moves)
	}
	t.Logf("%d moves", moves)
}

// TestLabNodesMoveGuest brings a guest of one KVM VM to the other node.
func TestLabNodesMoveGuest(t *testing.T) {
	g, console, ended := inProcess(t, "cpus,memory=50,wait-button", 1, vmm.NUMA{
		Placement: vmm.Placement{Kind: vmm.PlaceNodes, Nodes: []numa.Node{0}}})
	waitFor(t, console, "waiting=button", ended)
	var last uint64
	if err := g.Move(context.Background(), 1, func(done, of uint64) { last = done * 100 / of }); err != nil {
		t.Fatal(err)
	}
	s, _ := g.NUMAStats()
	if last != 100 || len(s.Nodes) != 1 || s.Nodes[0] != 1 || s.Homes[0] != 1 {
		t.Errorf("moved %d %%: %+v", last, s)
	}
	if left, all := s.Memory[0].Pages, s.Memory[0].Pages+s.Memory[1].Pages; left*50 > all {
		t.Errorf("%d of %d pages stayed on node 0", left, all)
	}
	if err := g.Move(context.Background(), 7, nil); err == nil {
		t.Error("it moved to a node that is not there")
	}
	g.PressPowerButton()
	if o := <-ended; o.Kind != vmm.PoweredOff {
		t.Errorf("%v\n%s", o, tail(console.String(), 20))
	}
}
