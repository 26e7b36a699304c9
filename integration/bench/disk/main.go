// Command disk measures a guest's disk: 4 KiB at random and 1 MiB in order, read and
// written, by disco and by QEMU's microvm machine, with the same kernel, initrd,
// number of CPUs and memory, on a raw file of the same size.
//
// For each pattern it takes the operations in a second by the guest's clock, the
// exits that KVM's tracepoints count from just before to just after, and the CPU
// time that the monitor's process took and did not give to the guest. The programs
// take turns, in another order in each run, and a guest does all patterns three times.
// Its program uses O_DIRECT, so its page cache is not in between; the host's is, for
// both.
//
// It needs root and a KVM that runs stock kernels, and is meant for a lab. Rates of
// a lab say nothing by themselves, only their ratios do.
//
// Not measured: many requests at once from one thread, and disks that are slower
// than the host's memory.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"disco/integration/bench"
	"disco/integration/bench/exits"
)

func main() {
	var o options
	flag.StringVar(&o.disco, "disco", "bin/disco", "disco's program")
	flag.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "QEMU's program")
	flag.StringVar(&o.kernel, "kernel", "build/guest/vmlinuz", "the guest's kernel, a bzImage")
	flag.StringVar(&o.initrd, "initrd", "build/guest/storage.img", "the guest's initrd, whose init is integration/guest/storage")
	flag.StringVar(&o.dir, "dir", "", "the folder for the disk's file (default: a temporary one)")
	flag.IntVar(&o.mib, "size", 64, "MiB of the disk")
	flag.IntVar(&o.ops, "ops", 2000, "operations of 4 KiB, of each kind; of 1 MiB a quarter")
	flag.IntVar(&o.cpus, "cpus", 1, "CPUs of the guest, and threads of its program")
	only := flag.String("only", "", "measure only the programs whose names begin with one of these words")
	runs := flag.Int("runs", 3, "runs of each program")
	out := flag.String("o", "build/bench/disk.json", "where the result goes")
	flag.Parse()
	if err := run(o, strings.Fields(*only), *runs, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench-disk:", err)
		os.Exit(1)
	}
}

// options are what is measured with.
type options struct {
	disco, qemu, kernel, initrd, dir string
	mib, ops, cpus                   int
}

func run(o options, only []string, runs int, out string) error {
	if runs < 1 || o.mib < 8 || o.ops < 16 || o.cpus < 1 {
		return fmt.Errorf("at least one run, 8 MiB, 16 operations and one CPU are needed")
	}
	dir, err := os.MkdirTemp(o.dir, "bench-disk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	counters, err := exits.Open()
	if err != nil {
		return err
	}
	defer counters.Close()
	programs := programs(o, dir, only)
	if len(programs) == 0 {
		return fmt.Errorf("no program's name begins with %q", only)
	}
	b := &benchmark{}
	for i := range runs {
		for _, p := range bench.Shuffled(programs, i) {
			if err := b.measure(p, o, counters); err != nil {
				return err
			}
		}
	}
	r := b.result(programs, setting(o))
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

// row is one pattern of one run.
type row struct {
	Program string       `json:"program"`
	Pattern string       `json:"pattern"`
	Ops     int          `json:"ops"`
	Bytes   int          `json:"bytes"`
	Seconds float64      `json:"seconds"` // by the guest's clock
	Exits   *exits.Exits `json:"exits"`
	// HostCPU is the CPU time of the monitor's process outside of its guest, and
	// GuestCPU that of the guest, in seconds.
	HostCPU  float64 `json:"host_cpu"`
	GuestCPU float64 `json:"guest_cpu"`
}

// measure runs p once, and once more if the guest got stuck.
func (b *benchmark) measure(p program, o options, c *exits.Counters) error {
	for try := 1; ; try++ {
		if err := makeDisk(p.disk, o.mib); err != nil {
			return err
		}
		rows, err := once(context.Background(), p, c)
		if err == nil {
			b.rows = append(b.rows, rows...)
			return nil
		}
		fmt.Fprintf(os.Stderr, "bench-disk: %s: %v\n", p.name, err)
		if try == 2 {
			return fmt.Errorf("%s did not come through in two tries", p.name)
		}
		b.retried++
	}
}

// makeDisk makes an empty file; the guest fills it before it measures.
func makeDisk(path string, mib int) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, int64(mib)<<20)
}

// patterns are those that something is promised of.
var patterns = []struct{ name, title string }{
	{"random-read", "4 KiB random reads"},
	{"random-write", "4 KiB random writes"},
	{"sequential-read", "1 MiB sequential reads"},
	{"sequential-write", "1 MiB sequential writes"},
}

// values are a quantity of a program's rows of one pattern.
func (b *benchmark) values(program, pattern string, of func(*row) float64) []float64 {
	var v []float64
	for i := range b.rows {
		if r := &b.rows[i]; r.Program == program && r.Pattern == pattern {
			v = append(v, of(r))
		}
	}
	return v
}

func (b *benchmark) result(programs []program, setting string) *bench.Result {
	if b.retried > 0 {
		setting += fmt.Sprintf("\n%d runs got stuck and were done again.", b.retried)
	}
	res := &bench.Result{Name: "disk", Setting: setting, Raw: b.rows}
	for _, p := range patterns {
		medians := map[[2]string]float64{}
		for _, q := range []struct {
			name, unit string
			of         func(*row) float64
		}{
			{"rate", "operations/s", func(r *row) float64 { return float64(r.Ops) / r.Seconds }},
			{"exits to the monitor", "exits/operation", func(r *row) float64 { return float64(r.Exits.Userspace) / float64(r.Ops) }},
			{"all exits", "exits/operation", func(r *row) float64 { return float64(r.Exits.All) / float64(r.Ops) }},
			{"host CPU", "µs/operation", func(r *row) float64 { return r.HostCPU / float64(r.Ops) * 1e6 }},
		} {
			s := bench.Series{Name: p.title + ": " + q.name, Unit: q.unit}
			for _, program := range programs {
				if v := b.values(program.name, p.name, q.of); len(v) > 0 {
					bar := bench.NewBar(program.name, v)
					s.Bars = append(s.Bars, bar)
					medians[[2]string{program.name, q.name}] = bar.Median
				}
			}
			res.Series = append(res.Series, s)
		}
		ours, ran := medians[[2]string{discoName, "rate"}]
		if !ran {
			continue
		}
		if theirs := medians[[2]string{microvmName, "rate"}]; theirs > 0 {
			res.Promises = append(res.Promises, bench.AtLeast(p.title+", rate ÷ that of QEMU's microvm", 1, ours/theirs))
		}
		res.Promises = append(res.Promises, bench.AtMost(p.title+", exits to the monitor per operation", 1, medians[[2]string{discoName, "exits to the monitor"}]))
	}
	return res
}

// setting says what was measured on what.
func setting(o options) string {
	var u unix.Utsname
	kernel := "?"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%d CPUs and %d MiB for each guest, a raw file of %d MiB on %s; the host runs Linux %s.\nThe rates of an emulated host say nothing but by their ratios.",
		o.cpus, memoryMiB, o.mib, filepath.Clean(os.TempDir()), kernel)
}
