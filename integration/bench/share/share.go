// Package share is the benchmark of sharing: how much memory several guests of one
// disk image take together, against what they think they use.
//
// Each guest reads the same part of the image whole, works with it, and says what
// its kernel takes for used (V, its MemTotal less its MemFree). Then, with all of
// that still in their page caches, it is asked how much memory there really is (M):
// of the monitor, which counts the frames that it gave out, and of the kernel, which
// counts those that the process has. The guests are disco's, with sharing and
// without, and QEMU's with the kernel merging same pages (KSM), for which it is
// given the time until nothing more is merged.
//
// Not measured: time, beyond what a run took in all, and the kernel's own memory for
// page tables and mappings.
package share

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Mode is whose guests they are, and what is shared.
type Mode string

const (
	Auto   Mode = "auto"   // disco's, --disk-share auto
	Always Mode = "always" // disco's, --disk-share always
	Never  Mode = "never"  // disco's, --disk-share never
	KSM    Mode = "ksm"    // QEMU's, merged by the kernel
)

// Modes are all, in the order in which they are measured.
var Modes = []Mode{Auto, Always, Never, KSM}

// ParseModes reads modes separated by commas.
func ParseModes(s string) ([]Mode, error) {
	var modes []Mode
	for _, name := range strings.Split(s, ",") {
		if !slices.Contains(Modes, Mode(name)) {
			return nil, fmt.Errorf("there is no mode %q; there are %v", name, Modes)
		}
		modes = append(modes, Mode(name))
	}
	return modes, nil
}

// Options says what to run. A zero field means its default where it names one.
type Options struct {
	Kernel, Initrd string // of the guests; the initrd is the one whose init is integration/guest/storage
	Cmdline        string // more words for the guests' kernel
	Image          string // a raw disk image whose first partition is ext4
	QEMU           string // its program, for the mode KSM

	Guests []int  // how many at once, one after the other; nil for 1, 2, 4 and 8
	Modes  []Mode // nil for auto, never and ksm
	CPUs   int    // of each guest; 0 for 1
	Memory uint64 // of each guest, in bytes; 0 for 768 MiB
	Read   string // what each reads: folders of the image, separated by commas; empty for /usr
	Job    string // what each does then: query (its package database), build (C files) or none; empty for query

	Timeout  time.Duration // of each run until its guests are done; 0 for ten minutes
	Settle   time.Duration // how long KSM may take; 0 for five minutes
	Emulated bool          // this host is: a run in which a guest is lost is done once more
	Progress io.Writer     // what is being done; nil for nothing
}

// Check returns everything that is wrong with o.
func (o Options) Check() error { return errors.Join(o.complete()...) }

// complete fills in the defaults and returns everything that is wrong.
func (o *Options) complete() []error {
	var problems []error
	bad := func(format string, a ...any) { problems = append(problems, fmt.Errorf(format, a...)) }
	if o.Guests == nil {
		o.Guests = []int{1, 2, 4, 8}
	}
	if o.Modes == nil {
		o.Modes = []Mode{Auto, Never, KSM}
	}
	fill(&o.CPUs, 1)
	fill(&o.Memory, 768<<20)
	fill(&o.Read, "/usr")
	fill(&o.Job, "query")
	fill(&o.Timeout, 10*time.Minute)
	fill(&o.Settle, 5*time.Minute)
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	for _, n := range o.Guests {
		if n < 1 || n > 64 {
			bad("guests %d: use 1 to 64", n)
		}
	}
	if !slices.Contains([]string{"query", "build", "none"}, o.Job) {
		bad("job %q: there are query, build and none", o.Job)
	}
	for _, dir := range strings.Split(o.Read, ",") {
		if !filepath.IsAbs(dir) || strings.ContainsAny(dir, " \"\n") {
			bad("read %q: name folders of the image, from its root, without spaces", dir)
		}
	}
	return problems
}

func fill[T comparable](p *T, otherwise T) {
	var zero T
	if *p == zero {
		*p = otherwise
	}
}

// Benchmark runs what o asks for. The results it returns with an error are those of
// the runs that were completed. For KSM it needs root: it switches it on, and leaves
// it as it was.
func Benchmark(ctx context.Context, o Options) (*Results, error) {
	if problems := o.complete(); len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	r := &Results{Job: o.Job, Read: o.Read, CPUs: o.CPUs, Memory: o.Memory}
	for _, m := range o.Modes {
		for _, n := range o.Guests {
			row, err := o.measure(ctx, m, n, r)
			if err != nil {
				return r, fmt.Errorf("%d guests, %s: %w", n, m, err)
			}
			r.Rows = append(r.Rows, row)
			o.say("%d guests, %s: V %s, M %s, V/M %.2f", n, m, mib(row.V), mib(row.M), row.Ratio())
		}
	}
	return r, nil
}

func (o *Options) say(format string, a ...any) {
	fmt.Fprintf(o.Progress, "bench: "+format+"\n", a...)
}

// measure does one run, and in emulation once more if a guest was lost.
func (o *Options) measure(ctx context.Context, m Mode, n int, r *Results) (*Row, error) {
	for try := 1; ; try++ {
		o.say("%d guests, %s", n, m)
		once := o.disco
		if m == KSM {
			once = o.qemu
		}
		began := time.Now()
		row, err := once(ctx, m, n)
		switch {
		case err == nil:
			row.Mode, row.Guests, row.Seconds = m, n, time.Since(began).Seconds()
			for _, g := range row.Each {
				row.V += g.Total - g.Free
			}
			// What one run has left behind is none of the next one's.
			runtime.GC()
			return row, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !o.Emulated || try == 2:
			return nil, err
		}
		o.say("%v; once more", err)
		r.Retried = append(r.Retried, fmt.Sprintf("%d guests, %s: %v", n, m, err))
	}
}

// words are the kernel command line's for the guest's task.
func (o *Options) words() string {
	return strings.TrimSpace(fmt.Sprintf("%s disco.task=share disco.read=%s disco.job=%s", o.Cmdline, o.Read, o.Job))
}

func mib(n uint64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

// lost is an error for a guest that ended or said that it failed.
func lost(i int, why string, c *console) error {
	return fmt.Errorf("guest %d %s; its last lines: %q", i+1, why, c.last())
}

var pageSize = uint64(os.Getpagesize())
