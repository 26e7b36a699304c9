package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// Options says what lab to boot and what to run in it. A zero field means its
// default where the field names one.
type Options struct {
	Nodes    int    // NUMA nodes, one socket each: 1 to MaxNodes; 0 for 2
	CPUs     int    // of the whole lab, a multiple of Nodes, at most MaxCPUs; 0 for 4, or two a node if that is more
	Memory   uint64 // bytes of the whole lab, shared out evenly; 0 for 3 GiB, or 1 GiB a node if that is more
	Distance int    // from any node to any other, 10 to 254, where 10 is a node to itself; 0 for 21

	Forwards []Forward
	Command  []string // empty for $SHELL, or /bin/sh
	Dir      string   // the folder that is shared read-write and that Command starts in; empty for the current one; / shares nothing
	Env      []string // of Command; nil for this process's, less what only means something on the host

	Stdin  io.Reader // nil for none; read only as Command reads it, and a Read under way is not interrupted when Run returns
	Stdout io.Writer // nil to drop
	Stderr io.Writer // nil to drop; also gets the lab's own messages
	TTY    *TTY      // nil for pipes

	// Signals are passed on to the command's process group; a second SIGINT or
	// SIGTERM, or any signal before Command runs, ends the lab. nil for none.
	Signals <-chan os.Signal
	// Grace is the time from a SIGTERM to the end of a lab whose command does not
	// heed it; 0 for a minute.
	Grace time.Duration

	// Steady keeps the emulator on one of this machine's CPUs. It is slower, and
	// QEMU's vCPUs, which then never run at the same moment, cannot race each other
	// (docs/decisions/004).
	Steady bool

	Verbose     bool          // show the lab's kernel messages on Stderr as they come
	BootTimeout time.Duration // until Command runs, for each of two tries; 0 for 60 s

	silence time.Duration // after which a lab stands still; 0 for maxSilence

	// Init is a static amd64 executable that calls Init first thing; empty for the
	// one that is running.
	Init string
}

// TTY asks for a terminal in the lab. Its owner has put the terminal at this end into
// raw mode; Command's two outputs both come on Stdout.
type TTY struct {
	Cols, Rows uint16
	Resize     <-chan WindowSize // nil if the size does not change
}

// WindowSize is a terminal's size in characters.
type WindowSize struct{ Cols, Rows uint16 }

// Forward carries TCP connections to a port of the host's loopback to a port
// of the lab's loopback.
type Forward struct{ Host, Lab uint16 }

const (
	// MaxNodes is the largest number of NUMA nodes.
	MaxNodes = 8
	// MaxCPUs is the largest number of CPUs: what QEMU's pc machine takes.
	MaxCPUs = 255

	defaultBootTimeout = 60 * time.Second
	minNodeMemory      = 128 << 20
	minMemory          = 512 << 20
	maxForwards        = 64
)

// UsageError holds everything that is wrong with Options, one problem each.
type UsageError struct{ Problems []error }

// Error is one line for each problem.
func (e *UsageError) Error() string { return lines(e.Problems) }

// Unwrap gives the problems to errors.Is and errors.As.
func (e *UsageError) Unwrap() []error { return e.Problems }

// HostError is everything that this host lacks for a lab, one problem each.
type HostError struct{ Problems []error }

// Error is one line for each problem.
func (e *HostError) Error() string { return lines(e.Problems) }

// Unwrap gives the problems to errors.Is and errors.As.
func (e *HostError) Unwrap() []error { return e.Problems }

func lines(problems []error) string {
	s := make([]string, len(problems))
	for i, p := range problems {
		s[i] = p.Error()
	}
	return strings.Join(s, "\n")
}

// ParseForward reads "tcp:HOST:LAB", two ports. Its errors say how to write one, and
// leave naming s to the caller.
func ParseForward(s string) (Forward, error) {
	bad := func(why string) (Forward, error) {
		return Forward{}, errors.New(why + "; write tcp:HOSTPORT:LABPORT")
	}
	part := strings.Split(s, ":")
	if len(part) != 3 {
		return bad("not three parts")
	}
	if part[0] != "tcp" {
		return bad("only tcp is carried")
	}
	var port [2]uint16
	for i, p := range part[1:] {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return bad(fmt.Sprintf("%q is no port from 1 to 65535", p))
		}
		port[i] = uint16(n)
	}
	return Forward{Host: port[0], Lab: port[1]}, nil
}

// Check returns everything that is wrong with o, which Run would return as a
// *UsageError.
func (o Options) Check() []error {
	memory, err := memoryOfHost()
	if err != nil {
		return nil // of the host, not of o; Run says so
	}
	return o.complete(memory)
}

// complete fills in the defaults and returns everything that is wrong. hostMemory
// is this machine's, in bytes.
func (o *Options) complete(hostMemory uint64) []error {
	var problems []error
	add := func(format string, a ...any) { problems = append(problems, fmt.Errorf(format, a...)) }

	if o.Nodes == 0 {
		o.Nodes = 2
	}
	nodesOK := o.Nodes >= 1 && o.Nodes <= MaxNodes
	if !nodesOK {
		add("nodes %d: use 1 to %d", o.Nodes, MaxNodes)
	}
	if o.CPUs == 0 && nodesOK {
		o.CPUs = max(4, 2*o.Nodes)
	}
	switch {
	case !nodesOK && o.CPUs == 0:
	case o.CPUs < 1 || o.CPUs > MaxCPUs:
		add("cpus %d: use 1 to %d", o.CPUs, MaxCPUs)
	case nodesOK && o.CPUs%o.Nodes != 0:
		add("cpus %d: use a multiple of the %d nodes", o.CPUs, o.Nodes)
	}
	if o.Memory == 0 && nodesOK {
		o.Memory = max(3<<30, uint64(o.Nodes)<<30)
	}
	if nodesOK {
		least := max(minMemory, uint64(o.Nodes)*minNodeMemory)
		switch {
		case o.Memory < least:
			add("memory %s: %d nodes need at least %s", size(o.Memory), o.Nodes, size(least))
		case o.Memory > hostMemory:
			add("memory %s: this machine has %s", size(o.Memory), size(hostMemory))
		}
	}
	if o.Distance == 0 {
		o.Distance = 21
	}
	if o.Distance < 10 || o.Distance > 254 {
		add("distance %d: use 10 to 254", o.Distance)
	}
	if len(o.Forwards) > maxForwards {
		add("%d forwards: use at most %d", len(o.Forwards), maxForwards)
	}
	host := make(map[uint16]bool)
	for _, f := range o.Forwards {
		if f.Host == 0 || f.Lab == 0 {
			add("forward tcp:%d:%d: use ports from 1 to 65535", f.Host, f.Lab)
		} else if host[f.Host] {
			add("forward tcp:%d:%d: host port %d is forwarded twice", f.Host, f.Lab, f.Host)
		}
		host[f.Host] = true
	}
	for _, a := range o.Command {
		if strings.ContainsRune(a, 0) {
			add("command argument %q: it contains a NUL byte", a)
		}
	}
	if o.silence == 0 {
		o.silence = maxSilence
	}
	if o.Grace == 0 {
		o.Grace = time.Minute
	}
	if o.BootTimeout == 0 {
		o.BootTimeout = defaultBootTimeout
	}
	if o.BootTimeout < 0 {
		add("boot timeout %s: use a positive one", o.BootTimeout)
	}
	if err := o.completeDir(); err != nil {
		problems = append(problems, err)
	}
	if o.Env == nil {
		o.Env = environment(os.Environ())
	}
	if o.Stdout == nil {
		o.Stdout = io.Discard
	}
	if o.Stderr == nil {
		o.Stderr = io.Discard
	}
	return problems
}

func (o *Options) completeDir() error {
	dir := o.Dir
	if dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("current folder: %w", err)
		}
		dir = wd
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return fmt.Errorf("folder %s: %w", o.Dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("folder %s: it is not a folder", dir)
	}
	for _, own := range []string{"/proc", "/sys", "/dev"} {
		if dir == own || strings.HasPrefix(dir, own+"/") {
			return fmt.Errorf("folder %s: the lab has its own %s; start from another folder", dir, own)
		}
	}
	o.Dir = dir
	return nil
}

// hostOnly names environment variables that point at sockets, terminals and
// services of the host, which are not in the lab.
var hostOnly = []string{
	"DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "GPG_AGENT_INFO", "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID",
	"NOTIFY_SOCKET", "SSH_AGENT_PID", "SSH_AUTH_SOCK", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "STY", "TMUX", "TMUX_PANE",
	"WAYLAND_DISPLAY", "WINDOWID", "XAUTHORITY", "XDG_RUNTIME_DIR", "XDG_SESSION_ID", "XDG_VTNR",
}

// InLab is the environment variable that is set, to "1", for every process in a
// lab.
const InLab = "DISCO_IN_LAB"

// environment returns what a command in the lab sees of the caller's environment.
func environment(caller []string) []string {
	var env []string
	seen := map[string]bool{InLab: true}
	for _, name := range hostOnly {
		seen[name] = true
	}
	for _, e := range caller {
		if name, _, ok := strings.Cut(e, "="); ok && !seen[name] {
			seen[name] = true
			env = append(env, e)
		}
	}
	for _, d := range []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb",
	} {
		if name, _, _ := strings.Cut(d, "="); !seen[name] {
			env = append(env, d)
		}
	}
	return append(env, InLab+"=1")
}

func size(n uint64) string { return units.BytesSize(float64(n)) }

// memoryOfHost returns this machine's memory in bytes.
func memoryOfHost() (uint64, error) {
	var i unix.Sysinfo_t
	if err := unix.Sysinfo(&i); err != nil {
		return 0, fmt.Errorf("sysinfo: %w", err)
	}
	return i.Totalram * uint64(i.Unit), nil
}
