package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"disco/compose"
	"disco/vmm"
)

const upLong = `up boots the guests that FILE describes, all in one process, and returns when the
last is gone. FILE is YAML:

  cache-size: 1G          # of this process, and optional
  guests:
    web:                  # its name
      replicas: 3         # web-1, web-2 and web-3; without it, web
      memory: 512M
      nets: ["user"]
    db:
      cpus: 2
      disks: ["db.img"]

The keys of a guest are the flags of disco run, and take the same values: cpus,
memory, kernel, cmdline, timeout and so on (see disco run --help). disks and nets
are lists. A guest without keys is the default guest. In a guest with replicas,
{n} in a value is the replica's number. Paths are relative to FILE's folder.

All guests are built before the first one runs: if anything is wrong with one,
all that is wrong is said, with its line, and nothing runs. A guest's crash leaves
the others running.

The consoles' lines come to standard output, each after its guest's name; or with
--console-dir to a file for each guest; or with console: pty in FILE to a terminal
of its own, whose name is printed. SIGINT, SIGTERM and SIGHUP press all power
buttons; guests that are still there after their grace, or at a second signal, are
killed.`

const upExitCodes = `Exit codes:
  0    all guests powered off, or you ended them
  2    FILE or the command line is wrong; all that is wrong is said at once
  3    this host cannot: it lacks something, or forbids it
Otherwise that of the first guest that ended badly: see disco run --help.`

// up is one `disco up`.
type up struct {
	fleet
	file  string
	where string // auto, here or lab
}

func upCommand(w *world) *cobra.Command {
	u := &up{where: "auto", fleet: fleet{world: w}}
	c := &cobra.Command{
		Use:     "up [flags] FILE",
		Short:   "Boot the guests that a file describes",
		Long:    upLong + "\n\n" + upExitCodes,
		Example: "  disco up guests.yaml\n  disco up --console-dir logs --report ends.json guests.yaml",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%d files are named; name the one that describes the guests", len(args))
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(c *cobra.Command, args []string) error {
			u.file = args[0]
			return u.start(c.Context())
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&u.consoleDir, "console-dir", "", "write the consoles to files in `DIR`, NAME.log for each guest; it is made if need be")
	f.StringVar(&u.report, "report", "", "write to `FILE`, as a JSON array, what disco run --report writes of each guest")
	f.Var(parsed("stats-interval", "DURATION", "", &u.stats, parseDuration, &u.problems), "stats-interval",
		"print a line of each guest that often, such as 10s (see disco run --help; default never)")
	u.outside.flags(f, &u.problems)
	f.Var(parsed("host", "HOST", u.where, &u.where, parseWhere, &u.problems), "host",
		"where to run: here, in the lab, or auto, which is here if this host's KVM runs stock kernels and the lab otherwise")
	f.BoolVarP(&u.verbose, "verbose", "v", false, "log what the monitor does")
	// It fails only for a flag that does not exist.
	if err := c.RegisterFlagCompletionFunc("host", cobra.FixedCompletions(hostChoices, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
	return c
}

// start reads the file, checks everything, and runs the guests.
func (u *up) start(ctx context.Context) error {
	if err := u.read(); err != nil {
		return err
	}
	inLab, err := u.place(u.where)
	if err != nil {
		return err
	}
	if inLab {
		return u.inLab(ctx)
	}
	return u.here(ctx)
}

// read makes members of the file's guests. Its error is all that is wrong with
// them and with the command line.
func (u *up) read() error {
	problems := append(u.problems, u.check()...)
	file, wrong := compose.Read(u.file, u.schema())
	for _, p := range wrong {
		problems = append(problems, p)
	}
	for _, s := range file.Top {
		if err := u.set(s); err != nil {
			problems = append(problems, &compose.Problem{Path: u.file, Pos: s.Pos, Err: fmt.Errorf("%s %q: %w", s.Key, s.Text, err)})
		}
	}
	problems = append(problems, u.addSegments(file.Sections)...)
	for i := range file.Guests {
		problems = append(problems, u.add(&file.Guests[i])...)
	}
	problems = append(problems, u.conflicts()...)
	if ce, ok := errors.AsType[*vmm.ConfigError](u.monitor.Scheduler.Validate()); ok {
		problems = append(problems, ce.Problems...)
	}
	if problems != nil {
		return &vmm.ConfigError{Problems: problems}
	}
	return nil
}

// alone are the flags of disco run that are no keys of a guest.
var alone = []string{"name", "guests", "cache-size", segmentsKey, "control", "metrics", "report", "stats-interval", "host", "verbose"}

// fromFolder are keys whose values begin with a path.
var fromFolder = map[string]bool{
	"kernel": true, "initrd": true, "disks": true, "vsock": true, "root": true, "persist": true, "cloud-init": true,
	"shares": true,
}

// keyOf is the key that stands for a flag of disco run: one that may be given
// again is a list.
func keyOf(f *pflag.Flag) (string, compose.Kind) {
	if v, ok := f.Value.(*value); ok && v.again {
		return f.Name + "s", compose.List
	}
	if f.Value.Type() == "bool" {
		return f.Name, compose.Switch
	}
	return f.Name, compose.Text
}

// schema makes keys of the flags of disco run.
func (u *up) schema() compose.Schema {
	s := compose.Schema{Top: map[string]compose.Kind{"cache-size": compose.Text, groupsKey: compose.List}, Guest: map[string]compose.Kind{},
		Sections: map[string]map[string]compose.Kind{segmentsKey: segmentKeys}}
	for _, key := range schedulerKeys {
		s.Top[key] = compose.Text
	}
	newRun(u.world).command().Flags().VisitAll(func(f *pflag.Flag) {
		key, kind := keyOf(f)
		s.Guest[key] = kind
	})
	for _, name := range append(schedulerKeys, alone...) {
		delete(s.Guest, name)
	}
	return s
}

// add makes members of an entry of the file, and says what is wrong with them.
// Replicas share most of it, and it is told once.
func (u *up) add(g *compose.Guest) []error {
	var problems []error
	told := map[string]bool{}
	for i, name := range g.Names() {
		m := &member{file: u.file, entry: g, run: newRun(unattended(u.world))}
		for _, p := range m.fill(name, i+1, filepath.Dir(u.file)) {
			if !told[p.Error()] {
				told[p.Error()] = true
				problems = append(problems, p)
			}
		}
		u.members = append(u.members, m)
	}
	return problems
}

// fill makes the member's Config of the settings of its entry.
func (m *member) fill(name string, number int, dir string) []error {
	flags := m.run.command().Flags()
	m.run.cfg.Name = name
	byKey := map[string]*pflag.Flag{}
	flags.VisitAll(func(f *pflag.Flag) {
		key, _ := keyOf(f)
		byKey[key] = f
	})
	var problems []error
	for _, s := range m.entry.Settings {
		text := s.Text
		if m.entry.Replicas > 0 {
			text = strings.ReplaceAll(text, "{n}", strconv.Itoa(number))
		}
		if fromFolder[s.Key] && text != "" && !filepath.IsAbs(text) {
			text = filepath.Join(dir, text)
		}
		if s.Key == "console" {
			text = m.takePTY(text)
		}
		before := len(m.run.problems)
		err := flags.Set(byKey[s.Key].Name, text)
		if n := len(m.run.problems); n > before {
			// It names a flag; a key is what was written.
			err = errors.Unwrap(m.run.problems[n-1])
			m.run.problems = m.run.problems[:before]
		}
		if err != nil {
			problems = append(problems, m.problem(s.Pos, fmt.Errorf("%s %q: %w", s.Key, s.Text, err)))
		}
	}
	m.run.cfg.NUMA.Lenient = lenient(flags)
	m.run.shell = m.pty
	if ce, ok := errors.AsType[*vmm.ConfigError](m.run.check(m.run.fill())); ok {
		for _, p := range ce.Problems {
			problems = append(problems, m.problem(m.find(p.Error()), p))
		}
	}
	return problems
}

// takePTY takes the word pty off the value of console.
func (m *member) takePTY(text string) string {
	var words []string
	for word := range strings.SplitSeq(text, ",") {
		if word == "pty" && !m.pty {
			m.pty = true
			continue
		}
		words = append(words, word)
	}
	if len(words) == 0 {
		return "virtio"
	}
	return strings.Join(words, ",")
}

// find is the place of the setting that a problem with a Config is about. Such
// problems begin with what it is, and go on with its value.
func (m *member) find(problem string) compose.Pos {
	noun, rest, _ := strings.Cut(problem, " ")
	if strings.HasPrefix(problem, "kernel command line") {
		noun = "cmdline"
	}
	noun = strings.TrimSuffix(noun, ":")
	at, best := m.entry.Pos, -1
	for _, s := range m.entry.Settings {
		if s.Key != noun && s.Key != noun+"s" && (s.Key != "root" || noun != "disk") {
			continue
		}
		// Of several, the one whose value is told; the first if none is.
		first, _, _ := strings.Cut(s.Text, ",")
		match := 0
		if strings.Contains(rest, filepath.Base(first)) || strings.HasPrefix(rest, strings.Replace(first, "=", " ", 1)+":") {
			match = len(first)
		}
		if match > best {
			at, best = s.Pos, match
		}
	}
	return at
}

// inLab runs the same file in the lab.
func (u *up) inLab(ctx context.Context) error {
	args := []string{"up", "--host", "here"}
	if u.consoleDir != "" {
		args = append(args, "--console-dir", u.consoleDir)
	}
	if u.report != "" {
		args = append(args, "--report", u.report)
	}
	if u.stats != 0 {
		args = append(args, "--stats-interval", u.stats.String())
	}
	args = append(args, u.outside.args()...)
	if u.verbose {
		args = append(args, "--verbose")
	}
	return u.fleet.inLab(ctx, append(args, "--", u.file))
}
