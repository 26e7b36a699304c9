package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"disco/control"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// looks is what two monitors answer, and answer two seconds later.
func looks() (before, now []*seen) {
	share := 0.9
	answer := func(n uint64) []*seen {
		web := control.Guest{
			Name: "web", State: control.Running, Memory: 512 << 20, Resident: 100 << 20, Shared: 12 << 20, Nodes: []int{0, 1}, LocalShare: &share,
			Group: "front", Tickets: 300, Asked: 1.5, Limit: 1.75, Parallel: []uint64{5e8 * n, 10e8 * n, 5e8 * n},
			VCPUs: []control.VCPU{
				{ID: 0, State: control.Running, Asked: 0.75, CPU: 15e8 * n, Waited: 4e8 * n, Stolen: 3e8 * n, Exits: map[string]uint64{"io": 100 * n, "mmio": 8 * n}, KVM: map[string]uint64{"exits": 900 * n, "halt_exits": 700 * n, "io_exits": 100 * n}},
				{ID: 1, Node: 1, State: control.Halted, Asked: 0.75, CPU: 5e8 * n, Relayed: 50 * n, Exits: map[string]uint64{"io": 10 * n, "intr": 7}},
			},
		}
		db := control.Guest{
			Name: "database", State: control.Running, Memory: 1 << 30, Nodes: []int{0}, Tickets: 100, Asked: 0.5,
			VCPUs:   []control.VCPU{{State: control.Waiting, Asked: 0.5, CPU: 1e8 * n, Waited: 19e8 * n, Exits: map[string]uint64{}}},
			Workers: 4e7 * n,
		}
		again := control.Guest{ // has restarted in between
			Name: "again", State: control.Running, Nodes: []int{0}, Parallel: []uint64{0, 30e8 / n},
			VCPUs: []control.VCPU{{State: control.Running, CPU: 40e8 / n, Exits: map[string]uint64{"io": 400 / n}}},
		}
		all := []*seen{
			{&control.Snapshot{
				Monitor: control.Monitor{PID: 4711, Program: "disco", Uptime: 2e9 * n, Scheduler: "stride", CPUs: 2, Quantum: 1e7},
				Guests:  []control.Guest{web, db},
			}, "/a"},
			{&control.Snapshot{Monitor: control.Monitor{PID: 5000, Program: "disco", Uptime: 2e9 * n, Scheduler: "host", CPUs: 2}, Guests: []control.Guest{again}}, "/b"},
		}
		if n > 1 {
			all[1].Guests = append(all[1].Guests, control.Guest{Name: "new", State: control.Built, Memory: 1 << 20})
		}
		return all
	}
	return answer(1), answer(2)
}

func TestLook(t *testing.T) {
	look := lookAt(looks())
	look.Trouble = []string{"/c: its monitor speaks version 2"}
	b, err := json.MarshalIndent(look, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "top.json", string(b)+"\n")
	golden(t, "top.txt", look.text(topOrders[0]))
	golden(t, "top-name.txt", look.text(topOrders[len(topOrders)-1]))
}

// TestFirstLook has nothing to say of rates, and nothing of nobody.
func TestFirstLook(t *testing.T) {
	_, now := looks()
	for _, before := range [][]*seen{nil, now} { // also one that no time has passed since
		look := lookAt(before, now)
		if g := look.Monitors[0].Guests[0]; g.Got != 0 || g.Waiting != 0 || len(g.Exits) != 0 || look.Monitors[0].Interval != 0 {
			t.Errorf("got %+v", g)
		}
	}
	if got := lookAt(nil, nil).text(topOrders[0]); got != "0 monitors, 0 guests, 0 vCPUs\n" {
		t.Errorf("got %q", got)
	}
	b, err := json.Marshal(lookAt(nil, nil))
	if err != nil || string(b) != `{"monitors":[]}` {
		t.Errorf("got %s, %v", b, err)
	}
}

// topOf is a topScreen of a size that has seen what is in looks.
func topOf(width, height int) *topScreen {
	s := &topScreen{every: time.Second, ask: func() tea.Msg { return nil }}
	s.Update(tea.WindowSizeMsg{Width: width, Height: height})
	s.Update(lookAt(looks()))
	return s
}

func TestScreen(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {120, 24}, {40, 10}, {200, 6}} {
		s := topOf(size[0], size[1])
		s.vcpus = true
		golden(t, fmt.Sprintf("top-%dx%d.txt", size[0], size[1]), strings.Join(s.lines(), "\n")+"\n")
	}
}

// TestScreenFits: no size and no key makes a line too long or a line too many.
func TestScreenFits(t *testing.T) {
	plain := strings.NewReplacer(topReverse, "", topBold, "", topPlain, "")
	for width := 0; width < 130; width += 3 {
		for height := range 14 {
			s := topOf(width, height)
			for _, key := range []string{"", "v", "s", "down", "down", "pgdown", "up", "S", "pgup", "v"} {
				s.key(key)
				lines := s.lines()
				if len(lines) > height {
					t.Fatalf("%d×%d, after %q: %d lines", width, height, key, len(lines))
				}
				for _, line := range lines {
					if n := utf8.RuneCountInString(plain.Replace(line)); n > width {
						t.Fatalf("%d×%d, after %q: a line of %d: %q", width, height, key, n, line)
					}
				}
			}
		}
	}
}

func TestScreenKeys(t *testing.T) {
	s := topOf(100, 30)
	bold := func() string {
		_, after, _ := strings.Cut(strings.Join(s.lines(), "\n"), topBold)
		name, _, _ := strings.Cut(after, " ")
		return name
	}
	for _, step := range []struct{ key, bold, title string }{
		{"", "web", "by got"}, {"down", "again", "by got"}, {"s", "again", "by asked"}, {"up", "database", ""}, {"up", "web", ""},
		{"pgdown", "new", ""}, {"down", "new", ""}, {"v", "new", ""}, {"S", "new", "by got"}, {"pgup", "web", ""},
	} {
		if cmd := s.key(step.key); cmd != nil {
			t.Errorf("%q ends it", step.key)
		}
		if got := bold(); got != step.bold || !strings.Contains(s.lines()[0], step.title) {
			t.Errorf("after %q: %s is chosen, want %s; %s", step.key, got, step.bold, s.lines()[0])
		}
	}
	for _, key := range []string{"q", "esc", "ctrl+c"} {
		if s.key(key) == nil {
			t.Errorf("%q does not end it", key)
		}
	}
	// Guests go, one of them chosen.
	if s.Update(lookAt(nil, nil)); strings.Contains(strings.Join(s.lines(), ""), topBold) {
		t.Error("somebody is chosen of nobody")
	}
	s.key("down")
	if _, cmd := s.Update(errors.New("gone")); cmd == nil || s.err == nil {
		t.Error("an error does not end it")
	}
	if v := s.View(); !v.AltScreen {
		t.Error("it writes over what the terminal shows")
	}
}

func TestTopFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--interval 1ms": "interval 1ms: at least 100ms", "--interval soon": "not a duration", "--sort size": "there are got, asked",
		"--control /absent": "disco: /absent: ", "web": "unknown command",
	} {
		w := newWorld(t)
		if code := w.disco(append([]string{"top"}, strings.Fields(args)...)...); code == 0 || !strings.Contains(w.err.String(), want) {
			t.Errorf("top %s: exit code %d, %s; want %s", args, code, &w.err, want)
		}
	}
	w := newWorld(t)
	if code := w.disco("top", "--interval", "100ms", "--once"); code != 0 || w.out.String() != "0 monitors, 0 guests, 0 vCPUs\n" {
		t.Errorf("nobody runs: exit code %d, %s%s", code, &w.out, &w.err)
	}
}
