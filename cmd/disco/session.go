package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"disco/vmm"
)

const leftReason = "left by Ctrl-a x"

// here runs the guest on this host's KVM.
func (r *run) here(ctx context.Context) error {
	outcome, report, err := r.session(ctx)
	if err != nil {
		return err
	}
	if r.report != "" {
		if err := writeReport(r.report, report); err != nil {
			return err
		}
	}
	if r.verbose {
		fmt.Fprintln(r.stderr, "disco:", summary(report))
	}
	return r.ending(outcome)
}

// session builds the guest and stays with it until it is gone and the terminal
// is as it was.
func (r *run) session(ctx context.Context) (o vmm.Outcome, report vmm.Report, err error) {
	person := r.onTerminal()
	if person {
		plain := r.stderr
		r.stderr = besideRaw(plain)
		defer func() { r.stderr = plain }()
	}
	cfg := r.cfg
	cfg.Stdin, cfg.Stdout, cfg.Log = r.stdin, r.stdout, r.logger(r.verbose)
	var g guest
	if person {
		cfg.Stdin = &escapes{r: r.stdin, leave: func() { g.Kill(leftReason) }}
	}
	m, err := r.newMonitor(r.monitor)
	if err != nil {
		return o, report, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	hide, err := r.outside.open(r.world, m, cfg.Log)
	if err != nil {
		return o, report, err
	}
	defer hide()
	g, err = m.New(cfg)
	if err != nil {
		return o, report, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	if person {
		fmt.Fprintln(r.stderr, "disco: Ctrl-a x leaves the guest")
		t, err := openTerminal(r.stdin.(*os.File))
		if err != nil {
			return o, report, fmt.Errorf("terminal: %w", err)
		}
		defer t.Close()
		defer watchSize(t, g.ResizeConsole)()
	}
	ctx, stop := r.watchSignals(ctx, "the power button is pressed; a second signal kills the guest", g.Kill)
	defer stop()
	defer r.watchStats(g, "", r.stats)()
	o, err = g.Run(ctx)
	if r.report != "" || r.verbose {
		report = g.Report()
	}
	return o, report, err
}

// endingSignals end a guest. SIGPIPE does when nobody reads its console any more; it
// comes for every connection as well whose other end is gone when it is written to.
var endingSignals = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}

// watchSignals cancels the context it returns at the first signal, which has
// the power button pressed, and calls kill at the second, until stop.
func (w *world) watchSignals(ctx context.Context, says string, kill func(reason string)) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, endingSignals...)
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, unix.SIGPIPE)
	done := make(chan struct{})
	go func() {
		first := true
		end := func(s os.Signal) {
			if first {
				fmt.Fprintf(w.stderr, "disco: %v: %s\n", s, says)
				cancel()
			} else {
				kill(fmt.Sprintf("killed by a second signal (%v)", s))
			}
			first = false
		}
		for {
			select {
			case s := <-signals:
				end(s)
			case s := <-pipes:
				if unread(w.stdout) || unread(w.stderr) {
					end(s)
				}
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		signal.Stop(pipes)
		close(done)
		cancel()
	}
}

// unread says whether out is a pipe or a socket whose reader is gone.
func unread(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n == 1 && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
	})
	return err == nil && gone
}

// watchSize tells resize the terminal's size, now and whenever it changes,
// until stop.
func watchSize(t *terminal, resize func(cols, rows uint16)) (stop func()) {
	resize(t.size())
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, unix.SIGWINCH)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-changes:
				resize(t.size())
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(changes)
		close(done)
	}
}

// ending says how the guest ended, where that needs saying, and makes an exit
// code of it.
func (r *run) ending(o vmm.Outcome) error {
	who := "the guest"
	if r.cfg.Name != "" {
		who += " " + r.cfg.Name
	}
	switch {
	case o.Kind == vmm.Crashed:
		if !samePlace(r.stdout, r.stderr) {
			printLines(r.stderr, "the guest", o.LastLines)
		}
		return &exitError{o.Code, fmt.Errorf("%s crashed: %s", who, o.Reason)}
	case o.Kind == vmm.TimedOut, o.Kind == vmm.Killed && o.Reason != leftReason:
		return &exitError{o.Code, fmt.Errorf("%s was ended: %s", who, o.Reason)}
	case o.Code != 0:
		return &exitError{o.Code, nil}
	}
	return nil
}

func printLines(w io.Writer, who string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(w, "disco: the last lines of %s's console:\n", who)
	for _, l := range lines {
		fmt.Fprintln(w, " ", l)
	}
}

func (w *world) logger(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w.stderr, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// summary is one line of what a run took.
func summary(report vmm.Report) string {
	var exits []string
	for _, reason := range slices.Sorted(maps.Keys(report.Exits)) {
		exits = append(exits, fmt.Sprintf("%s %d", reason, report.Exits[reason]))
	}
	s := fmt.Sprintf("ran %.2f s, %d exits to the monitor", report.Ended-report.Started, report.UserspaceExit)
	if exits != nil {
		s += " (" + strings.Join(exits, ", ") + ")"
	}
	if report.Reboots > 0 {
		s += fmt.Sprintf(", %d restarts", report.Reboots)
	}
	return s
}
