package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"disco/compose"
	"disco/scheduler/host"
	"disco/vmm"
)

// schedulers are the texts of --scheduler.
var schedulers = []string{vmm.SchedulerStride: "stride", vmm.SchedulerLottery: "lottery", vmm.SchedulerHost: "host"}

func (r *run) schedulerFlags(f *pflag.FlagSet) {
	f.Var(parsed("tickets", "N", strconv.Itoa(vmm.DefaultTickets), &r.cfg.Tickets, parseTickets, &r.problems), "tickets",
		"the guest's share of the CPUs while other guests of this process want them, too: N of all the tickets there (see docs/scheduling.md)")
	f.StringVar(&r.cfg.Group, "group", "", "have the guest's tickets count in the group `NAME`: its guests divide what the group has, and nothing else moves")
	f.Var(parsed("cpu-limit", "PERCENT", "", &r.cfg.CPULimit, parseLimit, &r.problems), "cpu-limit",
		"let the guest use no more than so much of one CPU, such as 50%, or 150% for one and a half, even while others are free (default no limit)")
	f.BoolVar(&r.cfg.Gang, "gang", false, "run the guest's vCPUs at the same time or not at all, for a guest whose vCPUs spin while they wait for each other")
	s := &r.monitor.Scheduler
	f.Var(parsed("scheduler", "WHO", schedulers[s.Kind], &s.Kind, func(text string) (vmm.SchedulerKind, error) {
		kind, err := parseScheduler(text)
		s.Strict = err == nil
		return kind, err
	}, &r.problems), "scheduler",
		"who chooses which vCPU runs: stride, which divides CPU time by tickets; lottery, which does by drawing lots; or host, this host's own scheduler, "+
			"for which tickets count nothing. The first two need CAP_SYS_NICE; without it, and without this flag, it is host")
	f.Var(parsed("quantum", "DURATION", host.DefaultQuantum.String(), &s.Quantum, positiveTime, &r.problems), "quantum",
		fmt.Sprintf("how long a vCPU runs before another has its turn, %v to %v", host.MinQuantum, host.MaxQuantum))
	f.Var(parsed("cpus-host", "LIST", "", &s.CPUs, parseCPUs, &r.problems), "cpus-host",
		"run vCPUs on these CPUs of the host only, such as 0-3,8 (default all that this process may use)")
}

// schedulerArgs are the flags that r stands for.
func (r *run) schedulerArgs() (a []string) {
	s := &r.monitor.Scheduler
	if r.cfg.Tickets != 0 {
		a = append(a, "--tickets", strconv.FormatInt(r.cfg.Tickets, 10))
	}
	if r.cfg.Group != "" {
		a = append(a, "--group", r.cfg.Group)
	}
	if r.cfg.CPULimit != 0 {
		a = append(a, "--cpu-limit", formatLimit(r.cfg.CPULimit))
	}
	if r.cfg.Gang {
		a = append(a, "--gang")
	}
	if s.Strict {
		a = append(a, "--scheduler", schedulers[s.Kind])
	}
	if s.Quantum != 0 {
		a = append(a, "--quantum", s.Quantum.String())
	}
	if s.CPUs != nil {
		a = append(a, "--cpus-host", formatCPUs(s.CPUs))
	}
	return a
}

// schedulerKeys are the flags of schedulerFlags that are of the whole process, and
// so keys at the top of a file of disco up.
var schedulerKeys = []string{"scheduler", "quantum", "cpus-host"}

// groupsKey is the list of groups of such a file, NAME=TICKETS each.
const groupsKey = "groups"

// set takes a setting at the top of a file of disco up.
func (u *up) set(s compose.Setting) error {
	c := &u.monitor.Scheduler
	var err error
	switch s.Key {
	case "cache-size":
		u.monitor.CacheSize, err = parseSize(s.Text)
	case "scheduler":
		c.Kind, err = parseScheduler(s.Text)
		c.Strict = err == nil
	case "quantum":
		c.Quantum, err = positiveTime(s.Text)
	case "cpus-host":
		c.CPUs, err = parseCPUs(s.Text)
	case groupsKey:
		name, tickets, ok := strings.Cut(s.Text, "=")
		if !ok || name == "" {
			return errors.New("write a group as NAME=TICKETS")
		}
		if _, twice := c.Groups[name]; twice {
			return errors.New("the group is there twice")
		}
		n, err := parseTickets(tickets)
		if err != nil {
			return err
		}
		if c.Groups == nil {
			c.Groups = map[string]int64{}
		}
		c.Groups[name] = n
	}
	return err
}

func parseTickets(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, errors.New("not a number of tickets")
	}
	return n, vmm.CheckTickets(n)
}

func parseScheduler(s string) (vmm.SchedulerKind, error) {
	for kind, text := range schedulers {
		if s == text {
			return vmm.SchedulerKind(kind), nil
		}
	}
	return 0, errors.New("there are stride, lottery and host")
}

// parseLimit reads a percentage of one CPU into thousandths.
func parseLimit(s string) (int, error) {
	number, ok := strings.CutSuffix(s, "%")
	f, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil {
		return 0, errors.New("not a percentage; write one like 50%")
	}
	if !(f >= 0.1 && f <= 100*vmm.MaxCPUs) {
		return 0, fmt.Errorf("use 0.1%% to %d%%", 100*vmm.MaxCPUs)
	}
	return int(f*10 + 0.5), nil
}

func formatLimit(thousandths int) string {
	return strconv.FormatFloat(float64(thousandths)/10, 'f', -1, 64) + "%"
}

// maxCPU bounds the numbers of CPUs: that of a kernel's CPU set (sched_setaffinity(2)).
const maxCPU = 1023

// parseCPUs reads a list of CPUs and ranges, such as 0-3,8.
func parseCPUs(s string) ([]int, error) {
	var cpus []int
	for word := range strings.SplitSeq(s, ",") {
		from, to, ranged := strings.Cut(word, "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if err == nil && ranged {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || last < first || last > maxCPU {
			return nil, errors.New("not a list of CPUs; write one like 0-3,8")
		}
		for c := first; c <= last; c++ {
			cpus = append(cpus, int(c))
		}
	}
	return cpus, nil
}

func formatCPUs(cpus []int) string {
	words := make([]string, len(cpus))
	for i, c := range cpus {
		words[i] = strconv.Itoa(c)
	}
	return strings.Join(words, ",")
}
