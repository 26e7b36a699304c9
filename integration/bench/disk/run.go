package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/bench/exits"
	"disco/integration/guest"
)

// watchdog is how long a guest may take for everything.
const watchdog = 4 * time.Minute

// once starts p and follows its guest through all patterns. Nothing of p is left
// when it returns.
func once(ctx context.Context, p program, c *exits.Counters) (rows []row, err error) {
	ctx, cancel := context.WithTimeout(ctx, watchdog)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	f := follower{program: p.name, pid: cmd.Process.Pid, counters: c}
	err = f.follow(out)
	if err != nil {
		cancel()
	}
	ended := cmd.Wait()
	if err == nil {
		err = ended
	}
	if err != nil {
		return nil, fmt.Errorf("%w; last lines: %q", err, f.tail)
	}
	return f.rows, nil
}

// follower reads what a guest says, and looks at the host's counters in time.
type follower struct {
	program  string
	pid      int
	counters *exits.Counters

	rows   []row
	before usage
	tail   []string
}

var errNotDone = errors.New("the guest ended before it was done")

// follow returns when the guest is done and its console at its end.
func (f *follower) follow(r io.Reader) error {
	lines := bufio.NewScanner(r)
	done := false
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		f.tail = append(f.tail, line)
		f.tail = f.tail[max(0, len(f.tail)-8):]
		_, text, ours := strings.Cut(line, guest.Prefix)
		if !ours {
			continue
		}
		v := map[string]string{}
		for _, w := range strings.Fields(text) {
			key, value, _ := strings.Cut(w, "=")
			v[key] = value
		}
		switch {
		case v["result"] == "failed":
			return fmt.Errorf("the guest failed: %s", text)
		case v["disk"] == "begin":
			if err := f.begin(); err != nil {
				return err
			}
		case v["disk"] == "end":
			if err := f.end(v); err != nil {
				return err
			}
		case v["disk"] == "done":
			done = true
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if !done {
		return errNotDone
	}
	return nil
}

func (f *follower) begin() (err error) {
	if f.before, err = usageOf(f.pid); err != nil {
		return err
	}
	return f.counters.Reset()
}

func (f *follower) end(v map[string]string) error {
	e, err := f.counters.Read()
	if err != nil {
		return err
	}
	after, err := usageOf(f.pid)
	if err != nil {
		return err
	}
	r := row{Program: f.program, Pattern: v["pattern"], Exits: e}
	var nanos int
	for key, p := range map[string]*int{"ops": &r.Ops, "bytes": &r.Bytes, "nanos": &nanos} {
		if *p, err = strconv.Atoi(v[key]); err != nil {
			return fmt.Errorf("%s is %q", key, v[key])
		}
	}
	r.Seconds = float64(nanos) / 1e9
	r.GuestCPU = after.guest - f.before.guest
	r.HostCPU = after.all - f.before.all - r.GuestCPU
	f.rows = append(f.rows, r)
	if r.Ops > 0 {
		fmt.Printf("%-20s %-18s %9.0f operations/s  %6.3f s of host CPU%s\n", f.program, r.Pattern, float64(r.Ops)/r.Seconds, r.HostCPU, e.Brief())
	} else {
		fmt.Printf("%-20s %-18s %36s%s\n", f.program, r.Pattern, "", e.Brief())
	}
	return nil
}

// usage is CPU time in seconds.
type usage struct{ all, guest float64 }

// ticks are those of a second in /proc/PID/stat: USER_HZ, 100 on every x86-64.
const ticks = 100

// usageOf reads the CPU time of a process. That of its guest is part of the whole
// (proc(5), guest_time).
func usageOf(pid int) (usage, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return usage{}, err
	}
	u, err := parseUsage(string(b))
	if err != nil {
		return usage{}, fmt.Errorf("%s: %w", path, err)
	}
	return u, nil
}

func parseUsage(stat string) (usage, error) {
	// The name of the program, in parentheses, may hold anything.
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	var n [3]float64
	for i, field := range []int{14, 15, 43} { // user, system, guest
		if len(f) <= field-3 {
			return usage{}, fmt.Errorf("only %d fields", len(f)+2)
		}
		v, err := strconv.ParseUint(f[field-3], 10, 64)
		if err != nil {
			return usage{}, err
		}
		n[i] = float64(v) / ticks
	}
	return usage{all: n[0] + n[1], guest: n[2]}, nil
}
