package main

import (
	"context"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"disco/host"
	"disco/integration/bench/locality"
	"disco/integration/lab"
	"disco/numa"
	"disco/vmm"
)

// guest is what the commands use of a *vmm.Guest.
type guest interface {
	Run(context.Context) (vmm.Outcome, error)
	Kill(reason string)
	ResizeConsole(cols, rows uint16)
	Report() vmm.Report
	NUMAStats() (vmm.NUMAStats, bool)
	Close() error
}

// monitor is what the commands use of a *vmm.Monitor.
type monitor interface {
	New(vmm.Config) (guest, error)
	Live() []vmm.Live
	Scheduling() vmm.Scheduling
	SetTickets(name string, n int64) (bool, error)
	Segments() []vmm.SegmentStats
	FolderStats() []vmm.GuestFolder
	Capture(segment string, see func(t time.Time, bufs [][]byte)) (stop func(), ok bool)
	Close() error
}

// realMonitor is a monitor of this machine.
type realMonitor struct{ *vmm.Monitor }

func (m realMonitor) New(c vmm.Config) (guest, error) { return m.Monitor.New(c) }

func newMonitor(c vmm.MonitorConfig) (monitor, error) {
	m, err := vmm.NewMonitor(c)
	return realMonitor{m}, err
}

// world is what the commands stand on; tests put another in its place.
type world struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	executable  func() (string, error)
	getenv      func(string) string
	guests      func() []host.Finding // can guests run on this host's KVM
	findings    func() []host.Finding // everything about this host
	labMissing  func() []error        // what the lab lacks
	newMonitor  func(vmm.MonitorConfig) (monitor, error)
	controlDir  func() (string, error) // of this user's control sockets
	runLab      func(context.Context, lab.Options) (int, error)
	topology    func() (*numa.Topology, error)
	benchNUMA   func(context.Context, locality.Options) (*locality.Results, error)
	measureActs func(*numa.Topology, []numa.Node) ([]locality.Cost, error)
}

// here is this process on this machine.
func here() *world {
	h := host.Here()
	return &world{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		executable:  os.Executable,
		getenv:      os.Getenv,
		guests:      h.Guests,
		findings:    h.Check,
		labMissing:  lab.Prerequisites,
		newMonitor:  newMonitor,
		controlDir:  controlDir,
		runLab:      lab.Run,
		topology:    func() (*numa.Topology, error) { return numa.Read(os.DirFS("/")) },
		benchNUMA:   locality.Benchmark,
		measureActs: locality.MeasureActs,
	}
}

// execute runs one command line and returns the exit code.
func execute(w *world, args []string) int {
	root := newRoot(w)
	root.SetArgs(args)
	err := root.Execute()
	explain(w.stderr, err)
	return exitCode(err)
}

const rootLong = `disco boots Linux guests on KVM.

    disco run            boots a Debian guest; on a terminal it ends in a shell
    disco up FILE        boots the guests that a file describes, in one process
    disco top            shows what running guests do
    disco stats          shows what passes between them on segments
    disco check          says what this machine can do, and how to mend what not
    disco lab -- make    runs a command on an emulated machine with NUMA nodes

Where this machine's KVM cannot run a stock kernel, or there is none, guests run
in the lab, by the same command.`

const exitCodes = `Exit codes:
  0    the guest powered off, or you ended it
  1    the guest crashed: a panic, a triple fault, or KVM gave up on it
  2    the command line is wrong; all that is wrong with it is said at once
  3    this host cannot: it lacks something, or forbids it
  124  the guest was still running after --timeout
A guest that writes V to the debug-exit port (0x501 or 0xf4) ends with 2V+1.`

func newRoot(w *world) *cobra.Command {
	root := &cobra.Command{
		Use:           "disco",
		Short:         "Boot Linux guests on KVM",
		Long:          rootLong + "\n\n" + exitCodes,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		Run:           func(c *cobra.Command, _ []string) { _ = c.Help() },
	}
	root.SetIn(w.stdin)
	root.SetOut(w.stdout)
	root.SetErr(w.stderr)
	root.AddGroup(
		&cobra.Group{ID: "guests", Title: "Guests:"},
		&cobra.Group{ID: "machine", Title: "This machine:"},
		&cobra.Group{ID: "program", Title: "This program:"},
	)
	root.SetHelpCommandGroupID("program")
	root.SetCompletionCommandGroupID("program")
	for group, commands := range map[string][]*cobra.Command{
		"guests":  {newRun(w).command(), upCommand(w), topCommand(w), statsCommand(w), ticketsCommand(w), captureCommand(w)},
		"machine": {labCommand(w), checkCommand(w), benchCommand(w)},
		"program": {versionCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	const width = " .LocalFlags.FlagUsagesWrapped 80 "
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".LocalFlags.FlagUsages ", width))
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	mark(root)
	return root
}

// mark makes every complaint about flags and arguments a usageError.
func mark(c *cobra.Command) {
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{err, c.CommandPath()}
	})
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return &usageError{err, c.CommandPath()}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		mark(sub)
	}
}
