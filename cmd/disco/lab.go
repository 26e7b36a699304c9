package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"disco/integration/lab"
	"disco/vmm"
)

const labLong = `lab boots an emulated machine with several sockets, NUMA nodes and AMD-V, runs a
command in it, and returns the command's exit code. Without a command it starts
a shell ($SHELL, or /bin/sh).

The command sees this machine's files, but what it writes is gone with the lab,
except in the current folder, which is shared read-write. It runs as root of the
lab, with /dev/kvm and a network: connections out work, and --forward lets
connections in. DISCO_IN_LAB=1 is in its environment.

Standard input, output and error are the command's; on a terminal it gets a
terminal. Signals reach the command; a second SIGINT or SIGTERM, or a minute
after a SIGTERM, ends the lab.

Everything in the lab is emulated, in software: expect it to take 10 to 50 times
as long. It needs QEMU and a kernel, which ` + "`make lab`" + ` fetches, and no rights.
DISCO_QEMU, DISCO_LAB_KERNEL and DISCO_LAB_MODULES name others.`

const labExample = `  disco lab
  disco lab -- disco run --timeout 5m
  disco lab --nodes 4 --distance 31 -- cat /sys/devices/system/node/node0/distance
  disco lab --forward tcp:8080:80 -- ./server`

const labExitCodes = `Exit codes: the command's; 128+N if signal N killed it; 126 and 127 if it cannot be
run or found; 2 if the command line is wrong; 3 if this host lacks something, or
the lab did not start in two tries; 1 if the lab died while the command ran; 124
if the command was still running after --timeout.`

func labCommand(w *world) *cobra.Command {
	var (
		o        lab.Options
		timeout  time.Duration
		problems []error
	)
	c := &cobra.Command{
		Use:     "lab [flags] [-- COMMAND...]",
		Short:   "Run a command on an emulated NUMA machine with AMD-V",
		Long:    labLong + "\n\n" + labExitCodes,
		Example: labExample,
		RunE: func(c *cobra.Command, args []string) error {
			for _, name := range []string{"nodes", "cpus", "memory", "distance", "boot-timeout"} {
				if f := c.Flags().Lookup(name); f.Changed && zero(f.Value.String()) {
					problems = append(problems, fmt.Errorf("--%s %s: not zero", name, f.Value))
				}
			}
			if timeout < 0 {
				problems = append(problems, fmt.Errorf("--timeout %s: use a positive one", timeout))
			}
			o.Command = args
			if problems != nil {
				return &lab.UsageError{Problems: append(problems, o.Check()...)}
			}
			ctx := c.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			err := w.enterLab(ctx, o)
			if errors.Is(err, context.DeadlineExceeded) {
				return &exitError{vmm.ExitTimeout, fmt.Errorf("lab: not done after %s", timeout)}
			}
			return err
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.SetInterspersed(false) // what follows the command's name is the command's
	f.Var(parsed("nodes", "N", "2", &o.Nodes, parseCount, &problems), "nodes",
		fmt.Sprintf("number of NUMA nodes, each a socket, 1 to %d", lab.MaxNodes))
	f.Var(parsed("cpus", "N", "", &o.CPUs, parseCount, &problems), "cpus",
		"number of CPUs in all, a multiple of the nodes (default 4, or two for each node)")
	f.Var(parsed("memory", "SIZE", "", &o.Memory, parseSize, &problems), "memory",
		"memory in all, shared out evenly, such as 4G (default 3G, or 1G for each node)")
	f.Var(parsed("distance", "D", "21", &o.Distance, parseCount, &problems), "distance",
		"distance between any two nodes, 10 to 254; a node to itself is 10")
	f.Var(&value{name: "forward", kind: "tcp:HOST:LAB", problems: &problems, set: func(s string) error {
		fw, err := lab.ParseForward(s)
		if err == nil {
			o.Forwards = append(o.Forwards, fw)
		}
		return err
	}}, "forward", "carry connections to port HOST of 127.0.0.1 here to port LAB in the lab; again for more")
	f.Var(parsed("timeout", "DURATION", "", &timeout, parseDuration, &problems), "timeout",
		"end the lab after a time such as 90s or 5m, its start included, and exit with 124 (default never)")
	f.Var(parsed("boot-timeout", "DURATION", "1m0s", &o.BootTimeout, parseDuration, &problems), "boot-timeout",
		"how long the lab may take to start the command before it counts as stuck; it is then started once more")
	f.BoolVar(&o.Steady, "steady", false,
		"keep the emulator on one CPU of this machine: slower, and safe from races of QEMU's that now and then crash a guest on several nodes")
	f.BoolVarP(&o.Verbose, "verbose", "v", false, "show the lab's kernel messages, and when it got how far")
	for _, name := range []string{"nodes", "cpus", "memory", "distance", "forward", "timeout", "boot-timeout"} {
		// It fails only for a flag that does not exist.
		if err := c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions); err != nil {
			panic(err)
		}
	}
	return c
}

// zero says whether a flag's text means 0, which lab.Options takes for "default".
func zero(text string) bool {
	n, err := strconv.ParseFloat(text, 64)
	if err == nil {
		return n == 0
	}
	d, err := time.ParseDuration(text)
	return err == nil && d == 0
}

// enterLab runs o.Command in the lab with w's standard files, terminal and signals,
// and returns its exit code as an *exitError.
func (w *world) enterLab(ctx context.Context, o lab.Options) error {
	o.Stdin, o.Stdout, o.Stderr = w.stdin, w.stdout, w.stderr
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	o.Signals = signals
	if w.onTerminal() {
		t, err := openTerminal(w.stdin.(*os.File))
		if err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
		defer t.Close()
		o.Stderr = besideRaw(w.stderr)
		o.TTY = &lab.TTY{}
		o.TTY.Cols, o.TTY.Rows = t.size()
		sizes := make(chan lab.WindowSize, 1)
		o.TTY.Resize = sizes
		defer watchSize(t, func(cols, rows uint16) {
			select {
			case <-sizes: // the older one is of no use
			default:
			}
			sizes <- lab.WindowSize{Cols: cols, Rows: rows}
		})()
	}
	code, err := w.runLab(ctx, o)
	if err == nil {
		if code != 0 {
			return &exitError{code: code}
		}
		return nil
	}
	_, usage := errors.AsType[*lab.UsageError](err)
	_, host := errors.AsType[*lab.HostError](err)
	if usage || host || ctx.Err() != nil {
		return err
	}
	return &exitError{vmm.ExitCrashed, err}
}
