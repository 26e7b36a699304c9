package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"disco/control"
	"disco/vcpu/kvm"
	"disco/vmm"
)

func TestParseMetrics(t *testing.T) {
	for text, want := range map[string]string{
		"9100": "127.0.0.1:9100", ":9100": "127.0.0.1:9100", "0": "127.0.0.1:0", "0.0.0.0:9100": "0.0.0.0:9100",
		"[::1]:9100": "[::1]:9100", "localhost:80": "localhost:80",
		"": "", "x": "", "65536": "", "-1": "", "1.2.3.4": "", "example.com:80": "", "1.2.3.4:http": "", "::1:80": "", "[::1]": "",
	} {
		got, err := parseMetrics(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestGuestOf(t *testing.T) {
	l := vmm.Live{
		State: vmm.LiveRunning, CPUs: 3, Memory: 1 << 30, Resident: 5, Shared: 2, LocalShare: 0.5, Sampled: true,
		Parallel: []time.Duration{1, 2, 3, 4}, Tickets: 7, Group: "g", Asked: 1.5, Limit: 2,
		VCPUs: []vmm.LiveVCPU{
			{Used: 10, Delayed: 12, Held: 8, Asked: 0.5, Relayed: 3, Exits: [kvm.NumExits]uint64{kvm.ExitIO: 4}, KVM: kvm.Stats{"exits": 9, "io_exits": 5, "halt_wait_ns": 77}},
			{Asleep: true}, {Asleep: true, Waiting: true, Node: 1},
		},
	}
	g := guestOf(&l)
	if g.Name != "guest" || g.State != control.Running || g.Shared != 8192 || *g.LocalShare != 0.5 || g.Tickets != 7 || g.Group != "g" ||
		g.Asked != 1.5 || g.Limit != 2 || len(g.Parallel) != 4 || len(g.VCPUs) != 3 {
		t.Errorf("got %+v", g)
	}
	v := g.VCPUs[0]
	if v.State != control.Running || v.CPU != 10 || v.Waited != 20 || v.Stolen != 20 || v.Asked != 0.5 || v.Relayed != 3 || fmt.Sprint(v.Exits) != "map[io:4]" || fmt.Sprint(v.KVM) != "map[exits:9 io_exits:5]" {
		t.Errorf("got %+v", v)
	}
	if g.VCPUs[1].State != control.Halted || g.VCPUs[2].State != control.Waiting || g.VCPUs[2].Node != 1 {
		t.Errorf("got %+v", g.VCPUs[1:])
	}
	l.State, l.Sampled = vmm.LiveEnded, false
	if g := guestOf(&l); g.State != control.Ended || g.LocalShare != nil || g.VCPUs[0].State != control.Idle {
		t.Errorf("got %+v", g)
	}
}

// TestRunIsSeen: while a guest runs, top and tickets find it by the usual socket,
// and Prometheus by the port; afterwards nothing is left.
func TestRunIsSeen(t *testing.T) {
	w := newWorld(t)
	w.live = []vmm.Live{{Name: "web", State: vmm.LiveRunning, Tickets: 100, VCPUs: []vmm.LiveVCPU{{}}}}
	dir, err := w.controlDir()
	if err != nil {
		t.Fatal(err)
	}
	var seen, scraped string
	w.guest.during = func(*fakeGuest) {
		other := newWorld(t)
		other.controlDir = w.controlDir
		for _, line := range []string{"top --once --interval 100ms", "tickets web 300", "tickets nobody 3", "top --json --interval 100ms --once"} {
			code := other.disco(strings.Fields(line)...)
			seen += fmt.Sprintf("%s: %d\n%s%s", line, code, &other.out, &other.err)
			other.out.Reset()
			other.err.Reset()
		}
		a, err := http.Get(regexp.MustCompile(`http://\S+`).FindString(w.err.String()))
		if err != nil {
			t.Error(err)
			return
		}
		defer a.Body.Close()
		b, _ := io.ReadAll(a.Body)
		scraped = string(b)
	}
	if code := w.disco("run", "--metrics", "0"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	for _, want := range []string{
		"1 monitor, 1 guest, 1 vCPU; stride 10ms on 2 CPUs\n", "\nweb ", "\n  vCPU 0 ",
		"tickets web 300: 0\nweb has 300 tickets, worth 0.00 of its monitor's 2 CPUs", `no guest is called "nobody"; there are web`, `"tickets": 300`,
	} {
		if !strings.Contains(seen, want) {
			t.Errorf("%q is not in\n%s", want, seen)
		}
	}
	if !strings.Contains(scraped, `disco_guest_tickets{group="",guest="web"} 300`) {
		t.Errorf("scraped\n%s", scraped)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in %s: %v, %v", dir, left, err)
	}
}

func TestControlFlag(t *testing.T) {
	t.Run("off", func(t *testing.T) {
		w := newWorld(t)
		dir, _ := w.controlDir()
		if code := w.disco("run", "--control", "off"); code != 0 || w.err.Len() > 0 {
			t.Errorf("exit code %d: %s", code, &w.err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("there is a folder")
		}
	})
	t.Run("path", func(t *testing.T) {
		w := newWorld(t)
		path := filepath.Join(t.TempDir(), "s")
		w.guest.during = func(*fakeGuest) {
			if err := control.NewClient(path); err == nil {
				t.Error("no client")
			}
			if _, err := control.NewClient(path).Guests(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if code := w.disco("run", "--control", path); code != 0 || w.err.Len() > 0 {
			t.Errorf("exit code %d: %s", code, &w.err)
		}
	})
	t.Run("path that cannot be", func(t *testing.T) {
		w := newWorld(t)
		if code := w.disco("run", "--control", filepath.Join(t.TempDir(), "absent", "s")); code != 3 || !strings.Contains(w.err.String(), "disco: control ") {
			t.Errorf("exit code %d: %s", code, &w.err)
		}
	})
	t.Run("no usual folder", func(t *testing.T) {
		w := newWorld(t)
		w.controlDir = func() (string, error) { return filepath.Join(t.TempDir(), "absent", "disco"), nil }
		if code := w.disco("run"); code != 0 || !strings.Contains(w.err.String(), "no control socket") {
			t.Errorf("exit code %d: %s", code, &w.err)
		}
	})
	t.Run("port in use", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		w := newWorld(t)
		if code := w.disco("run", "--metrics", l.Addr().String()); code != 3 || !strings.Contains(w.err.String(), "disco: metrics ") || w.built != nil {
			t.Errorf("exit code %d: %s", code, &w.err)
		}
	})
	t.Run("in the lab", func(t *testing.T) {
		w := newWorld(t)
		if code := w.disco("run", "--host", "lab", "--control", "/tmp/s", "--metrics", "1"); code != 3 || strings.Count(w.err.String(), "cannot be reached from here") != 2 {
			t.Errorf("exit code %d: %s", code, &w.err)
		}
		w = newWorld(t)
		if code := w.disco("run", "--host", "lab", "--control", "off"); code != 0 || !strings.Contains(quote(w.lab.Command), "--control off") {
			t.Errorf("exit code %d: %s", code, &w.err)
		}
	})
}

// monitors are several with a guest of the same name, besides one of another.
func monitors(t *testing.T) (w *fakeWorld, paths []string) {
	t.Helper()
	w = newWorld(t)
	dir, _ := w.controlDir()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	for i, guests := range [][]string{{"web"}, {"web", "db"}} {
		path := filepath.Join(dir, fmt.Sprintf("%d.sock", 70+i))
		l, err := control.Listen(path, log)
		if err != nil {
			t.Fatal(err)
		}
		s := control.Serve(l, control.Handler(&fixed{pid: 70 + i, guests: guests}, nil), log)
		t.Cleanup(func() { s.Close() })
		paths = append(paths, path)
	}
	return w, paths
}

// fixed is a control.Source.
type fixed struct {
	pid    int
	guests []string

	segments []control.Segment
	folders  []control.Folder
}

func (f *fixed) Monitor() control.Monitor {
	return control.Monitor{Version: control.Version, PID: f.pid, Scheduler: "host", CPUs: 2, Uptime: uint64(time.Now().UnixNano())}
}

func (f *fixed) Guests() (all []control.Guest) {
	for _, name := range f.guests {
		all = append(all, control.Guest{Name: name, State: control.Running})
	}
	return all
}

func (f *fixed) Segments() []control.Segment { return f.segments }
func (f *fixed) Folders() []control.Folder   { return f.folders }

func (f *fixed) Capture(string, int) (control.Capture, error) { return nil, control.ErrNoSegment }

func (f *fixed) SetTickets(name string, _ int64) error {
	if f.pid == 70 {
		return fmt.Errorf("not here%.0w", control.ErrRefused)
	}
	return nil
}

func TestTickets(t *testing.T) {
	w, paths := monitors(t)
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"db 5", 0, "db has 0 tickets"},
		{"71/web 5", 0, "web has 0 tickets"},
		{"70/web 5", 3, "disco: not here\n"},
		{"web 5", 2, "disco: guests of 2 processes are called web: name one of 70/web, 71/web\n"},
		{"72/web 5", 2, `disco: no guest is called "72/web"; there are 70/web, 71/web, db` + "\n"},
		{"--control " + paths[1] + " web 5", 0, "web has 0 tickets"},
		{"--control /absent web 5", 3, "disco: /absent: "},
		{"web", 2, "disco: 1 word: give a guest's name and its tickets"},
		{"web 0", 2, "0 tickets would never be served: use 1 to 1048576"},
		{"web -3", 2, "-3 tickets: use 1 to 1048576"},
		{"web 1048577", 2, "at most 1048576"},
		{"web many", 2, `"many" is no number of tickets: use 1 to 1048576`},
		{"web 99999999999999999999", 2, "is no number of tickets"},
	} {
		w.out.Reset()
		w.err.Reset()
		if code := w.disco(append([]string{"tickets"}, strings.Fields(tt.args)...)...); code != tt.code || !strings.Contains(w.out.String()+w.err.String(), tt.says) {
			t.Errorf("tickets %s: exit code %d, %s%s; want %d, %s", tt.args, code, &w.out, &w.err, tt.code, tt.says)
		}
	}
	w.out.Reset()
	if w.disco("__complete", "tickets", ""); !strings.Contains(w.out.String(), "70/web\n71/web\ndb\n") {
		t.Errorf("completion: %s", &w.out)
	}
}
