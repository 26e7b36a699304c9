// Command boot measures how long a guest takes to its first line of user space,
// what that costs in exits, and how much memory the monitor needs besides the
// guest's: disco beside QEMU's microvm machine and gokvm, all with the same
// kernel, initrd, kernel command line, one CPU and 256 MiB.
//
// The programs run in turns, so that a slow moment of the host meets all of them,
// and in another order in each round: a program that gets memory in which its
// predecessor ran code pays for that under emulation. A first run of each, with cold caches, is recorded apart.
// Exits are counted in runs of their own, by the kernel's tracepoints, which are
// the same instrument for all; the memory is looked at in those runs too. The
// time is from starting the process to reading the guest's line on its standard
// output.
//
// It needs root and a KVM that runs stock kernels, and is meant for a lab. Times
// of a lab say nothing by themselves, only their ratios do.
//
// Not measured: anything after the first line of user space, and disks or
// networks, which the peers are not given.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/bench"
	"disco/integration/bench/exits"
)

// What the guest is given, whoever runs it.
const (
	guestMemory = 256 << 20
	// cmdline has nothing that only one of the programs needs; what gokvm needs
	// comes after it. The guest powers off after its first line, where the program
	// lets it.
	cmdline = "console=ttyS0 quiet nohz=off disco.task=poweroff"
	// watchdog is how long a guest may take to its first line.
	watchdog = 60 * time.Second
)

func main() {
	var (
		artefacts artefacts
		only      string
		runs      = flag.Int("runs", 5, "timed runs of each program")
		counted   = flag.Int("counted", 2, "runs of each program in which exits are counted")
		out       = flag.String("o", "build/bench/boot.json", "where the result goes")
	)
	flag.StringVar(&artefacts.disco, "disco", "bin/disco", "disco's program")
	flag.StringVar(&artefacts.qemu, "qemu", "qemu-system-x86_64", "QEMU's program")
	flag.StringVar(&artefacts.gokvm, "gokvm", "build/bench/gokvm", "gokvm's program")
	flag.StringVar(&artefacts.kernel, "kernel", "build/guest/vmlinuz", "the guest's kernel, a bzImage")
	flag.StringVar(&artefacts.initrd, "initrd", "build/guest/initrd.img", "the guest's initrd")
	flag.StringVar(&only, "only", "", "measure only the programs whose names begin with one of these words")
	flag.Parse()
	if err := run(artefacts, strings.Fields(only), *runs, *counted, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench-boot:", err)
		os.Exit(1)
	}
}

func run(a artefacts, only []string, runs, counted int, out string) error {
	if runs < 1 || counted < 1 {
		return fmt.Errorf("at least one timed and one counted run are needed")
	}
	dir, err := os.MkdirTemp("", "bench-boot-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if a, err = a.stage(dir); err != nil {
		return err
	}
	programs := programs(a, dir, only)
	if len(programs) == 0 {
		return fmt.Errorf("no program's name begins with %q", only)
	}
	counters, err := exits.Open()
	if err != nil {
		return err
	}
	defer counters.Close()

	b := &benchmark{}
	for _, p := range programs {
		if err := b.measure(p, "first", nil); err != nil {
			return err
		}
	}
	for i := range runs {
		for _, p := range bench.Shuffled(programs, i) {
			if err := b.measure(p, "timed", nil); err != nil {
				return err
			}
		}
	}
	for i := range counted {
		for _, p := range bench.Shuffled(programs, i) {
			if err := b.measure(p, "counted", counters); err != nil {
				return err
			}
		}
	}
	r := b.result(programs, setting())
	if err := r.Print(os.Stdout); err != nil {
		return err
	}
	return r.Write(out)
}

// benchmark collects rows.
type benchmark struct {
	rows    []row
	retried int
}

// row is one boot.
type row struct {
	Program string  `json:"program"`
	Phase   string  `json:"phase"` // first, timed or counted
	Seconds float64 `json:"seconds"`
	Stuck   int     `json:"stuck,omitempty"` // tries before this one that the watchdog ended

	// Of counted rows:
	Exits     *exits.Exits `json:"exits,omitempty"`        // to the first line of user space
	UntilEnd  *exits.Exits `json:"exits_to_end,omitempty"` // to the end of a process that ended by itself
	Monitor   *own         `json:"own_memory,omitempty"`   // at the first line
	OwnReport *ownReport   `json:"own_report,omitempty"`   // what disco says of itself
}

// measure boots p once, and once more if the guest got stuck.
func (b *benchmark) measure(p program, phase string, c *exits.Counters) error {
	for stuck := 0; ; stuck++ {
		r, err := bootOnce(context.Background(), p, c)
		if err == nil {
			r.Program, r.Phase, r.Stuck = p.name, phase, stuck
			b.rows = append(b.rows, r)
			fmt.Printf("%-8s %-34s %6.2f s%s\n", phase, p.name, r.Seconds, r.Exits.Brief())
			return nil
		}
		fmt.Fprintf(os.Stderr, "bench-boot: %s: %v\n", p.name, err)
		if stuck == 1 {
			return fmt.Errorf("%s did not boot in two tries", p.name)
		}
		b.retried++
	}
}

// values are a quantity of p's rows of one phase.
func (b *benchmark) values(p program, phase string, of func(row) (float64, bool)) []float64 {
	var v []float64
	for _, r := range b.rows {
		if r.Program == p.name && r.Phase == phase {
			if x, ok := of(r); ok {
				v = append(v, x)
			}
		}
	}
	return v
}

func (b *benchmark) result(programs []program, setting string) *bench.Result {
	if b.retried > 0 {
		setting += fmt.Sprintf("\n%d runs got stuck and were done again.", b.retried)
	}
	r := &bench.Result{Name: "boot", Setting: setting, Raw: b.rows}
	seconds := func(r row) (float64, bool) { return r.Seconds, true }
	quantities := []struct {
		name, unit, phase string
		of                func(row) (float64, bool)
	}{
		{timeSeries, "s", "timed", seconds},
		{"Time of the first run, nothing cached", "s", "first", seconds},
		{userspaceSeries, "exits", "counted", func(r row) (float64, bool) { return float64(r.Exits.Userspace), true }},
		{"All exits, to the first line", "exits", "counted", func(r row) (float64, bool) { return float64(r.Exits.All), true }},
		{memorySeries, "MiB", "counted", func(r row) (float64, bool) { return float64(r.Monitor.Total) / (1 << 20), true }},
	}
	medians := map[[2]string]float64{}
	for _, q := range quantities {
		s := bench.Series{Name: q.name, Unit: q.unit}
		for _, p := range programs {
			if v := b.values(p, q.phase, q.of); len(v) > 0 {
				bar := bench.NewBar(p.name, v)
				s.Bars = append(s.Bars, bar)
				medians[[2]string{q.name, p.name}] = bar.Median
			}
		}
		r.Series = append(r.Series, s)
	}
	promise := func(name string, limit float64, got, over [2]string) {
		g, ok := medians[got]
		if over != ([2]string{}) && ok {
			var o float64
			if o, ok = medians[over]; ok {
				g /= o
			}
		}
		if ok {
			r.Promises = append(r.Promises, bench.AtMost(name, limit, g))
		}
	}
	promise("time of disco ÷ time of QEMU microvm", 0.65, [2]string{timeSeries, discoSerial}, [2]string{timeSeries, qemuMicrovm})
	promise("time of disco ÷ time of QEMU microvm, tuned", 0.65, [2]string{timeSeries, discoSerial}, [2]string{timeSeries, qemuTuned})
	promise("exits of disco to user space", 5000, [2]string{userspaceSeries, discoSerial}, [2]string{})
	promise("disco's own memory, MiB", 20, [2]string{memorySeries, discoSerial}, [2]string{})
	promise("disco's own memory with --net user, MiB", 20, [2]string{memorySeries, discoDefault}, [2]string{})
	return r
}

const (
	timeSeries      = "Time to the first line of user space"
	userspaceSeries = "Exits to user space, to the first line"
	memorySeries    = "The monitor's own memory, at the first line"
)

// setting says what the numbers were measured on.
func setting() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // fails only for a bad address
	where := "this host"
	caution := ""
	if os.Getenv("DISCO_IN_LAB") != "" {
		where = "a lab"
		caution = "\nThe lab's CPU is emulated: only ratios of times mean anything, and counts."
	}
	return fmt.Sprintf("Boots of one kernel and initrd with 1 CPU and %d MiB, in turns, on %s with Linux %s.%s\nKernel command line: %s (gokvm's has more words, which it needs)",
		guestMemory>>20, where, unix.ByteSliceToString(u.Release[:]), caution, cmdline)
}

// artefacts are the files that are measured and what they boot.
type artefacts struct {
	disco, qemu, gokvm string
	kernel, initrd     string
}

// stage copies what is read during a boot to dir, which is in the host's memory,
// so that no program is measured with another's file system.
func (a artefacts) stage(dir string) (artefacts, error) {
	for _, f := range []*string{&a.disco, &a.gokvm, &a.kernel, &a.initrd} {
		to := filepath.Join(dir, filepath.Base(*f))
		if err := copyFile(to, *f); err != nil {
			return a, err
		}
		*f = to
	}
	return a, nil
}
