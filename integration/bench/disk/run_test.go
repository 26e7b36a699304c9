package main

import (
	"math"
	"os"
	"strings"
	"testing"

	"disco/integration/bench/exits"
)

func TestParseUsage(t *testing.T) {
	stat := "4 (a (b) c) S 1 " + strings.Repeat("0 ", 9) + "150 50 " + strings.Repeat("0 ", 27) + "30 0 0"
	u, err := parseUsage(stat)
	if err != nil || u != (usage{all: 2, guest: 0.3}) {
		t.Errorf("%+v, %v", u, err)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", strings.Replace(stat, "150", "x", 1)} {
		if _, err := parseUsage(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if u, err := usageOf(os.Getpid()); err != nil || u.all < 0 || u.guest != 0 {
		t.Errorf("this process: %+v, %v", u, err)
	}
}

func TestResult(t *testing.T) {
	b := &benchmark{}
	for _, p := range []struct {
		program string
		seconds float64
		exits   uint64
	}{{discoName, 0.5, 10}, {discoName, 0.25, 20}, {microvmName, 0.5, 400}} {
		for _, pattern := range patterns {
			b.rows = append(b.rows, row{Program: p.program, Pattern: pattern.name, Ops: 100, Seconds: p.seconds,
				HostCPU: 1e-4, Exits: &exits.Exits{All: 1000, Userspace: p.exits}})
		}
	}
	r := b.result([]program{{name: discoName}, {name: microvmName}}, "here")
	if len(r.Series) != 16 || len(r.Promises) != 8 {
		t.Fatalf("%d series, %d promises", len(r.Series), len(r.Promises))
	}
	// Medians: 300 and 200 operations a second, 0.15 exits each.
	for i, p := range r.Promises {
		want := 1.5
		if i%2 == 1 {
			want = 0.15
		}
		if !p.OK || math.Abs(p.Got-want) > 1e-9 {
			t.Errorf("%+v", p)
		}
	}
	if r := (&benchmark{rows: b.rows[8:]}).result([]program{{name: microvmName}}, ""); len(r.Promises) != 0 {
		t.Errorf("promises of others: %v", r.Promises)
	}
}

func TestFollow(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"disco-guest: disk=up\n[ 1.0] x disco-guest: disk=done\nend\n", ""},
		{"disco-guest: disk=up\n", "ended before"},
		{"disco-guest: result=failed reason=\"no disk\"\n", "no disk"},
	} {
		f := follower{}
		err := f.follow(strings.NewReader(c.text))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}
