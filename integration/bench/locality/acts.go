package locality

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/numa"
)

// Cost is what one act of the monitor's takes, in µs.
type Cost struct {
	Act    string  `json:"act"`
	Single float64 `json:"single_us"` // for one page alone; 0: not timed
	InRun  float64 `json:"in_run_us"` // for each page of a run of 512
}

const (
	actRun     = 512 // pages: a block of 2 MiB
	actSingles = 256 // pages that are acted on one by one
	actRounds  = 5   // of which the quickest counts
)

// MeasureActs times what a Space does to pages on the first two of nodes, without
// a guest: accesses are this process's own, by process_vm_readv(2) on a View, so
// KVM's part, which drops the page from its tables, is missing.
func MeasureActs(t *numa.Topology, nodes []numa.Node) (costs []Cost, err error) {
	small, err := measureActs(t, nodes[:2], memory.HugeOff, (*acts).list)
	if err != nil {
		return nil, err
	}
	huge, err := measureActs(t, nodes[:2], memory.HugeTHP, (*acts).hugeList)
	return append(small, huge...), err
}

func measureActs(t *numa.Topology, nodes []numa.Node, huge memory.Huge, list func(*acts) []act) (costs []Cost, err error) {
	const size = 8 << 20
	s, err := memory.Open(memory.Options{
		Name: "disco-acts", RAM: []memory.Range{{Start: 0, Size: size}},
		Topology: t, Nodes: nodes, Place: memory.FirstTouch, Tracked: true, Huge: huge,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	a := &acts{s: s, nodes: nodes, page: make([]byte, 1)}
	for _, act := range list(a) {
		c := Cost{Act: act.name}
		for round := range actRounds {
			if !act.wholeOnly {
				single, err := a.time(act, 1)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", act.name, err)
				}
				if round == 0 || single < c.Single {
					c.Single = single
				}
			}
			run, err := a.time(act, actRun)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", act.name, err)
			}
			if round == 0 || run < c.InRun {
				c.InRun = run
			}
		}
		costs = append(costs, c)
	}
	return costs, nil
}

// acts are tried on the second block of RAM: page actRun and those that follow.
type acts struct {
	s     *memory.Space
	nodes []numa.Node
	page  []byte
}

// act is timed from its do; before and after are not timed.
type act struct {
	name              string
	before, do, after func(p memory.PPN, n int) error
	wholeOnly         bool // for a run only
}

func (a *acts) list() []act {
	to := a.nodes[1]
	nothing := func(memory.PPN, int) error { return nil }
	// touch accesses each page from the second node.
	touch := func(write bool) func(memory.PPN, int) error {
		return func(p memory.PPN, n int) error {
			for i := range n {
				if err := a.access(1, p+memory.PPN(i), write); err != nil {
					return err
				}
			}
			return nil
		}
	}
	replicate := func(p memory.PPN, n int) error {
		done, err := a.s.Replicate(p, n, to)
		return whole(done, n, err)
	}
	collapse := func(p memory.PPN, n int) error {
		done, err := a.s.Collapse(p, n)
		return whole(done, n, err)
	}
	return []act{
		{"watch a page (sample, first half)", touch(false), func(p memory.PPN, n int) error { return a.s.Watch(p, n, to) },
			func(p memory.PPN, n int) error { return a.s.Unwatch(p, n, to) }, false},
		{"first access to a watched page (second half)", func(p memory.PPN, n int) error { return a.s.Watch(p, n, to) }, touch(false), nothing, false},
		{"guard a page against writes", touch(false), a.s.Guard, a.s.Unguard, false},
		{"migrate", a.gather, a.migrate(to), nothing, false},
		{"replicate", touch(false), replicate, collapse, false},
		{"collapse", replicate, collapse, nothing, false},
		{"store to a replicated page (collapses it)", replicate, touch(true), nothing, false},
	}
}

// hugeList is what differs where the kernel gives huge pages. Where it does not,
// the costs are those of 4 KiB pages.
func (a *acts) hugeList() []act {
	nothing := func(memory.PPN, int) error { return nil }
	return []act{{"migrate, 2 MiB pages where the kernel gives them", a.gather, a.migrate(a.nodes[1]), nothing, true}}
}

// gather brings pages to the first node, wherever they were made.
func (a *acts) gather(p memory.PPN, n int) error {
	_, err := a.s.Migrate(p, n, a.nodes[0])
	return err
}

func (a *acts) migrate(to numa.Node) func(memory.PPN, int) error {
	return func(p memory.PPN, n int) error {
		done, err := a.s.Migrate(p, n, to)
		return whole(done, n, err)
	}
}

func whole(done, n int, err error) error {
	if err == nil && done < n-n/16 { // the kernel may leave a page out
		err = fmt.Errorf("%d of %d pages", done, n)
	}
	return err
}

// access touches one byte of a page through a View by a system call, which may
// wait for the fault's answer without holding up this program.
func (a *acts) access(view int, p memory.PPN, write bool) error {
	window := a.s.View(view).Bytes()
	local := []unix.Iovec{{Base: &a.page[0], Len: 1}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(unsafe.SliceData(window))) + uintptr(p)*pageSize, Len: 1}}
	call := unix.ProcessVMReadv
	if write {
		call = unix.ProcessVMWritev
	}
	if n, err := call(unix.Getpid(), local, remote, 0); err != nil || n != 1 {
		return fmt.Errorf("access to page %d: %d bytes, %w", p, n, err)
	}
	return nil
}

const pageSize = 4096

// time is the µs that one page takes, in runs of n.
func (a *acts) time(act act, n int) (float64, error) {
	var total time.Duration
	runs := 1
	if n == 1 {
		runs = actSingles
	}
	if err := a.s.WriteAt(make([]byte, 2*actRun*pageSize), 0); err != nil {
		return 0, err
	}
	for i := range runs {
		// Not side by side: neighbours merge.
		p := memory.PPN(actRun + i*2%actRun)
		if err := act.before(p, n); err != nil {
			return 0, err
		}
		began := time.Now()
		err := act.do(p, n)
		total += time.Since(began)
		if err != nil {
			return 0, err
		}
		if err := act.after(p, n); err != nil {
			return 0, err
		}
	}
	return total.Seconds() * 1e6 / float64(runs*n), nil
}

// PrintActs shows costs to people.
func PrintActs(w io.Writer, costs []Cost) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "act\tone page, µs\tpage of a run of 512, µs\t")
	for _, c := range costs {
		single := fmt.Sprintf("%.1f", c.Single)
		if c.Single == 0 {
			single = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%.2f\t\n", c.Act, single, c.InRun)
	}
	return t.Flush()
}
