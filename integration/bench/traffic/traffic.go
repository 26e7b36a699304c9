// Package traffic is the benchmark of networks between guests of one machine: how
// fast data go from one to another, how often they are copied on the way by who
// carries them, how often the guests are left for it, and how much memory the data
// take.
//
// A server has a file on its disk and one in its memory; a client takes them as a
// TCP stream that is written, one that is sent by sendfile, and by NFS, of which
// server and client are the kernel's own; and it has small messages sent back, one
// at a time. Both are guests with the same kernel and initrd, of disco on a segment,
// with mapping and without, and of QEMU's microvm on taps and a bridge of the host,
// with QEMU carrying the frames and with the kernel's vhost-net. Then several guests
// read the same files at once, by NFS and through a shared folder.
//
// All programs' guests run at once, and are measured by turns: one takes data, the
// others are idle. What idle guests leave guest mode for, some times a second, is in
// the counts of exits.
//
// Times are the client's. What is copied is counted as bytes of frames, with their
// headers, per byte of frames that guests were given, in both directions: by the
// segment's own counters, and by the taps', of which each byte is copied once by the
// system call of who puts it in and once by that of who takes it out; QEMU without
// vhost-net takes it into a buffer of its own first, which is once more (its
// net/tap.c, tap_send).
//
// Not measured: guests with several CPUs, several streams at once, and the kernel's
// own memory.
package traffic

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"disco/integration/bench/exits"
)

// Program is who carries the frames between which guests.
type Program string

const (
	Auto   Program = "auto"   // disco's guests on a segment, map=auto
	Always Program = "always" // on one with map=always
	Never  Program = "never"  // on one with map=never
	Tap    Program = "tap"    // disco's guests on taps and a bridge
	QEMU   Program = "qemu"   // QEMU's guests on taps and a bridge
	Vhost  Program = "vhost"  // the same, with vhost-net
)

// Programs are all.
var Programs = []Program{Auto, Always, Never, Tap, QEMU, Vhost}

// Way is how the client takes data.
type Way string

const (
	Write    Way = "write"    // a TCP stream that is written from memory
	Sendfile Way = "sendfile" // one that is sent from the file on the disk
	RAM      Way = "ram"      // one that is sent from a file in memory
	Echo     Way = "echo"     // messages of 64 bytes that are sent back, one at a time
	NFS      Way = "nfs"      // the file on the disk, read by NFS
)

// Ways are all.
var Ways = []Way{Write, Sendfile, RAM, Echo, NFS}

// Reading is how several guests read the same files.
type Reading string

const (
	ByNFS  Reading = "nfs"  // from a guest, over a segment
	ByDAX  Reading = "dax"  // a shared folder, by the window that maps the host's page cache
	ByFUSE Reading = "fuse" // a shared folder, by messages
)

// Readings are all.
var Readings = []Reading{ByNFS, ByDAX, ByFUSE}

// ParsePrograms, ParseWays and ParseReadings read names separated by commas;
// "none" is none.
func ParsePrograms(s string) ([]Program, error) { return parse(s, "program", Programs) }
func ParseWays(s string) ([]Way, error)         { return parse(s, "way", Ways) }
func ParseReadings(s string) ([]Reading, error) { return parse(s, "way to read", Readings) }

func parse[T ~string](s, what string, all []T) ([]T, error) {
	some := []T{}
	if s == "none" {
		return some, nil
	}
	for _, name := range strings.Split(s, ",") {
		if !slices.Contains(all, T(name)) {
			return nil, fmt.Errorf("there is no %s %q; there are %v", what, name, all)
		}
		some = append(some, T(name))
	}
	return some, nil
}

// Options says what to run. A zero field means its default where it names one.
type Options struct {
	Kernel, Initrd string // of the guests; the initrd is the one whose init is integration/guest/peer
	Cmdline        string // more words for the guests' kernel
	Disk           string // the server's, of integration/guest/mkdata
	QEMU           string // its program, for the programs QEMU and Vhost

	Programs  []Program // nil for Auto, Never, QEMU, and Vhost where the host has it
	Ways      []Way     // nil for all
	Readings  []Reading // nil for all
	Readers   int       // guests that read the same files; 0 for 4
	Rounds    int       // of each way, after one that does not count; 0 for 4
	Bytes     int       // of a stream and of the file in memory, at most the file on the disk; 0 for 16 MiB
	Exchanges int       // of messages; 0 for 1000
	Memory    uint64    // of each guest, in bytes; 0 for 384 MiB

	Timeout  time.Duration // of all ways together, and of each reading; 0 for half an hour
	Emulated bool          // this host is: a run in which a guest is lost is done once more
	Progress io.Writer     // what is being done; nil for nothing

	Resume *Results             // what there is already and is not measured again; nil for nothing
	Keep   func(*Results) error // called after each way and reading; nil for nothing
}

const vhostDevice = "/dev/vhost-net"

// FileSize is that of the file on the disk, in bytes: mkdata's default.
const FileSize = 64 << 20

// Check returns everything that is wrong with o.
func (o Options) Check() error { return errors.Join(o.complete()...) }

// complete fills in the defaults and returns everything that is wrong.
func (o *Options) complete() []error {
	var problems []error
	bad := func(format string, a ...any) { problems = append(problems, fmt.Errorf(format, a...)) }
	if o.Programs == nil {
		o.Programs = []Program{Auto, Never, QEMU}
		if _, err := os.Stat(vhostDevice); err == nil {
			o.Programs = append(o.Programs, Vhost)
		}
	}
	if o.Ways == nil {
		o.Ways = Ways
	}
	if o.Readings == nil {
		o.Readings = Readings
	}
	o.Readers = cmp.Or(o.Readers, 4)
	o.Rounds = cmp.Or(o.Rounds, 4)
	o.Bytes = cmp.Or(o.Bytes, 16<<20)
	o.Exchanges = cmp.Or(o.Exchanges, 1000)
	o.Memory = cmp.Or(o.Memory, 384<<20)
	o.Timeout = cmp.Or(o.Timeout, 30*time.Minute)
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Readers < 1 || o.Readers > 16 {
		bad("readers %d: use 1 to 16", o.Readers)
	}
	if o.Bytes < 1<<20 || o.Bytes > FileSize {
		bad("bytes %d: use 1 to %d MiB", o.Bytes, FileSize>>20)
	}
	return problems
}

// Benchmark runs what o asks for. What fails does not stop the rest: the results it
// returns with an error are those of the runs that were completed. It needs root: for
// KVM's tracepoints, and for taps.
func Benchmark(ctx context.Context, o Options) (*Results, error) {
	if problems := o.complete(); len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	counters, err := exits.Open()
	if err != nil {
		return nil, err
	}
	defer counters.Close()
	r := &Results{Memory: o.Memory, Bytes: o.Bytes, Exchanges: o.Exchanges, Readers: o.Readers}
	if was := o.Resume; was != nil && was.Memory == r.Memory && was.Bytes == r.Bytes && was.Exchanges == r.Exchanges && was.Readers == r.Readers {
		r = was
		r.without(o.Programs)
		r.Retried = append(r.Retried, "what ran the benchmark came to an end; gone on with what there was")
	}
	var failed []error
	if len(o.Programs) > 0 && slices.ContainsFunc(o.Ways, func(w Way) bool { return !r.has(o.Programs, w) }) {
		failed = append(failed, o.try(ctx, "streams and messages", r, func(ctx context.Context) error { return o.measure(ctx, r, counters) }))
	}
	for _, how := range o.Readings {
		if r.reading(how) != nil {
			continue
		}
		err := o.try(ctx, string(how), r, func(ctx context.Context) error {
			row, err := o.readers(ctx, how)
			if err == nil {
				r.Files = append(r.Files, row)
				err = o.keep(r)
			}
			return err
		})
		failed = append(failed, err)
	}
	return r, errors.Join(failed...)
}

func (o *Options) keep(r *Results) error {
	if o.Keep == nil {
		return nil
	}
	return o.Keep(r)
}

func (o *Options) say(format string, a ...any) {
	fmt.Fprintf(o.Progress, "bench: "+format+"\n", a...)
}

// try runs something within the time, and in emulation once more if it was lost.
func (o *Options) try(ctx context.Context, name string, r *Results, run func(context.Context) error) error {
	for try := 1; ctx.Err() == nil; try++ {
		o.say("%s", name)
		began := time.Now()
		within, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not done after %v", o.Timeout))
		err := run(within)
		cancel()
		// What one run has left behind is none of the next one's.
		runtime.GC()
		debug.FreeOSMemory()
		switch {
		case err == nil:
			o.say("%s: %v in all", name, time.Since(began).Round(time.Second))
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !o.Emulated || try == 2:
			return fmt.Errorf("%s: %w", name, err)
		}
		o.say("%s: %v; once more", name, err)
		r.Retried = append(r.Retried, fmt.Sprintf("%s: %v", name, err))
	}
	return context.Cause(ctx)
}

// The network of the guests. A segment's first address is its own, and the next are
// its guests', in the order of their making: others it would not let through.
const (
	network       = "10.77.0."
	serverAddress = network + "2"
)

var subnet = netip.MustParsePrefix(network + "0/24")

// address is that of a client, counted from 0.
func address(i int) string { return network + strconv.Itoa(3+i) }

func (o *Options) serverWords() string {
	return fmt.Sprintf("%s disco.task=serve disco.address=%s disco.bytes=%d", o.Cmdline, serverAddress, o.Bytes)
}

func (o *Options) clientWords() string {
	return fmt.Sprintf("%s disco.task=measure disco.address=%s disco.server=%s disco.bytes=%d disco.exchanges=%d disco.file=%d disco.ram=%d",
		o.Cmdline, address(0), serverAddress, o.Bytes, o.Exchanges, FileSize, o.Bytes)
}

var pageSize = uint64(os.Getpagesize())
