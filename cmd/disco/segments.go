package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"disco/control"
	"disco/net/capture"
	"disco/net/segment"
	"disco/vmm"
)

// Segments makes source a control.Source.
func (s *source) Segments() []control.Segment {
	all := []control.Segment{}
	for _, g := range s.monitor.Segments() {
		all = append(all, segmentOf(&g))
	}
	return all
}

func segmentOf(s *vmm.SegmentStats) control.Segment {
	c := control.Segment{Name: s.Name, MTU: s.MTU, Subnet: s.Subnet.String(), Address: s.Address.String(), Uplink: "none", Ports: []control.Port{}}
	switch s.Uplink {
	case vmm.UplinkUser:
		c.Uplink = "user"
	case vmm.UplinkTap:
		c.Uplink = "tap=" + s.Tap
	}
	for i := range s.Stats.Ports {
		c.Ports = append(c.Ports, portOf(&s.Stats.Ports[i], false))
	}
	for i := range s.Stats.Stations {
		c.Ports = append(c.Ports, portOf(&s.Stats.Stations[i], true))
	}
	return c
}

func portOf(p *segment.PortStats, station bool) control.Port {
	traffic := func(t segment.Traffic) control.Traffic { return control.Traffic(t) }
	return control.Port{
		Name: p.Name, Station: station,
		Sent: traffic(p.Sent), Received: traffic(p.Received), Eligible: traffic(p.Eligible), Mapped: traffic(p.Mapped),
		Copied: p.Copied, CopiedBy: p.CopiedBy, Dropped: p.Dropped, Waited: p.Waited, Throttled: p.Throttled, Paused: p.Paused,
	}
}

// Capture makes source a control.Source.
func (s *source) Capture(name string, snap int) (control.Capture, error) {
	c := &ongoing{Capture: capture.New(name, snap)}
	stop, ok := s.monitor.Capture(name, c.Frame)
	if !ok {
		return nil, control.ErrNoSegment
	}
	c.stop = stop
	return c, nil
}

// ongoing is a capture of a segment.
type ongoing struct {
	*capture.Capture
	stop func()
}

func (o *ongoing) End() {
	o.stop()
	o.Capture.End()
}

const statsLong = `stats shows the segments of all disco run and disco up of this user, and what passed on
them since each guest came:

  SENT      what the guest sent, and was accepted
  RECEIVED  what the guest was given
  MAPPED    of that, what was mapped into it and not copied
  COPIED    bytes that the monitor copied to it
  PER BYTE  COPIED by RECEIVED: 1.00 where all is copied, once
  WHY       COPIED by the reason (see docs/network.md)
  DROPPED   frames from it or for it that went nowhere, by the reason

and the folders that their guests share, with what was copied to and from them, and
which part of files their windows show now, and have in common with another window
(see docs/folders.md).`

func statsCommand(w *world) *cobra.Command {
	var path string
	var asJSON bool
	c := &cobra.Command{
		Use:     "stats",
		Short:   "Show what passes between guests, and in shared folders",
		Long:    statsLong,
		Example: "  disco stats\n  disco stats --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := w.segments(c.Context(), path)
			if err != nil {
				return err
			}
			if asJSON {
				list := []*control.Segments{}
				for _, s := range all {
					list = append(list, s.Segments)
				}
				e := json.NewEncoder(w.stdout)
				e.SetIndent("", "  ")
				return e.Encode(list)
			}
			printSegments(w.stdout, all)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON: a list with an object for each process")
	controlFlag(c, &path)
	return c
}

// network is what a monitor answered about its segments.
type network struct {
	*control.Segments
	path string // of its socket
}

// segments asks the monitor at path, or all of this user. What is wrong with one of
// several is told.
func (w *world) segments(ctx context.Context, path string) ([]network, error) {
	paths, err := w.sockets(path)
	if err != nil {
		return nil, err
	}
	var all []network
	for _, p := range paths {
		c := control.NewClient(p)
		s, err := c.Segments(ctx)
		c.Close()
		switch {
		case err == nil:
			all = append(all, network{s, p})
		case path != "":
			return nil, &vmm.HostError{Err: err}
		case !control.Gone(err):
			explain(w.stderr, err)
		}
	}
	return all, nil
}

func printSegments(out io.Writer, all []network) {
	none := true
	for _, n := range all {
		for _, s := range n.Segments.Segments {
			if !none {
				fmt.Fprintln(out)
			}
			none = false
			fmt.Fprintf(out, "segment %s of process %d: MTU %d, %s, uplink %s\n", s.Name, n.Monitor.PID, s.MTU, s.Subnet, s.Uplink)
			t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "  PORT\tSENT\tRECEIVED\tMAPPED\tCOPIED\tPER BYTE\tWHY\tDROPPED")
			for i := range s.Ports {
				p := &s.Ports[i]
				perByte := "-"
				if p.Received.Bytes > 0 {
					perByte = strconv.FormatFloat(float64(p.Copied)/float64(p.Received.Bytes), 'f', 2, 64)
				}
				fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, size(p.Sent.Bytes), size(p.Received.Bytes), size(p.Mapped.Bytes),
					size(p.Copied), perByte, reasons(p.CopiedBy, size), reasons(p.Dropped, plainCount))
			}
			t.Flush()
		}
		if len(n.Folders) > 0 && !none {
			fmt.Fprintln(out)
		}
		none = !printFolders(out, n.Monitor.PID, n.Folders) && none
	}
	if none {
		fmt.Fprintln(out, "no process of this user has a segment or a shared folder; guests get one by --net segment=NAME or --share DIR")
	}
}

func size(n uint64) string       { return units.BytesSize(float64(n)) }
func plainCount(n uint64) string { return strconv.FormatUint(n, 10) }

// reasons are counts by reason, the largest first.
func reasons(by map[string]uint64, format func(uint64) string) string {
	names := slices.Collect(maps.Keys(by))
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(by[b], by[a]), cmp.Compare(a, b)) })
	var words []string
	for _, name := range names {
		if by[name] > 0 {
			words = append(words, name+" "+format(by[name]))
		}
	}
	if words == nil {
		return "-"
	}
	return strings.Join(words, ", ")
}

const captureLong = `capture writes what passes on a running segment to FILE, until Ctrl-c or the segment's
end: a pcapng file, which tcpdump and Wireshark read. Frames are as guests sent them,
so TCP segments may be longer than the MTU, and checksums unfinished.

Where segments of several processes have the same name, PID/SEGMENT names one: disco
stats shows the process ids.`

// capturing is one `disco capture`.
type capturing struct {
	*world
	path     string // of a socket, or empty
	file     string
	snap     int
	problems []error
}

func captureCommand(w *world) *cobra.Command {
	p := &capturing{world: w}
	c := &cobra.Command{
		Use:     "capture [flags] SEGMENT",
		Short:   "Write what passes on a segment to a file",
		Long:    captureLong,
		Example: "  disco capture lan0 -w lan0.pcapng\n  disco capture lan0 -w - | tcpdump -n -r -",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%s: give the segment's name", count(len(args), "word"))
			}
			return nil
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			all, _ := w.segments(c.Context(), p.path)
			return segmentNames(all), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			if p.file == "" {
				p.problems = append(p.problems, errors.New("--write names no file; give one, or - for standard output"))
			}
			if p.problems != nil {
				return &vmm.ConfigError{Problems: p.problems}
			}
			return p.run(c.Context(), args[0])
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVarP(&p.file, "write", "w", "", "write to `FILE`, or with - to standard output")
	f.Var(parsed("snap", "N", "", &p.snap, parseSnap, &p.problems), "snap", "no more than N bytes of each frame (default all)")
	noFile(c, "snap")
	controlFlag(c, &p.path)
	return c
}

func parseSnap(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, errors.New("not a number of bytes, 1 or more")
	}
	return n, nil
}

// segmentNames are those of segments, with process ids where several are called the
// same.
func segmentNames(all []network) []string {
	times := map[string]int{}
	for _, n := range all {
		for _, s := range n.Segments.Segments {
			times[s.Name]++
		}
	}
	var list []string
	for _, n := range all {
		for _, s := range n.Segments.Segments {
			if times[s.Name] > 1 {
				list = append(list, n.fullName(s.Name))
			} else {
				list = append(list, s.Name)
			}
		}
	}
	return list
}

func (n *network) fullName(segment string) string {
	return strconv.Itoa(n.Monitor.PID) + "/" + segment
}

// find is the monitor with a segment, and the segment's own name.
func (p *capturing) find(ctx context.Context, name string) (path, segment string, err error) {
	all, err := p.segments(ctx, p.path)
	if err != nil {
		return "", "", err
	}
	var paths, full []string
	for _, n := range all {
		for _, s := range n.Segments.Segments {
			if name == s.Name || name == n.fullName(s.Name) {
				paths, full, segment = append(paths, n.path), append(full, n.fullName(s.Name)), s.Name
			}
		}
	}
	switch len(paths) {
	case 1:
		return paths[0], segment, nil
	case 0:
		return "", "", &usageError{err: errors.New(control.NoSegment(name, segmentNames(all)))}
	}
	return "", "", &usageError{err: fmt.Errorf("segments of %d processes are called %s: name one of %s", len(paths), name, strings.Join(full, ", "))}
}

func (p *capturing) run(ctx context.Context, name string) (err error) {
	path, segment, err := p.find(ctx, name)
	if err != nil {
		return err
	}
	out := p.stdout
	if p.file != "-" {
		f, err := os.Create(p.file)
		if err != nil {
			return &vmm.HostError{Err: fmt.Errorf("capture: %w", err)}
		}
		defer func() {
			if e := f.Close(); e != nil && err == nil {
				err = &vmm.HostError{Err: fmt.Errorf("capture: %w", e)}
			}
		}()
		out = f
	} else if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &usageError{err: errors.New("standard output is a terminal; give a file, or a pipe such as | tcpdump -r -")}
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	c := control.NewClient(path)
	defer c.Close()
	in, err := c.Capture(ctx, segment, p.snap)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return &vmm.HostError{Err: err}
	}
	defer in.Close()
	fmt.Fprintf(p.stderr, "disco: capturing %s\n", segment)
	n, err := capture.Copy(out, in)
	fmt.Fprintf(p.stderr, "disco: %s captured, %d more were too fast\n", count(int(n.Frames), "frame"), n.Dropped)
	if err != nil && ctx.Err() == nil {
		return &vmm.HostError{Err: fmt.Errorf("capture: %w", err)}
	}
	return nil
}
