package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"disco/integration/bench/traffic"
)

const benchNetLong = `net boots two guests, has one take data from the other, and says how fast that was,
how often each byte was copied by what carries it, how often the guests were left
for it, and how much memory the data took. Then several guests read the same file.

Programs, which carry the frames:
  auto     disco's guests on a segment, pages mapped where it pays
  always   wherever it is possible
  never    all is copied
  tap      disco's guests on taps and a bridge of the host
  qemu     QEMU's microvm on taps and a bridge
  vhost    the same, with the kernel's vhost-net

Ways, in which data are taken:
  write     a TCP stream that the server writes
  sendfile  one that it sends from a file on its disk
  ram       one that it sends from a file in its memory
  echo      messages of 64 bytes that are sent back, one at a time
  nfs       the file on its disk, read by NFS

Readings, by which several guests read one file:
  nfs   from another guest, on a segment
  dax   a shared folder, by mapping the host's page cache
  fuse  a shared folder, by messages

The host divides the CPUs between disco's guests, as between QEMU's: what disco's own
scheduler costs is not in it.

The guests of all programs run at once, two each, and take turns: they want twice as
much memory as --memory says for each program.

It prints a table and writes FILE.json. It needs root, and makes bridges and taps,
which are gone afterwards.`

const benchNetExample = `  disco bench net
  disco bench net --programs auto,qemu --ways sendfile --bytes 64M --readings none
  disco lab --memory 6G -- disco bench net`

// benchNet is one `disco bench net`.
type benchNet struct {
	*world
	o        traffic.Options
	bytes    uint64
	out      string
	resume   bool
	problems []error
}

func (b *benchNet) command() *cobra.Command {
	c := &cobra.Command{
		Use:     "net [flags]",
		Short:   "Measure how guests of this machine exchange data",
		Long:    benchNetLong + "\n\n" + benchExitCodes,
		Example: benchNetExample,
		Args:    noWords,
		RunE:    func(c *cobra.Command, _ []string) error { return b.run(c.Context()) },
	}
	f := c.Flags()
	f.SortFlags = false
	flag := adder(c, &b.problems)
	flag("programs", "LIST", "", into(&b.o.Programs, traffic.ParsePrograms), "what to measure, or none (default auto,never,qemu, and vhost where the host has it)")
	flag("ways", "LIST", "", into(&b.o.Ways, traffic.ParseWays), "how data are taken (default all)")
	flag("readings", "LIST", "", into(&b.o.Readings, traffic.ParseReadings), "how several guests read one file, or none (default all)")
	flag("readers", "N", "4", into(&b.o.Readers, positive), "how many guests read one file")
	flag("rounds", "N", "4", into(&b.o.Rounds, positive), "how often each way is measured with each program, by turns")
	flag("bytes", "SIZE", "16M", into(&b.bytes, parseSize), "how much is taken in a round, and before the first one")
	flag("exchanges", "N", "1000", into(&b.o.Exchanges, positive), "how many messages are sent back in a round, and before the first one")
	flag("memory", "SIZE", "384M", into(&b.o.Memory, parseSize), "memory of each guest")
	flag("timeout", "DURATION", "30m", into(&b.o.Timeout, positiveTime), "how long all ways together may take, and each reading")
	f.StringVar(&b.o.Disk, "disk", "", "the server's disk in `FILE` (default: data.img beside the default guest's kernel)")
	f.StringVar(&b.o.QEMU, "qemu", "", "QEMU's `PROGRAM` (default: the lab's)")
	f.StringVar(&b.o.Kernel, "kernel", "", "the guests' kernel in `FILE` (default: the default guest's)")
	f.StringVar(&b.o.Initrd, "initrd", "", "the guests' initrd in `FILE` (default: peer.img beside the default guest's)")
	f.StringVar(&b.out, "out", "net", "write `FILE`.json")
	f.BoolVar(&b.resume, "resume", false, "go on with FILE.json, which is written after each way and reading: what it has of the same work is not measured again")
	return c
}

// run completes the options, checks everything and measures.
func (b *benchNet) run(ctx context.Context) error {
	b.o.Bytes = int(b.bytes)
	b.o.Progress = b.stderr
	if b.o.Emulated, b.o.Cmdline = b.emulated(); b.o.Emulated {
		// TCP makes short frames where round trips are long, from half a millisecond
		// on: here they are 50 times what they are elsewhere, so that is 32 ms. And it
		// gives a device no more than goes out in a millisecond, by a rate that it
		// overstates for that: here by ten, which is as much as there can be.
		// Those who are not measured just now are to be still: of two words nohz the last
		// counts, and a tick of theirs were most of what is counted otherwise.
		b.o.Cmdline += " nohz=on sysctl.net.ipv4.tcp_tso_rtt_log=15 sysctl.net.ipv4.tcp_pacing_ss_ratio=1000 sysctl.net.ipv4.tcp_pacing_ca_ratio=1000"
	}
	b.o.Keep = func(r *traffic.Results) error { return r.Result(b.setting(r)).Write(b.out + ".json") }
	m := measurement[*traffic.Results]{
		out: b.out, problems: b.problems, check: b.o.Check, artefacts: b.artefacts,
		run:    func(ctx context.Context) (*traffic.Results, error) { return traffic.Benchmark(ctx, b.o) },
		empty:  func(r *traffic.Results) bool { return r == nil || len(r.Rows) == 0 && len(r.Files) == 0 },
		report: b.report,
	}
	if b.resume {
		m.load = func(file string) (err error) {
			b.o.Resume, err = traffic.Load(file)
			return err
		}
	}
	return m.do(ctx)
}

// artefacts finds what the guests are made of.
func (b *benchNet) artefacts() error {
	a := artefacts{world: b.world}
	a.need(&b.o.Kernel, "DISCO_KERNEL", "guest", "vmlinuz", "the guests' kernel", "run `make guest` in disco's source tree, or name one by --kernel")
	a.need(&b.o.Initrd, "", "guest", "peer.img", "the guests' initrd", "run `make guest` in disco's source tree, or name one by --initrd")
	a.need(&b.o.Disk, "", "guest", "data.img", "the server's disk", "run `make guest` in disco's source tree, or name one by --disk")
	if b.o.Programs == nil || slices.Contains(b.o.Programs, traffic.QEMU) || slices.Contains(b.o.Programs, traffic.Vhost) {
		a.need(&b.o.QEMU, "DISCO_QEMU", "lab", "qemu/qemu-system-x86_64", "QEMU", "run `make lab` in disco's source tree, name one by --qemu, or leave it out by --programs auto,never")
	}
	return errors.Join(a.missing...)
}

func (b *benchNet) setting(r *traffic.Results) string {
	setting := fmt.Sprintf("Guests with 1 CPU and %s, on one network; %s in each round of a stream. The host divides the CPUs.", formatSize(r.Memory), formatSize(uint64(r.Bytes)))
	if b.o.Emulated {
		setting += "\nIn the lab, whose CPUs are emulated: rates say nothing but by their ratios; counts and memory mean what they say." +
			"\nAll guests take round trips below 32 ms for short (net.ipv4.tcp_tso_rtt_log), as these are 50 times as long here," +
			"\nand give their devices what goes out in 10 ms, not 1 (net.ipv4.tcp_pacing_*_ratio). They tick while they are busy (nohz=on)."
	}
	return setting
}

// report prints the results and writes the file.
func (b *benchNet) report(r *traffic.Results) error {
	fmt.Fprintln(b.stdout, b.setting(r))
	fmt.Fprintln(b.stdout)
	if err := r.Print(b.stdout); err != nil {
		return err
	}
	fmt.Fprintln(b.stdout)
	res := r.Result(b.setting(r))
	if err := res.PrintPromises(b.stdout); err != nil {
		return err
	}
	return res.Write(b.out + ".json")
}
