package main

import (
	"context"
	"errors"
	"os/signal"

	"golang.org/x/sys/unix"

	"disco/integration/lab"
	"disco/vmm"
)

// measurement is the course of a benchmark: all that can be wrong is said before
// anything runs, and what was measured until an error or ^C is reported.
type measurement[R any] struct {
	out       string                  // FILE, without its ending
	problems  []error                 // of the command line
	check     func() error            // of the options
	artefacts func() error            // what it needs of files
	load      func(file string) error // what there is already, or nil
	run       func(ctx context.Context) (R, error)
	empty     func(R) bool // nothing was measured
	report    func(R) error
}

func (m *measurement[R]) do(ctx context.Context) error {
	problems := m.problems
	for _, err := range []error{m.check(), checkReport(m.out + ".json")} {
		if err != nil {
			problems = append(problems, err)
		}
	}
	if problems != nil {
		return &vmm.ConfigError{Problems: problems}
	}
	if err := m.artefacts(); err != nil {
		return &vmm.HostError{Err: err}
	}
	if m.load != nil {
		if err := m.load(m.out + ".json"); err != nil {
			return &vmm.HostError{Err: err}
		}
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	results, err := m.run(ctx)
	if !m.empty(results) {
		err = errors.Join(err, m.report(results))
	}
	if ctx.Err() != nil {
		return &exitError{130, errors.New("interrupted")}
	}
	return err
}

// emulated says whether this is the lab, and what the kernels of guests that are
// measured are told.
func (w *world) emulated() (inLab bool, cmdline string) {
	cmdline = "quiet loglevel=3"
	if inLab = w.getenv(lab.InLab) != ""; inLab {
		cmdline += " nohz=off" // docs/decisions/004-ticks-in-the-lab.md
	}
	return inLab, cmdline
}
