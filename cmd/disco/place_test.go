package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"disco/host"
	"disco/integration/lab"
)

func TestPlace(t *testing.T) {
	for _, tt := range []struct {
		where string
		kvm   []host.Finding
		lab   bool
	}{
		{"auto", runsHere, false}, {"auto", noKVM, true},
		{"here", runsHere, false}, {"here", noKVM, false},
		{"lab", runsHere, true}, {"lab", noKVM, true},
	} {
		w := newWorld(t)
		w.guests = func() []host.Finding { return tt.kvm }
		if code := w.disco("run", "--host", tt.where); code != 0 {
			t.Errorf("%s: exit code %d: %s", tt.where, code, &w.err)
		}
		if (w.lab != nil) != tt.lab || (w.built != nil) == tt.lab {
			t.Errorf("%s, KVM %s: in the lab %v", tt.where, tt.kvm[0].Status, w.lab != nil)
		}
		said := strings.Count(w.err.String(), "running in the lab")
		if want := tt.where == "auto" && tt.lab; want != (said == 1) || strings.Count(w.err.String(), "\n") > 1 {
			t.Errorf("%s: it says %q", tt.where, &w.err)
		}
	}
}

func TestInLab(t *testing.T) {
	w := newWorld(t)
	t.Chdir(t.TempDir())
	touch(t, "d.img")
	if err := os.Mkdir("out", 0o755); err != nil {
		t.Fatal(err)
	}
	code := w.disco("run", "--host", "lab", "--disk", "d.img", "--disk", w.env["DISCO_KERNEL"]+",ro", "--report", "out/r.json",
		"--net", "user,forward=tcp:8080:80,forward=tcp:127.0.0.1:8443:443", "--memory", "3G", "--timeout", "1m")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if real, err := filepath.EvalSymlinks(cwd); err != nil || w.lab.Dir != real {
		t.Errorf("shares %s, want %s", w.lab.Dir, real)
	}
	if want := []lab.Forward{{Host: 8080, Lab: 8080}, {Host: 8443, Lab: 8443}}; !slices.Equal(w.lab.Forwards, want) {
		t.Errorf("forwards %v, want %v", w.lab.Forwards, want)
	}
	if w.lab.Memory != 4<<30 {
		t.Errorf("memory %d", w.lab.Memory)
	}
	line := quote(w.lab.Command)
	for _, want := range []string{"/opt/disco/bin/disco run --kernel ", " --disk d.img ", " --report out/r.json ", " --timeout 1m0s ", " --host here"} {
		if !strings.Contains(line, want) {
			t.Errorf("runs %s, want %q in it", line, want)
		}
	}
}

func TestBeyondLab(t *testing.T) {
	w := newWorld(t)
	outside := t.TempDir()
	disk := touch(t, filepath.Join(outside, "d.img"))
	t.Chdir(t.TempDir())
	if err := os.Symlink(disk, "link.img"); err != nil {
		t.Fatal(err)
	}
	code := w.disco("run", "--host", "lab", "--disk", disk, "--report", filepath.Join(outside, "r"), "--vsock", filepath.Join(outside, "v"),
		"--net", "tap=t0", "--net", "user,forward=udp:53:53,forward=tcp:0.0.0.0:80:80")
	if code != 3 || w.lab != nil {
		t.Errorf("exit code %d", code)
	}
	lines := strings.Split(strings.TrimSpace(w.err.String()), "\n")
	want := []string{
		"disk " + disk + ": it would be read-only in the lab", "vsock ", "net tap t0: the lab does not have",
		"net forward udp:53:53: only tcp", "net forward tcp:0.0.0.0:80:80: only tcp", "report ",
	}
	if len(lines) != len(want) {
		t.Fatalf("it says %s", &w.err)
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], "disco: "+want[i]) {
			t.Errorf("line %q, want %q", lines[i], want[i])
		}
	}

	w = newWorld(t)
	if code := w.disco("run", "--host", "lab", "--disk", "link.img"); code != 3 || !strings.Contains(w.err.String(), "disk link.img: it would be read-only") {
		t.Errorf("a link out of the folder: exit code %d: %s", code, &w.err)
	}
}

// A guest in the lab is told to keep its ticks, before what the person says.
func TestTicksInTheLab(t *testing.T) {
	w := newWorld(t)
	w.env[lab.InLab] = "1"
	if code := w.disco("run", "--cmdline", "nohz=on", "--host", "here"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	if got := w.built.Cmdline; got != "quiet loglevel=3 nohz=off nohz=on" {
		t.Errorf("kernel command line %q", got)
	}
}
