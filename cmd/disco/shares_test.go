package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"disco/vmm"
)

func TestParseShares(t *testing.T) {
	for text, want := range map[string]int{"50%": 500, "150%": 1500, "0.1%": 1, "25400%": 254000} {
		if got, err := parseLimit(text); got != want || err != nil {
			t.Errorf("%s: %d, %v", text, got, err)
		} else if formatLimit(got) != text {
			t.Errorf("%s comes back as %s", text, formatLimit(got))
		}
	}
	for _, text := range []string{"", "50", "%", "-1%", "0%", "NaN%", "Inf%", "99999%", "0.01%"} {
		if got, err := parseLimit(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
	if got, err := parseCPUs("0-3,8"); err != nil || !reflect.DeepEqual(got, []int{0, 1, 2, 3, 8}) || formatCPUs(got) != "0,1,2,3,8" {
		t.Errorf("CPUs %v, %v", got, err)
	}
	for _, text := range []string{"", "a", "3-1", "-1", "0,", "0-9999999999", "0-65535"} {
		if got, err := parseCPUs(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestSharesRefused(t *testing.T) {
	for flags, want := range map[string]string{
		"--tickets 0":          "--tickets 0: 0 tickets would never be served: use 1 to 1048576",
		"--tickets -3":         "--tickets -3: -3 tickets: use 1 to 1048576",
		"--tickets 9999999":    "--tickets 9999999: 9999999 tickets: at most 1048576; only the ratio to others' counts",
		"--tickets many":       "--tickets many: not a number of tickets",
		"--group a/b":          `group "a/b": use at most 64 letters, digits, '.', '_' and '-'`,
		"--cpu-limit 50":       "--cpu-limit 50: not a percentage; write one like 50%",
		"--scheduler cfs":      "--scheduler cfs: there are stride, lottery and host",
		"--quantum 50ms":       "quantum 50ms: use 1ms to 30ms",
		"--quantum 0s":         "--quantum 0s: use a positive one",
		"--cpus-host 0,0":      "host CPUs: 0 is named twice",
		"--cpus-host 1000":     "host CPUs: 1000 is not there, not online, or forbidden to this process",
		"--cpus-host one,two":  "--cpus-host one,two: not a list of CPUs; write one like 0-3,8",
		"--cpus-host 0-99999":  "--cpus-host 0-99999: not a list of CPUs; write one like 0-3,8",
		"--cpu-limit 1000000%": "--cpu-limit 1000000%: use 0.1% to 25400%",
	} {
		w := newWorld(t)
		code := w.disco(append([]string{"run"}, strings.Fields(flags)...)...)
		if code == 0 || w.err.String() != "disco: "+want+"\n" {
			t.Errorf("%s: exit code %d, it says %q, want %q", flags, code, &w.err, want)
		}
	}
}

// TestUpShares reads what a file of disco up says of the scheduler.
func TestUpShares(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "guests.yaml")
	read := func(text string) (*up, error) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		u := &up{fleet: fleet{world: &w.world}}
		u.file = file
		return u, u.read()
	}
	u, err := read("scheduler: lottery\nquantum: 2ms\ncpus-host: 0\ngroups: [gold=300, web=100]\n" +
		"guests:\n  a:\n    tickets: 2\n    group: gold\n    cpu-limit: 50%\n    gang: true\n")
	if err != nil {
		t.Fatal(err)
	}
	want := vmm.SchedulerConfig{Kind: vmm.SchedulerLottery, Quantum: 2e6, CPUs: []int{0}, Groups: map[string]int64{"gold": 300, "web": 100}, Strict: true}
	if got := u.monitor.Scheduler; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if c := u.members[0].run.cfg; c.Tickets != 2 || c.Group != "gold" || c.CPULimit != 500 || !c.Gang {
		t.Errorf("the guest has %d tickets in %q, limit %d", c.Tickets, c.Group, c.CPULimit)
	}
	for text, want := range map[string]string{
		"groups: [gold]":              ":1:10: groups \"gold\": write a group as NAME=TICKETS",
		"groups: [a=0]":               ":1:10: groups \"a=0\": 0 tickets would never be served",
		"groups: [a=1, a=2]":          ":1:15: groups \"a=2\": the group is there twice",
		"scheduler: best":             ":1:12: scheduler \"best\": there are stride, lottery and host",
		"quantum: 1h":                 "quantum 1h0m0s: use 1ms to 30ms",
		"guests: {a: {quantum: 1ms}}": "quantum",
	} {
		if !strings.Contains(text, "guests") {
			text += "\nguests: {a: {}}"
		}
		if _, err := read(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
