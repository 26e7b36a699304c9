package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/bench/exits"
	"disco/integration/guest"
)

// ownReport is what is looked at in disco's --report.
type ownReport struct {
	Userspace uint64            `json:"userspace_exits"`
	Exits     map[string]uint64 `json:"exits"`
	KVM       map[string]uint64 `json:"kvm"`
	Built     float64           `json:"built_s"`
	Started   float64           `json:"started_s"`
}

// bootOnce starts p and waits for the guest's first line. With c it counts exits,
// looks at the memory then, and lets the guest power off. Nothing of p is left
// when it returns.
func bootOnce(ctx context.Context, p program, c *exits.Counters) (row, error) {
	ctx, cancel := context.WithTimeout(ctx, watchdog)
	defer cancel()
	screen := newScreen(guest.Marker)
	said := &bytes.Buffer{}
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Env = p.env
	cmd.Stdout, cmd.Stderr = screen, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if c != nil {
		if err := c.Reset(); err != nil {
			return row{}, err
		}
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return row{}, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // it may have ended
		<-ended
	}()

	var r row
	select {
	case at := <-screen.seen:
		r.Seconds = at.Sub(begin).Seconds()
	case err := <-ended:
		ended <- err
		return row{}, fmt.Errorf("ended before the guest's first line (%v): %s", err, screen.last(said))
	case <-ctx.Done():
		return row{}, fmt.Errorf("stuck: no line of user space after %s; %s; %s", watchdog, standing(cmd.Process.Pid, c), screen.last(said))
	}
	if c == nil {
		return r, nil
	}
	var err error
	if r.Exits, err = c.Read(); err != nil {
		return row{}, err
	}
	if r.Monitor, err = ownMemory(cmd.Process.Pid, p.memory); err != nil {
		return row{}, err
	}
	if p.report == "" {
		return r, nil
	}
	select {
	case err := <-ended:
		ended <- err
		if err != nil {
			return row{}, fmt.Errorf("%w: %s", err, screen.last(said))
		}
	case <-ctx.Done():
		return row{}, fmt.Errorf("stuck: the guest did not power off; %s; %s", standing(cmd.Process.Pid, c), screen.last(said))
	}
	if r.UntilEnd, err = c.Read(); err != nil {
		return row{}, err
	}
	b, err := os.ReadFile(p.report)
	if err != nil {
		return row{}, err
	}
	r.OwnReport = &ownReport{}
	return r, json.Unmarshal(b, r.OwnReport)
}

// screen is a program's output, watched for a line.
type screen struct {
	mark []byte
	seen chan time.Time // when the line was there, once

	mu   sync.Mutex
	text []byte // its end
	done bool
}

func newScreen(line string) *screen {
	return &screen{mark: []byte(line), seen: make(chan time.Time, 1)}
}

// Write implements io.Writer.
func (s *screen) Write(p []byte) (int, error) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	if !s.done && bytes.Contains(s.text, s.mark) {
		s.done = true
		s.seen <- now
	}
	const keep = 4 << 10
	if n := len(s.text); n > 2*keep {
		s.text = append(s.text[:0], s.text[n-keep:]...)
	}
	return len(p), nil
}

// last is the end of what the guest and the program said, on one line.
func (s *screen) last(said *bytes.Buffer) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	clean := func(b []byte) string {
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		return fmt.Sprintf("%q", lines[max(0, len(lines)-8):])
	}
	return "console: " + clean(s.text) + "; messages: " + clean(said.Bytes())
}

// standing says what process pid is at, for a guest that is stuck: its threads
// with their states and CPU times, and the exits so far.
func standing(pid int, c *exits.Counters) string {
	var parts []string
	dir := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		parts = append(parts, err.Error())
	}
	for _, t := range threads {
		b, err := os.ReadFile(dir + "/" + t.Name() + "/stat")
		if err != nil {
			continue
		}
		name, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if len(f) > 12 && (f[11] != "0" || f[12] != "0") {
			_, name, _ = strings.Cut(name, "(")
			parts = append(parts, fmt.Sprintf("thread %s %s: %s user and %s system ticks", name, f[0], f[11], f[12]))
		}
	}
	if c != nil {
		if e, err := c.Read(); err == nil {
			parts = append(parts, strings.TrimSpace(e.Brief()))
		}
	}
	return strings.Join(parts, ", ")
}
