package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"disco/compose"
	"disco/vmm"
)

// fleet is guests that run together in one monitor.
type fleet struct {
	*world
	members    []*member
	monitor    vmm.MonitorConfig
	outside    outside
	consoleDir string // or empty
	report     string // path, or empty
	stats      time.Duration
	verbose    bool
	problems   []error // with the flags' texts

	mu  sync.Mutex
	bad *member // the first that ended badly
}

// member is one guest of a fleet.
type member struct {
	run   *run           // holds its Config
	file  string         // that describes it, or empty
	entry *compose.Guest // of the file, or nil
	pty   bool           // its console is a terminal of its own

	guest   guest
	console console
	outcome vmm.Outcome
	err     error // the host's
	took    time.Duration
	report  vmm.Report
}

func (m *member) name() string { return m.run.cfg.Name }

// unattended is w without anybody who could type.
func unattended(w *world) *world {
	c := *w
	c.stdin = nil
	return &c
}

// problem is err with its place in the file, or with the guest's name.
func (m *member) problem(at compose.Pos, err error) error {
	if m.entry == nil {
		return fmt.Errorf("guest %s: %w", m.name(), err)
	}
	return &compose.Problem{Path: m.file, Pos: at, Err: err}
}

// check finds what is wrong besides the guests.
func (f *fleet) check() []error {
	var problems []error
	if f.stats < 0 {
		problems = append(problems, fmt.Errorf("stats interval %v: it must not be negative", f.stats))
	}
	if err := checkReport(f.report); err != nil {
		problems = append(problems, err)
	}
	if f.consoleDir != "" {
		st, err := os.Stat(f.consoleDir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
			problems = append(problems, fmt.Errorf("console folder %s: it is not a folder", f.consoleDir))
		}
	}
	return problems
}

// claim is something of the host that one guest has, or several to read.
type claim struct {
	noun  string // of the Config's field
	what  string
	id    string // who claims the same has the same
	write bool
	mend  string
}

// claims are those of a guest whose Config may be wrong.
func claims(c *vmm.Config) []claim {
	const own = "give each its own"
	var all []claim
	for _, d := range c.Disks {
		// Links are the same file, and no file is another problem.
		if id, err := filepath.EvalSymlinks(d.Path); err == nil {
			all = append(all, claim{"disk", d.Path, id, !d.ReadOnly && d.Overlay == vmm.OverlayNone, "give it with ,ro to all, or each its own"})
		}
		if d.Persist != "" {
			all = append(all, claim{"persist", d.Persist, filepath.Clean(d.Persist), true, own})
		}
	}
	for _, n := range c.Nets {
		if n.Tap != "" {
			all = append(all, claim{"net", "tap=" + n.Tap, n.Tap, true, own})
		}
		if n.Kind == vmm.NetSegment && n.MAC != [6]byte{} {
			all = append(all, claim{"net", formatNet(n), n.Segment + string(n.MAC[:]), true, own})
		}
		for _, fw := range n.Forwards {
			addr := cmp.Or(fw.HostAddr, "127.0.0.1")
			all = append(all, claim{"net", "forward=" + fw.String(), fmt.Sprint(fw.Proto, addr, fw.HostPort), true, own})
		}
	}
	if c.Vsock != "" {
		all = append(all, claim{"vsock", c.Vsock, filepath.Clean(c.Vsock), true, own})
	}
	return all
}

// conflicts are what several guests would have and only one can.
func (f *fleet) conflicts() []error {
	type holder struct {
		m *member
		claim
	}
	held := map[string]holder{}
	told := map[string]bool{}
	var problems []error
	for _, m := range f.members {
		for _, c := range claims(&m.run.cfg) {
			key := c.noun + " " + c.id
			before, ok := held[key]
			if !ok || c.write && !before.write {
				held[key] = holder{m, c}
			}
			if !ok || before.m == m || !c.write && !before.write || told[key] {
				continue
			}
			told[key] = true
			mend := c.mend
			if m.entry != nil && m.entry == before.m.entry {
				mend += " ({n} in a value is the replica's number)"
			}
			err := fmt.Errorf("%s %s: guests %s and %s cannot both have it; %s", c.noun, c.what, before.m.name(), m.name(), mend)
			at := compose.Pos{}
			if m.entry != nil {
				at = m.find(err.Error())
			}
			problems = append(problems, m.problem(at, err))
		}
	}
	return append(problems, f.mtuConflicts()...)
}

// here runs the fleet on this host's KVM. All guests are built before the first
// one runs.
func (f *fleet) here(ctx context.Context) (err error) {
	f.monitor.Log = f.logger(f.verbose)
	monitor, err := f.newMonitor(f.monitor)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, monitor.Close()) }()
	if err := f.build(monitor); err != nil {
		return err
	}
	hide, err := f.outside.open(f.world, monitor, f.monitor.Log)
	if err != nil {
		for _, m := range f.members {
			err = errors.Join(err, m.close())
		}
		return err
	}
	defer hide()
	ctx, stop := f.watchSignals(ctx, "all power buttons are pressed; a second signal kills the guests", f.kill)
	defer stop()
	var all sync.WaitGroup
	for _, m := range f.members {
		all.Go(func() { f.live(ctx, m) })
	}
	all.Wait()
	f.tell()
	if f.report != "" {
		reports := make([]vmm.Report, len(f.members))
		for i, m := range f.members {
			reports[i] = m.report
		}
		if err := writeReport(f.report, reports); err != nil {
			return err
		}
	}
	return f.ending()
}

// build makes all consoles and guests, or none: its error is all that is wrong.
func (f *fleet) build(monitor monitor) error {
	if f.consoleDir != "" {
		if err := os.MkdirAll(f.consoleDir, 0o777); err != nil {
			return &vmm.HostError{Err: fmt.Errorf("console folder: %w", err)}
		}
	}
	screen := newScreen(f.stdout, f.members, f.getenv("NO_COLOR") != "")
	log := f.logger(f.verbose)
	var problems []error
	told := map[string]bool{}
	for i, m := range f.members {
		err := m.build(monitor, func() (console, error) { return f.open(screen, i) }, func(c *vmm.Config) {
			c.Log = log.With("guest", m.name())
		})
		for _, err := range each(err) {
			// Replicas have the same trouble.
			if !told[err.Error()] {
				told[err.Error()] = true
				problems = append(problems, m.trouble(err))
			}
		}
	}
	if problems == nil {
		return nil
	}
	for _, m := range f.members {
		problems = append(problems, each(m.close())...)
	}
	return &vmm.ConfigError{Problems: problems}
}

// each takes a ConfigError apart.
func each(err error) []error {
	if ce, ok := errors.AsType[*vmm.ConfigError](err); ok {
		return ce.Problems
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// trouble is an error from building the guest, with its place.
func (m *member) trouble(err error) error {
	if m.entry == nil {
		return m.problem(compose.Pos{}, err)
	}
	return m.problem(m.find(err.Error()), fmt.Errorf("guest %s: %w", m.name(), err))
}

func (m *member) build(monitor monitor, open func() (console, error), adjust func(*vmm.Config)) error {
	var err error
	if m.console, err = open(); err != nil {
		return &vmm.HostError{Err: fmt.Errorf("console: %w", err)}
	}
	cfg := m.run.cfg
	cfg.Stdin, cfg.Stdout = m.console.in, m.console.out
	adjust(&cfg)
	g, err := monitor.New(cfg)
	if err != nil {
		return err
	}
	m.guest = g
	return nil
}

// live runs a member to its end, and frees what it had.
func (f *fleet) live(ctx context.Context, m *member) {
	start := time.Now()
	stop := f.watchStats(m.guest, m.name(), f.stats)
	m.outcome, m.err = m.guest.Run(ctx)
	m.took = time.Since(start)
	stop()
	f.mu.Lock()
	if f.bad == nil && (m.outcome.Code != 0 || m.err != nil) {
		f.bad = m
	}
	f.mu.Unlock()
	if f.report != "" {
		m.report = m.guest.Report()
	}
	m.err = errors.Join(m.err, m.close())
}

// close frees what a member has. It may be called again.
func (m *member) close() error {
	var errs []error
	if m.guest != nil {
		errs = append(errs, m.guest.Close())
	}
	if m.console.close != nil {
		errs = append(errs, m.console.close())
		m.console.close = nil
	}
	return errors.Join(errs...)
}

func (f *fleet) kill(reason string) {
	for _, m := range f.members {
		m.guest.Kill(reason)
	}
}

// tell says how each ended.
func (f *fleet) tell() {
	for _, m := range f.members {
		if m.outcome.Kind == vmm.Crashed && (m.pty || f.consoleDir != "" || !samePlace(f.stdout, f.stderr)) {
			printLines(f.stderr, m.name(), m.outcome.LastLines)
		}
	}
	t := tabwriter.NewWriter(f.stderr, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "disco: GUEST\tTIME\tEND")
	for _, m := range f.members {
		fmt.Fprintf(t, "disco: %s\t%.2f s\t%s\n", m.name(), m.took.Seconds(), m.end())
	}
	t.Flush()
}

// end is how a member ended, in one line.
func (m *member) end() string {
	s := m.outcome.Kind.String()
	switch {
	case m.outcome.Reason != "":
		s += ": " + m.outcome.Reason
	case m.outcome.Kind == vmm.DebugExit:
		s += fmt.Sprintf(": code %d", m.outcome.Code)
	}
	if m.err != nil && m.err.Error() != m.outcome.Reason {
		s += "; " + m.err.Error()
	}
	return oneLine(s)
}

// ending is the exit code of the first that ended badly.
func (f *fleet) ending() error {
	if f.bad != nil {
		return &exitError{cmp.Or(f.bad.outcome.Code, vmm.ExitHost), nil}
	}
	if slices.ContainsFunc(f.members, func(m *member) bool { return m.err != nil }) {
		return &exitError{vmm.ExitHost, nil}
	}
	return nil
}

// inLab runs the fleet in the lab by a command line of its own.
func (f *fleet) inLab(ctx context.Context, args []string) error {
	var runs []*run
	problems := f.outside.beyondLab()
	for _, m := range f.members {
		runs = append(runs, m.run)
		if m.pty {
			problems = append(problems, m.problem(m.place("console"), errors.New(
				"console: a terminal made in the lab cannot be reached from here; take --console-dir, or start disco up in disco lab")))
		}
	}
	written := map[string]string{"report": f.report, "console folder": f.consoleDir}
	return f.runInLab(ctx, args, runs, written, problems, f.verbose)
}

// place is where the file has a key; else where it has the guest.
func (m *member) place(key string) compose.Pos {
	if m.entry == nil {
		return compose.Pos{}
	}
	for _, s := range m.entry.Settings {
		if s.Key == key {
			return s.Pos
		}
	}
	return m.entry.Pos
}

func writeReport(path string, report any) error {
	b, err := json.MarshalIndent(report, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
