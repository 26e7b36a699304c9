package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"disco/integration/bench"
	"disco/integration/bench/share"
)

const benchShareLong = `share boots several guests of one disk image in one process, one after another, has
each read the same part of it whole and work with it, and says how much memory they
use as they see it, V, and how much the machine really uses, M: by the monitor's
count of the frames that it gave out, and by the kernel's count for the process.

Modes:
  auto    reads are answered by mapping what the buffer cache has, where it pays
  always  wherever it is possible
  never   each guest gets a copy
  ksm     guests of QEMU, whose pages the kernel merges; given the time that it takes

It prints a table, and writes FILE.json after each row. The mode ksm needs root, and
leaves the kernel's settings as they were.`

const benchShareExample = `  disco bench share
  disco bench share --guests 8 --modes auto,never --job build
  disco lab --memory 8G -- disco bench share`

// benchShare is one `disco bench share`.
type benchShare struct {
	*world
	o        share.Options
	out      string
	resume   bool
	problems []error
}

func (b *benchShare) command() *cobra.Command {
	c := &cobra.Command{
		Use:     "share [flags]",
		Short:   "Measure how much memory guests of one image take together",
		Long:    benchShareLong + "\n\n" + benchExitCodes,
		Example: benchShareExample,
		Args:    noWords,
		RunE:    func(c *cobra.Command, _ []string) error { return b.run(c.Context()) },
	}
	f := c.Flags()
	f.SortFlags = false
	flag := adder(c, &b.problems)
	flag("guests", "LIST", "1,2,4,8", into(&b.o.Guests, parseCounts), "after how many guests to look")
	flag("modes", "LIST", "auto,never,ksm", into(&b.o.Modes, share.ParseModes), "what to measure: auto, always, never, ksm")
	flag("cpus", "N", "1", into(&b.o.CPUs, positive), "CPUs of each guest")
	flag("memory", "SIZE", "512M", into(&b.o.Memory, parseSize), "memory of each guest")
	flag("timeout", "DURATION", "10m", into(&b.o.Timeout, positiveTime), "how long each guest may take")
	flag("settle", "DURATION", "5m", into(&b.o.Settle, positiveTime), "how long the kernel may take to merge pages, at each look")
	f.StringVar(&b.o.Read, "read", "/usr,/boot", "what each guest reads: `FOLDERS` of the image, separated by commas")
	f.StringVar(&b.o.Job, "job", "query", "what each does then: a `JOB` query, of the package database, build, of C files, or none")
	f.StringVar(&b.o.Image, "image", "", "the disk image in `FILE`, raw, its first partition ext4 (default: debian.raw of `make image`)")
	f.StringVar(&b.o.QEMU, "qemu", "", "QEMU's `PROGRAM` for the mode ksm (default: the lab's)")
	f.StringVar(&b.o.Kernel, "kernel", "", "the guests' kernel in `FILE` (default: the default guest's)")
	f.StringVar(&b.o.Initrd, "initrd", "", "the guests' initrd in `FILE` (default: storage.img beside the default guest's)")
	f.StringVar(&b.out, "out", "share", "write `FILE`.json")
	f.BoolVar(&b.resume, "resume", false, "go on with FILE.json: modes that it has whole of the same work are not measured again, and rows of others stay")
	noFile(c, "read")
	noFile(c, "job")
	return c
}

func parseCounts(s string) ([]int, error) {
	var all []int
	for _, word := range strings.Split(s, ",") {
		n, err := strconv.Atoi(word)
		if err != nil {
			return nil, errors.New("write numbers, separated by commas")
		}
		all = append(all, n)
	}
	return all, nil
}

// run completes the options, checks everything and measures.
func (b *benchShare) run(ctx context.Context) error {
	b.o.Progress = b.stderr
	b.o.Emulated, b.o.Cmdline = b.emulated()
	b.o.Keep = func(r *share.Results) error { return b.result(r).Write(b.out + ".json") }
	m := measurement[*share.Results]{
		out: b.out, problems: b.problems, check: b.o.Check, artefacts: b.artefacts,
		run:    func(ctx context.Context) (*share.Results, error) { return share.Benchmark(ctx, b.o) },
		empty:  func(r *share.Results) bool { return r == nil || len(r.Rows) == 0 },
		report: b.report,
	}
	if b.resume {
		m.load = func(file string) (err error) {
			b.o.Resume, err = share.Load(file)
			return err
		}
	}
	return m.do(ctx)
}

// artefacts finds what the guests are made of.
func (b *benchShare) artefacts() error {
	a := artefacts{world: b.world}
	a.need(&b.o.Kernel, "DISCO_KERNEL", "guest", "vmlinuz", "the guests' kernel", "run `make guest` in disco's source tree, or name one by --kernel")
	a.need(&b.o.Initrd, "", "guest", "storage.img", "the guests' initrd", "run `make guest` in disco's source tree, or name one by --initrd")
	a.need(&b.o.Image, "DISCO_IMAGE", "image", "debian.raw", "the disk image", "run `make image` in disco's source tree, or name one by --image")
	if modes := b.o.Modes; modes == nil || slices.Contains(modes, share.KSM) {
		a.need(&b.o.QEMU, "DISCO_QEMU", "lab", "qemu/qemu-system-x86_64", "QEMU", "run `make lab` in disco's source tree, name one by --qemu, or leave ksm out by --modes auto,never")
	}
	return errors.Join(a.missing...)
}

// report prints the results and writes the file.
func (b *benchShare) report(r *share.Results) error {
	if err := r.Print(b.stdout); err != nil {
		return err
	}
	fmt.Fprintln(b.stdout)
	res := b.result(r)
	if err := res.PrintPromises(b.stdout); err != nil {
		return err
	}
	return res.Write(b.out + ".json")
}

// result is what is written.
func (b *benchShare) result(r *share.Results) *bench.Result {
	setting := fmt.Sprintf("Guests with %d CPU and %s, which read %s and did the job %s", r.CPUs, formatSize(r.Memory), r.Read, r.Job)
	if b.o.Emulated {
		setting += "\nIn the lab, whose CPUs are emulated: it takes long, and uses as much memory as anywhere."
	}
	return r.Result(setting)
}
