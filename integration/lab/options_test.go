package lab

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const someMemory = 64 << 30

func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		in   Options
		cpus int
		mem  uint64
	}{
		{Options{}, 4, 3 << 30},
		{Options{Nodes: 1}, 4, 3 << 30},
		{Options{Nodes: 3}, 6, 3 << 30},
		{Options{Nodes: 8}, 16, 8 << 30},
		{Options{Nodes: 4, CPUs: 4, Memory: 2 << 30}, 4, 2 << 30},
	} {
		o := c.in
		o.Dir = "/"
		if problems := o.complete(someMemory); problems != nil {
			t.Errorf("%+v: %v", c.in, problems)
		}
		if o.CPUs != c.cpus || o.Memory != c.mem {
			t.Errorf("%d nodes: %d CPUs and %d bytes, want %d and %d", o.Nodes, o.CPUs, o.Memory, c.cpus, c.mem)
		}
		if o.Distance != 21 || o.BootTimeout != time.Minute || len(o.Env) == 0 || o.Stdout == nil || o.Stderr == nil {
			t.Errorf("%+v lacks a default", o)
		}
	}
}

func TestAllThatIsWrongIsSaidTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    Options
		want []string // one for each problem, in order
	}{
		{"nodes", Options{Nodes: 9}, []string{"nodes 9: use 1 to 8"}},
		{"negative nodes", Options{Nodes: -1, CPUs: -1}, []string{"nodes -1", "cpus -1"}},
		{"uneven", Options{Nodes: 2, CPUs: 5}, []string{"cpus 5: use a multiple of the 2 nodes"}},
		{"too many CPUs", Options{CPUs: 100000}, []string{"cpus 100000: use 1 to 255"}},
		{"little memory", Options{Memory: 1}, []string{"memory 1B: 2 nodes need at least 512MiB"}},
		{"little memory a node", Options{Nodes: 8, Memory: 512 << 20}, []string{"at least 1GiB"}},
		{"much memory", Options{Memory: 1 << 40}, []string{"memory 1TiB: this machine has 64GiB"}},
		{"distance", Options{Distance: 9}, []string{"distance 9: use 10 to 254"}},
		{"far", Options{Distance: 255}, []string{"distance 255"}},
		{"boot timeout", Options{BootTimeout: -1}, []string{"boot timeout"}},
		{"NUL", Options{Command: []string{"a\x00b"}}, []string{"NUL"}},
		{"forwards", Options{Forwards: []Forward{{80, 80}, {80, 81}, {0, 1}}}, []string{"twice", "ports from 1"}},
		{"no folder", Options{Dir: file + "s"}, []string{"no such file"}},
		{"not a folder", Options{Dir: file}, []string{"not a folder"}},
		{"the lab's own", Options{Dir: "/sys/kernel"}, []string{"has its own /sys"}},
		{"everything", Options{Nodes: 2, CPUs: 3, Memory: 5, Distance: 1, Forwards: []Forward{{0, 0}}, BootTimeout: -time.Second, Dir: "/proc"},
			[]string{"cpus 3", "memory 5B", "distance 1", "forward", "boot timeout", "/proc"}},
	} {
		if c.o.Dir == "" {
			c.o.Dir = "/"
		}
		problems := c.o.complete(someMemory)
		if len(problems) != len(c.want) {
			t.Errorf("%s: %q, want %d problems", c.name, problems, len(c.want))
			continue
		}
		for i, p := range problems {
			if !strings.Contains(p.Error(), c.want[i]) {
				t.Errorf("%s: %q, want %q", c.name, p, c.want[i])
			}
			if strings.Contains(p.Error(), "\n") {
				t.Errorf("%s: %q is not one line", c.name, p)
			}
		}
	}
}

func TestDirIsReal(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: link}
	if problems := o.complete(someMemory); problems != nil || o.Dir != dir {
		t.Errorf("%s: %s, %v", link, o.Dir, problems)
	}
}

func TestParseForward(t *testing.T) {
	for s, want := range map[string]Forward{
		"tcp:8080:80":     {8080, 80},
		"tcp:1:65535":     {1, 65535},
		"udp:53:53":       {},
		"tcp:0:80":        {},
		"tcp:80:65536":    {},
		"tcp:80":          {},
		"tcp:80:80:80":    {},
		"tcp:http:80":     {},
		"tcp:-1:80":       {},
		"":                {},
		"tcp:+80:80":      {},
		"tcp: 80:80":      {},
		"127.0.0.1:80:80": {},
	} {
		got, err := ParseForward(s)
		if got != want || (err != nil) != (want == Forward{}) {
			t.Errorf("%q: %v, %v", s, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), "tcp:HOSTPORT:LABPORT") {
			t.Errorf("%q: %q does not say how to write it", s, err)
		}
	}
}

func FuzzParseForward(f *testing.F) {
	f.Add("tcp:8080:80")
	f.Add("tcp::")
	f.Fuzz(func(t *testing.T, s string) {
		fw, err := ParseForward(s)
		if err == nil && (fw.Host == 0 || fw.Lab == 0) {
			t.Errorf("%q gives %v", s, fw)
		}
	})
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"PATH=/bin", "DISPLAY=:0", "LANG=C", "SSH_AUTH_SOCK=/run/x", InLab + "=0", "LANG=again", "bad"})
	want := []string{"PATH=/bin", "LANG=C", "HOME=/root", "TERM=dumb", InLab + "=1"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := environment(nil); len(got) != 4 || !strings.HasPrefix(got[0], "PATH=") {
		t.Errorf("from nothing: %q", got)
	}
}

func TestCheckChangesNothing(t *testing.T) {
	o := Options{Nodes: 4}
	if problems := o.Check(); problems != nil {
		t.Errorf("%v", problems)
	}
	if want := (Options{Nodes: 4}); !reflect.DeepEqual(o, want) {
		t.Errorf("%+v", o)
	}
}
