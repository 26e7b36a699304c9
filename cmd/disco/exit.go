package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"disco/integration/lab"
	"disco/vmm"
)

// exitError ends the process with a code that the command itself chose, such as
// a guest's own. Without err nothing is printed: all has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError is a command line that cannot be understood. command is the
// command's path, whose help to offer.
type usageError struct {
	err     error
	command string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// exitCode is the process's exit code for what a command returned.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	if e, ok := errors.AsType[*vmm.ConfigError](err); ok {
		for _, p := range e.Problems {
			if _, host := errors.AsType[*vmm.HostError](p); !host {
				return vmm.ExitUsage
			}
		}
		return vmm.ExitHost
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return vmm.ExitUsage
	}
	if _, ok := errors.AsType[*lab.UsageError](err); ok {
		return vmm.ExitUsage
	}
	return vmm.ExitHost
}

// explain prints what a command returned, each line under the program's name.
func explain(w io.Writer, err error) {
	if e, ok := errors.AsType[*exitError](err); err == nil || ok && e.err == nil {
		return
	}
	for line := range strings.SplitSeq(strings.TrimRight(err.Error(), "\n"), "\n") {
		fmt.Fprintf(w, "disco: %s\n", line)
	}
	if e, ok := errors.AsType[*usageError](err); ok && e.command != "" {
		fmt.Fprintf(w, "Try: %s --help\n", e.command)
	}
}
