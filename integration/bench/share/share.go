// Package share is the benchmark of sharing: how much memory several guests of one
// disk image take together, against what they think they use.
//
// Guests are started one after another. Each reads the same part of the image whole,
// works with it, says what its kernel takes for free, and halts, with all of that
// still in its page cache. Whenever there are as many as a run is about, the next row
// is written: what the guests use (V, the memory that they were given less what is
// free), and how much memory there really is (M): of the monitor, which counts the
// frames that it gave out, and of the kernel, which counts those that the process has.
// The guests are disco's, with sharing and without, and QEMU's with the kernel merging
// same pages (KSM), for which it is given the time until nothing more is merged.
//
// Not measured: time, beyond what it took in all, guests that read the same at the same
// moment, and the kernel's own memory for page tables and mappings.
package share

import (
	"cmp"
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

	Guests []int  // after how many to look; nil for 1, 2, 4 and 8
	Modes  []Mode // nil for auto, never and ksm
	CPUs   int    // of each guest; 0 for 1
	Memory uint64 // of each guest, in bytes; 0 for 512 MiB
	Read   string // what each reads: folders of the image, separated by commas; empty for /usr and /boot
	Job    string // what each does then: query (its package database), build (C files) or none; empty for query

	Timeout  time.Duration        // of each guest; 0 for ten minutes
	Settle   time.Duration        // how long KSM may take at each look; 0 for five minutes
	Emulated bool                 // this host is: for guests that are lost others are started, a few
	Resume   *Results             // of the same work: the modes that it has whole are not run again
	Keep     func(*Results) error // is given the results so far after each row; or nil
	Progress io.Writer            // what is being done; nil for nothing
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
	o.CPUs = cmp.Or(o.CPUs, 1)
	o.Memory = cmp.Or(o.Memory, 512<<20)
	o.Read = cmp.Or(o.Read, "/usr,/boot")
	o.Job = cmp.Or(o.Job, "query")
	o.Timeout = cmp.Or(o.Timeout, 10*time.Minute)
	o.Settle = cmp.Or(o.Settle, 5*time.Minute)
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Keep == nil {
		o.Keep = func(*Results) error { return nil }
	}
	o.Guests = slices.Compact(slices.Sorted(slices.Values(o.Guests)))
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

// Benchmark runs what o asks for. The results it returns with an error are those of
// the rows that were completed. For KSM it needs root: it switches it on, and leaves
// it as it was.
func Benchmark(ctx context.Context, o Options) (*Results, error) {
	if problems := o.complete(); len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	r := &Results{Job: o.Job, Read: o.Read, CPUs: o.CPUs, Memory: o.Memory}
	if err := o.resume(r); err != nil {
		return nil, err
	}
	for _, m := range o.Modes {
		if o.whole(r, m) {
			o.say("%s: measured before", m)
			continue
		}
		if err := o.mode(ctx, m, r); err != nil {
			return r, fmt.Errorf("%s: %w", m, err)
		}
		// What one has left behind is none of the next one's.
		runtime.GC()
	}
	return r, nil
}

// resume takes over what there is of the same work. It is an error if that was other
// work.
func (o *Options) resume(r *Results) error {
	was := o.Resume
	if was == nil {
		return nil
	}
	if was.Read != r.Read || was.Job != r.Job || was.CPUs != r.CPUs || was.Memory != r.Memory {
		return fmt.Errorf("the results to go on with are of other work: job %s after reading %s, with %d CPUs and %s each", was.Job, was.Read, was.CPUs, mib(was.Memory))
	}
	r.Rows, r.Retried = slices.Clone(was.Rows), slices.Clone(was.Retried)
	return nil
}

// whole says whether there is a row of a mode for every number of guests.
func (o *Options) whole(r *Results, m Mode) bool {
	return !slices.ContainsFunc(o.Guests, func(n int) bool { return r.find(m, n) == nil })
}

func (o *Options) say(format string, a ...any) {
	fmt.Fprintf(o.Progress, "bench: "+format+"\n", a...)
}

// host has guests, and can look at the memory of those that are done.
type host interface {
	// start has one more, whose console it returns. Whatever ends the guest is sent
	// to ended.
	start(ended chan<- error) (*console, error)
	// drop takes back the last one, which was lost.
	drop() error
	// look makes a row of what is its own business.
	look(ctx context.Context) (*Row, error)
	// close ends everything.
	close() error
}

// maxLost is how many guests may be lost in one mode of an emulated host.
const maxLost = 3

// mode measures one mode.
func (o *Options) mode(ctx context.Context, m Mode, r *Results) (err error) {
	var h host
	if m == KSM {
		h, err = o.qemu()
	} else {
		h, err = o.disco(m)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	return o.measure(ctx, m, h, r)
}

// measure has guests from the first to the last, and looks at them in between.
func (o *Options) measure(ctx context.Context, m Mode, h host, r *Results) error {
	began := time.Now()
	var said []Guest
	for lost := 0; len(said) < o.Guests[len(o.Guests)-1]; {
		g, err := o.guest(ctx, h, len(said))
		switch {
		case err == nil:
			said = append(said, g)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !o.Emulated || lost == maxLost:
			return err
		default:
			lost++
			o.say("%v; another", err)
			r.Retried = append(r.Retried, fmt.Sprintf("%s: %v", m, err))
			if err := h.drop(); err != nil {
				return err
			}
			continue
		}
		n := len(said)
		if !slices.Contains(o.Guests, n) {
			continue
		}
		row, err := h.look(ctx)
		if err != nil {
			return err
		}
		row.Mode, row.Guests, row.Each, row.Seconds = m, n, slices.Clone(said), time.Since(began).Seconds()
		for _, g := range said {
			row.V += o.Memory - g.Free
		}
		r.add(row)
		o.say("%s, %d guests: V %s, M %s, V/M %.2f", m, n, mib(row.V), mib(row.M), row.Ratio())
		if err := o.Keep(r); err != nil {
			return err
		}
	}
	return nil
}

// guest starts the i'th guest, and waits until it is done.
func (o *Options) guest(ctx context.Context, h host, i int) (Guest, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("it was not done after %v", o.Timeout))
	defer cancel()
	ended := make(chan error, 1)
	c, err := h.start(ended)
	if err != nil {
		return Guest{}, err
	}
	select {
	case <-c.done:
		o.say("guest %d: %s", i+1, c.stages())
		return c.said(), nil
	case why := <-c.failed:
		return Guest{}, lost(i, "failed: "+why, c)
	case err := <-ended:
		return Guest{}, lost(i, "is gone: "+err.Error(), c)
	case <-ctx.Done():
		return Guest{}, lost(i, "was waited for: "+context.Cause(ctx).Error(), c)
	}
}

// words are the kernel command line's for the guest's task.
func (o *Options) words() string {
	return strings.TrimSpace(fmt.Sprintf("%s disco.task=share disco.read=%s disco.job=%s", o.Cmdline, o.Read, o.Job))
}

func mib(n uint64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

// lost is an error for a guest that ended or said that it failed.
func lost(i int, why string, c *console) error {
	return fmt.Errorf("guest %d %s; its last lines: %q", i+1, why, c.Last())
}

var pageSize = uint64(os.Getpagesize())
