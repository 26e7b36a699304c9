package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"disco/compose"
	"disco/integration/lab"
	"disco/memory"
	"disco/numa"
	"disco/numa/balance"
	"disco/vmm"
)

// run is one `disco run`.
type run struct {
	*world
	cfg     vmm.Config
	monitor vmm.MonitorConfig
	where   string // auto, here or lab
	root    rootImage
	share   vmm.ShareMode
	outside outside
	report  string // path, or empty
	stats   time.Duration
	verbose bool
	count   int // of guests with these flags

	shell    bool // somebody will be at the console
	noNet    bool
	problems []error // with the flags' texts
}

const runLong = `run boots a Linux guest, and returns when it is gone.

Without --kernel it boots the default guest, a Debian kernel with a small
userspace that ` + "`make guest`" + ` fetched. On a terminal that guest ends in a shell;
elsewhere it says what it sees of its machine and powers off. Without any
arguments, run also prints the full command line that it stands for.

On a terminal all keys go to the guest, Ctrl-c too. Ctrl-a x leaves: it ends the
guest at once. Ctrl-a a sends one Ctrl-a. SIGINT, SIGTERM and SIGHUP press the
guest's power button; it is killed if it is still there after --grace, or at a
second signal.

The guest's machine has virtio disks, networks, console, entropy and vsock, an
8250, and ACPI. Disks are raw or qcow2 images, and are written in place.`

const runExample = `  disco run
  disco run --kernel vmlinuz --initrd initrd.img --disk disk.img --cmdline root=/dev/vda
  disco run --net user,forward=tcp:8080:80 --memory 2G --cpus 4
  disco run --root debian.qcow2 --persist changes.qcow2 --cloud-init user-data
  disco run --guests 2 --net segment=lan0 --segment lan0,uplink=user
  disco run --timeout 60s --report boot.json </dev/null`

// newRun is a run with the defaults of the flags.
func newRun(w *world) *run {
	return &run{world: w, where: "auto", count: 1, cfg: vmm.Config{
		CPUs: min(2, runtime.NumCPU()), Memory: 512 << 20, Grace: vmm.DefaultGrace,
		NUMA: vmm.NUMA{Balance: balance.Default()},
	}}
}

// command is the command whose flags fill r.
func (r *run) command() *cobra.Command {
	c := &cobra.Command{
		Use:     "run [flags]",
		Short:   "Boot a Linux guest",
		Long:    runLong + "\n\n" + exitCodes,
		Example: runExample,
		Args:    noWords,
		RunE: func(c *cobra.Command, _ []string) error {
			r.cfg.NUMA.Lenient = lenient(c.Flags())
			return r.start(c.Context(), c.Flags().NFlag() == 0)
		},
	}
	r.flags(c)
	return c
}

// lenient says that who names neither nodes nor a policy takes what the host can do.
func lenient(f *pflag.FlagSet) bool { return !f.Changed("numa") && !f.Changed("placement") }

// noWords refuses arguments that are no flags.
func noWords(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%q is not a flag; kernels, disks and all else are named by flags", args[0])
	}
	return nil
}

func (r *run) flags(c *cobra.Command) {
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&r.cfg.Kernel, "kernel", "", "boot the kernel in `FILE`, a bzImage or an ELF vmlinux (default: the default guest's)")
	f.StringVar(&r.cfg.Initrd, "initrd", "", "give the kernel the initrd in `FILE` (default: the default guest's, without --kernel)")
	f.StringVar(&r.cfg.Cmdline, "cmdline", "", "add `WORDS` to the kernel command line, after disco's own")
	f.BoolVar(&r.cfg.CmdlineOnly, "cmdline-only", false, "leave disco's own words out of the kernel command line")
	f.BoolVar(&r.cfg.KASLR, "kaslr", false, "run the kernel's own decompressor, which can randomize its address; slower")
	f.Var(parsed("cpus", "N", strconv.Itoa(r.cfg.CPUs), &r.cfg.CPUs, parseCount, &r.problems), "cpus",
		fmt.Sprintf("number of CPUs, 1 to %d", vmm.MaxCPUs))
	f.Var(parsed("memory", "SIZE", formatSize(r.cfg.Memory), &r.cfg.Memory, parseSize, &r.problems), "memory",
		"memory, such as 512M or 2G; K, M, G and T are powers of 1024, and no letter is bytes")
	f.Var(r.list("disk", diskForm, r.addDisk), "disk", diskHelp)
	r.imageFlags(f)
	r.shareFlags(f)
	f.Var(r.list("net", "NETWORK", r.addNet), "net",
		"a network: user, where the guest can reach what this process can, with user,forward=tcp:8080:80 to carry connections "+
			"to port 8080 here (of 127.0.0.1, or tcp:ADDRESS:8080:80) to port 80 of the guest, as often as needed; "+
			"tap=NAME, a tap interface of this host, with tap=NAME,bridge=BRIDGE to put it on a bridge (needs CAP_NET_ADMIN); "+
			"segment=NAME, a network of guests of the same process, where they have addresses and find each other by name, with options: mac=MAC (default one "+
			"by the guest's name), mtu=N, the segment's largest IP packet, map=auto, always or never, whether pages that others send are mapped into the guest "+
			"and not copied, rate=SIZE, so many bytes a second that it may send, and guard=off, it may send from other addresses than its own; "+
			"or none. Again for the next network (default user)")
	f.Var(r.list("share", folderForm, r.addFolder), "share", folderHelp)
	f.Var(r.list("segment", segmentForm, r.addSegment), "segment", segmentHelp)
	f.Var(parsed("console", "DEVICE", "virtio", &r.cfg.Console, parseConsole, &r.problems), "console",
		"the guest's console: virtio (hvc0), or serial (ttyS0), which is slower and works without any driver")
	f.Var(parsed("placement", "WHERE", "auto", &r.cfg.NUMA.Placement, parsePlacement, &r.problems), "placement",
		"the NUMA nodes to run on: auto, which is one node if the guest fits there and the fewest that hold it otherwise; node=0; "+
			"nodes=0,1; or interleave, all nodes, with memory spread page by page")
	f.Var(parsed("numa", "POLICY", "full", &r.cfg.NUMA.Balance, parseBalance, &r.problems), "numa",
		"what becomes of pages that another node uses: off, migrate, replicate, or full, which is both. Thresholds may follow, as in "+
			"full,max-moves=2; they are "+thresholdsHelp())
	f.Var(parsed("huge", "PAGES", "thp", &r.cfg.NUMA.Huge, parseHuge, &r.problems), "huge",
		"memory in pages of 4 KiB (off), of 2 MiB where the kernel has them to give (thp; not for a guest that shares pages on one node), or all of it in pages of 2 MiB from the beginning (2M)")
	f.Var(parsed("fake-nodes", "N", "", &r.cfg.NUMA.FakeNodes, parseFake, &r.problems), "fake-nodes",
		fmt.Sprintf("split one node of this host into N, 1 to %d, to try what needs several; nothing gets faster by it", numa.MaxFake))
	r.schedulerFlags(f)
	f.StringVar(&r.cfg.Vsock, "vsock", "", "make a UNIX socket at `PATH` that reaches the guest's vsock: connect, write \"CONNECT PORT\\n\", read \"OK PORT\\n\"")
	f.StringVar(&r.cfg.Name, "name", "", "call the guest `NAME` in messages and in the process's memory map")
	f.Var(parsed("guests", "N", "", &r.count, parseCount, &r.problems), "guests",
		fmt.Sprintf("boot so many such guests in one process, 1 to %d, named guest-1, guest-2, … or after --name; their lines come after their names, "+
			"and nothing is typed at them (see disco up, for guests that differ)", compose.MaxGuests))
	f.Var(parsed("timeout", "DURATION", "", &r.cfg.Timeout, parseDuration, &r.problems), "timeout",
		"kill the guest after a time such as 90s or 5m, and exit with 124; counted from its first instruction (default never)")
	f.Var(parsed("grace", "DURATION", r.cfg.Grace.String(), &r.cfg.Grace, parseDuration, &r.problems), "grace",
		"how long the guest may take to power off after its power button was pressed")
	f.StringVar(&r.report, "report", "", "write to `FILE`, as JSON, how the guest ended, its last lines if it crashed, times, and counts of exits")
	f.Var(parsed("stats-interval", "DURATION", "", &r.stats, parseDuration, &r.problems), "stats-interval",
		"print a line that often, such as 1s: share of local accesses, pages and copies on each node, moves, faults and relayed interrupts (default never)")
	r.outside.flags(f, &r.problems)
	f.Var(parsed("host", "HOST", r.where, &r.where, parseWhere, &r.problems), "host",
		"where to run: here, in the lab, or auto, which is here if this host's KVM runs stock kernels and the lab otherwise")
	f.BoolVarP(&r.verbose, "verbose", "v", false, "log what the monitor does, and say at the end what the run took")

	for name, choices := range map[string][]cobra.Completion{
		"console":    {"virtio\thvc0", "serial\tttyS0"},
		"host":       hostChoices,
		"net":        {"user\tno rights needed", "tap=\ta tap interface", "segment=\ta network of guests", "none"},
		"segment":    nil,
		"disk-share": shareChoices, "cache-size": nil,
		"scheduler": {"stride\tby tickets", "lottery\tby drawing lots", "host\tas the host likes"},
		"tickets":   nil, "group": nil, "cpu-limit": nil, "quantum": nil, "cpus-host": nil,
		"cpus": nil, "guests": nil, "memory": nil, "timeout": nil, "grace": nil, "name": nil, "cmdline": nil,
	} {
		// It fails only for a flag that does not exist.
		if err := c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err)
		}
	}
}

// hostChoices are those of --host.
var hostChoices = []cobra.Completion{"auto\there if possible", "here\tthis host's KVM", "lab\tan emulated host"}

// list is a flag that may be given again.
func (r *run) list(name, kind string, add func(string) error) *value {
	return &value{name: name, kind: kind, set: add, again: true, problems: &r.problems}
}

func (r *run) addDisk(s string) error {
	d, err := parseDisk(s)
	if err == nil {
		r.cfg.Disks = append(r.cfg.Disks, d)
	}
	return err
}

func (r *run) addNet(s string) error {
	n, err := parseNet(s)
	switch {
	case err != nil:
		return err
	case n == nil:
		r.noNet = true
	default:
		r.cfg.Nets = append(r.cfg.Nets, *n)
	}
	if r.noNet && len(r.cfg.Nets) > 0 {
		return errors.New("none goes with no other network")
	}
	return nil
}

func parseCount(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, errors.New("not a number")
	}
	return n, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("not a duration; write one like 90s or 5m")
	}
	return d, nil
}

func parseConsole(s string) (vmm.Console, error) {
	switch s {
	case "virtio":
		return vmm.ConsoleVirtio, nil
	case "serial":
		return vmm.ConsoleSerial, nil
	}
	return 0, errors.New("there are virtio and serial")
}

func parseWhere(s string) (string, error) {
	if s != "auto" && s != "here" && s != "lab" {
		return "", errors.New("there are auto, here and lab")
	}
	return s, nil
}

// start fills in what was not given, checks everything, and runs the guest.
// bare is a command line without flags.
func (r *run) start(ctx context.Context, bare bool) error {
	if r.count != 1 {
		r.world = unattended(r.world)
	}
	absent := r.fill()
	if err := r.check(absent); err != nil {
		return err
	}
	if bare {
		fmt.Fprintln(r.stderr, "disco:", quote(append([]string{"disco", "run"}, r.args(r.where)...)))
	}
	inLab, err := r.place(r.where)
	if err != nil {
		return err
	}
	if inLab {
		return r.inLab(ctx)
	}
	if r.count > 1 {
		return r.fleet().here(ctx)
	}
	return r.here(ctx)
}

// fill puts the default guest and network in cfg. The error says that the
// default guest is needed and absent.
func (r *run) fill() error {
	if r.getenv(lab.InLab) != "" && !r.cfg.CmdlineOnly {
		// docs/decisions/004-ticks-in-the-lab.md
		r.cfg.Cmdline = strings.TrimSpace("nohz=off " + r.cfg.Cmdline)
	}
	if len(r.cfg.Nets) == 0 && !r.noNet {
		r.cfg.Nets = []vmm.Net{{Kind: vmm.NetUser}}
	}
	r.fillRoot()
	r.fillShare()
	if r.cfg.Kernel != "" || r.cfg.FromDisk {
		return nil
	}
	kernel, initrd, err := r.defaultGuest()
	if err != nil {
		return err
	}
	r.cfg.Kernel = kernel
	if r.cfg.Initrd == "" {
		r.cfg.Initrd = initrd
		if !r.cfg.CmdlineOnly {
			r.cfg.Cmdline = strings.TrimSpace(r.defaultWords() + " " + r.cfg.Cmdline)
		}
	}
	return nil
}

// defaultWords are what the default guest is told. Its kernel's messages are of
// no interest to who only wants a guest, errors that its drivers get over
// included; a loglevel given by --cmdline comes later, and counts.
func (r *run) defaultWords() string {
	const words = "quiet loglevel=3"
	if r.shell || r.onTerminal() {
		return words + " disco.shell"
	}
	return words
}

// check reports all that is wrong with the command line together.
func (r *run) check(absent error) error {
	problems := r.problems
	if ce, ok := errors.AsType[*vmm.ConfigError](r.cfg.Validate()); ok {
		for _, p := range ce.Problems {
			if absent != nil && errors.Is(p, vmm.ErrNoKernel) {
				p = &vmm.HostError{Err: absent}
			}
			problems = append(problems, p)
		}
	}
	if ce, ok := errors.AsType[*vmm.ConfigError](r.monitor.Scheduler.Validate()); ok {
		problems = append(problems, ce.Problems...)
	}
	problems = append(problems, wrongSegments(r.monitor.Segments)...)
	if r.stats < 0 {
		problems = append(problems, fmt.Errorf("stats interval %v: it must not be negative", r.stats))
	}
	if err := checkReport(r.report); err != nil {
		problems = append(problems, err)
	}
	switch {
	case r.count < 1 || r.count > compose.MaxGuests:
		problems = append(problems, fmt.Errorf("guests %d: give a number from 1 to %d", r.count, compose.MaxGuests))
	case r.count > 1:
		problems = append(problems, r.fleet().conflicts()...)
	}
	if problems != nil {
		return &vmm.ConfigError{Problems: problems}
	}
	return nil
}

// fleet is the guests of --guests.
func (r *run) fleet() *fleet {
	f := &fleet{world: r.world, monitor: r.monitor, outside: r.outside, report: r.report, stats: r.stats, verbose: r.verbose}
	for i := range r.count {
		one := *r
		one.cfg.Name = fmt.Sprintf("%s-%d", cmp.Or(r.cfg.Name, "guest"), i+1)
		f.members = append(f.members, &member{run: &one})
	}
	return f
}

// checkReport looks whether a report can be written to path in the end.
func checkReport(path string) error {
	if path == "" {
		return nil
	}
	target := path
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return fmt.Errorf("report %s: it is a directory; name a file", path)
	case errors.Is(err, fs.ErrNotExist):
		target = filepath.Dir(path)
	}
	if err := unix.Access(target, unix.W_OK); err != nil {
		return fmt.Errorf("report %s: this user cannot write it (%w)", path, err)
	}
	return nil
}

// args is the command line that stands for r, everything said.
func (r *run) args(where string) []string {
	c := &r.cfg
	var a []string
	add := func(given bool, words ...string) {
		if given {
			a = append(a, words...)
		}
	}
	add(c.Kernel != "", "--kernel", c.Kernel)
	add(c.Initrd != "", "--initrd", c.Initrd)
	add(c.Cmdline != "", "--cmdline", c.Cmdline)
	add(c.CmdlineOnly, "--cmdline-only")
	add(c.KASLR, "--kaslr")
	add(true, "--cpus", strconv.Itoa(c.CPUs), "--memory", formatSize(c.Memory))
	add(r.root.disk.Path != "", "--root", formatDisk(r.root.disk))
	add(r.root.persist != "", "--persist", r.root.persist)
	for _, d := range r.given() {
		add(true, "--disk", formatDisk(d))
	}
	add(c.CloudInit != "", "--cloud-init", c.CloudInit)
	add(r.share != vmm.ShareAuto, "--disk-share", shareModes[r.share])
	add(r.monitor.CacheSize != 0, "--cache-size", formatSize(r.monitor.CacheSize))
	for _, n := range c.Nets {
		add(true, "--net", formatNet(n))
	}
	add(len(c.Nets) == 0, "--net", "none")
	for _, s := range c.Folders {
		add(true, "--share", formatFolder(s))
	}
	for i := range r.monitor.Segments {
		add(true, "--segment", formatSegment(&r.monitor.Segments[i]))
	}
	add(c.Console == vmm.ConsoleSerial, "--console", "serial")
	add(c.NUMA.Placement.Kind != vmm.PlaceAuto, "--placement", formatPlacement(c.NUMA.Placement))
	add(!c.NUMA.Lenient, "--numa", formatBalance(c.NUMA.Balance))
	add(c.NUMA.Huge != memory.HugeTHP, "--huge", formatHuge(c.NUMA.Huge))
	add(c.NUMA.FakeNodes != 0, "--fake-nodes", strconv.Itoa(c.NUMA.FakeNodes))
	a = append(a, r.schedulerArgs()...)
	add(c.Vsock != "", "--vsock", c.Vsock)
	add(c.Name != "", "--name", c.Name)
	add(r.count != 1, "--guests", strconv.Itoa(r.count))
	add(c.Timeout != 0, "--timeout", c.Timeout.String())
	add(c.Grace != vmm.DefaultGrace, "--grace", c.Grace.String())
	add(r.report != "", "--report", r.report)
	add(r.stats != 0, "--stats-interval", r.stats.String())
	add(true, r.outside.args()...)
	add(r.verbose, "--verbose")
	add(true, "--host", where)
	return a
}
