package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"disco/host"
	"disco/vmm"
)

// fakeFleet keeps the guests that a fakeWorld makes.
type fakeFleet struct {
	*fakeWorld
	mu     sync.Mutex
	built  []*fakeGuest
	fails  map[string]error              // by guest: what New says
	ends   map[string]vmm.Outcome        // by guest
	during map[string]func(g *fakeGuest) // by guest
}

func newFleetWorld(t *testing.T) *fakeFleet {
	t.Helper()
	w := &fakeFleet{fakeWorld: newWorld(t), fails: map[string]error{}, ends: map[string]vmm.Outcome{}, during: map[string]func(*fakeGuest){}}
	w.make = func(c vmm.Config) (guest, error) {
		if err := w.fails[c.Name]; err != nil {
			return nil, err
		}
		g := &fakeGuest{cfg: c, outcome: w.ends[c.Name], during: w.during[c.Name], killed: make(chan string, 4), sizes: make(chan [2]uint16, 4)}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.built = append(w.built, g)
		return g, nil
	}
	return w
}

// file writes a file of guests and returns its path.
func upFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "up.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func says(text string) func(*fakeGuest) {
	return func(g *fakeGuest) { _, _ = io.WriteString(g.cfg.Stdout, text) }
}

func TestUp(t *testing.T) {
	w := newFleetWorld(t)
	path := upFile(t, `
guests:
  web:
    replicas: 2
    memory: 64M
    cmdline: host=web{n}
    disks: ["data.img,ro"]
  db:
    kernel: ./k
    cpus: 3
    kaslr: true
    nets: none
    console: serial
    placement: node=0
    timeout: 5s
  plain:
`)
	dir := filepath.Dir(path)
	touch(t, filepath.Join(dir, "data.img"))
	touch(t, filepath.Join(dir, "k"))
	w.during["web-1"] = says("one\ntwo without end")
	w.during["db"] = says("\x1b[31mred\x1b[0m\r\n")
	if code := w.disco("up", "--host", "here", path); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	var names []string
	for _, g := range w.built {
		names = append(names, g.cfg.Name)
		if !g.closed {
			t.Errorf("%s was not closed", g.cfg.Name)
		}
	}
	if !slices.Equal(names, []string{"web-1", "web-2", "db", "plain"}) {
		t.Fatalf("guests %v", names)
	}
	web, db, plain := w.built[1].cfg, w.built[2].cfg, w.built[3].cfg
	if web.Memory != 64<<20 || web.Cmdline != "quiet loglevel=3 host=web2" || len(web.Disks) != 1 ||
		web.Disks[0].Path != filepath.Join(dir, "data.img") || !web.Disks[0].ReadOnly || len(web.Nets) != 1 || web.Stdin != nil {
		t.Errorf("web-2: %+v", web)
	}
	if db.Kernel != filepath.Join(dir, "k") || db.CPUs != 3 || !db.KASLR || db.Nets != nil || db.Console != vmm.ConsoleSerial ||
		db.NUMA.Placement.Kind != vmm.PlaceNodes || db.NUMA.Lenient || db.Timeout != 5*time.Second {
		t.Errorf("db: %+v", db)
	}
	if plain.Kernel != w.env["DISCO_KERNEL"] || plain.Memory != 512<<20 || !plain.NUMA.Lenient {
		t.Errorf("plain: %+v", plain)
	}
	lines := strings.Split(strings.TrimSpace(w.out.String()), "\n")
	slices.Sort(lines)
	if want := []string{"db    | red", "web-1 | one", "web-1 | two without end"}; !slices.Equal(lines, want) {
		t.Errorf("the consoles say %q, want %q", lines, want)
	}
	for _, want := range []string{"disco: GUEST  TIME ", "disco: web-1  ", "disco: plain  "} {
		if !strings.Contains(w.err.String(), want) {
			t.Errorf("it says %q, want %q", &w.err, want)
		}
	}
}

// TestUpEnds: the exit code is that of the first guest that ended badly, the table
// says how each ended, and a report has all.
func TestUpEnds(t *testing.T) {
	w := newFleetWorld(t)
	w.ends["b"] = vmm.Outcome{Kind: vmm.DebugExit, Code: 33}
	w.ends["c"] = vmm.Outcome{Kind: vmm.Crashed, Code: 1, Reason: "panic", LastLines: []string{"Kernel panic"}}
	later := make(chan struct{})
	w.during["c"] = func(*fakeGuest) { <-later }
	w.during["b"] = func(*fakeGuest) { time.AfterFunc(50*time.Millisecond, func() { close(later) }) }
	report := filepath.Join(t.TempDir(), "r.json")
	code := w.disco("up", "--host", "here", "--report", report, upFile(t, "guests: {a: , b: , c: }"))
	if code != 33 {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
	for _, want := range []string{" powered off\n", " debug exit: code 33\n", " crashed: panic\n", "the last lines of c's console:\n  Kernel panic\n"} {
		if !strings.Contains(w.err.String(), want) {
			t.Errorf("it says %q, want %q", &w.err, want)
		}
	}
	b, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var reports []map[string]any
	if err := json.Unmarshal(b, &reports); err != nil || len(reports) != 3 {
		t.Errorf("report %s: %v", b, err)
	}
}

// TestUpProblems tells all that is wrong at once, each with its place.
func TestUpProblems(t *testing.T) {
	w := newFleetWorld(t)
	path := upFile(t, `cache-size: lots
guests:
  a:
    replicas: 2
    memroy: 5
    memory: big
    kernel: absent
    disks: [w.img, missing.img]
    vsock: ./v
  b:
    disks: w.img
    nets: ["user,forward=tcp:80:80", "tap=t0"]
    cpus: 1000
    console: pty,vga
  c:
    nets: ["user,forward=tcp:80:81", "tap=t0"]
    timeout: -5s
    name: x
`)
	touch(t, filepath.Join(filepath.Dir(path), "w.img"))
	if code := w.disco("up", "--stats-interval", "soon", "--report", "/", path); code != 2 || len(w.built) > 0 {
		t.Errorf("exit code %d", code)
	}
	got := strings.ReplaceAll(w.err.String(), filepath.Dir(path)+"/", "")
	want := `disco: --stats-interval soon: not a duration; write one like 90s or 5m
disco: report /: it is a directory; name a file
disco: up.yaml:5:5: there is no key "memroy"; did you mean memory?
disco: up.yaml:18:5: there is no key "name"; known are 
disco: up.yaml:1:13: cache-size "lots": not a size; write one like 512M or 2G
disco: up.yaml:6:13: memory "big": not a size; write one like 512M or 2G
disco: up.yaml:7:13: kernel absent: there is no such file
disco: up.yaml:8:20: disk missing.img: there is no such file
disco: up.yaml:13:11: cpus 1000: a guest has at most 254
disco: up.yaml:14:14: console "pty,vga": there are virtio and serial
disco: up.yaml:17:14: timeout -5s: it must not be negative; 0 is none
disco: up.yaml:8:13: disk w.img: guests a-1 and a-2 cannot both have it; give it with ,ro to all, or each its own ({n} in a value is the replica's number)
`
	// What two guests would have is told once, wherever that is.
	for _, line := range []string{"up.yaml:9:12: vsock v: guests a-1 and a-2 cannot both have it", "net forward=tcp:80:81: guests b and c cannot", "net tap=t0: guests b and c cannot"} {
		if !strings.Contains(got, line) {
			t.Errorf("it says\n%s\nwant %q in it", got, line)
		}
	}
	for line := range strings.Lines(want) {
		if !strings.Contains(got, strings.TrimSuffix(line, "\n")) {
			t.Errorf("it says\n%s\nwant %q in it", got, line)
		}
	}
	if n := strings.Count(got, "\n"); n != 15 {
		t.Errorf("it says %d lines:\n%s", n, got)
	}
}

// TestUpBuildsAllFirst: what cannot be built is told together, and nothing runs.
func TestUpBuildsAllFirst(t *testing.T) {
	w := newFleetWorld(t)
	w.fails["b-1"] = &vmm.HostError{Err: errors.New("port 80 is taken")}
	w.fails["b-2"] = w.fails["b-1"]
	w.fails["c"] = &vmm.ConfigError{Problems: []error{errors.New("kernel k: is not a kernel"), errors.New("disk d: is odd")}}
	ran := false
	w.during["a"] = func(*fakeGuest) { ran = true }
	path := upFile(t, "guests:\n  a:\n  b: {replicas: 2}\n  c:\n    cmdline: x\n")
	code := w.disco("up", "--host", "here", path)
	want := fmt.Sprintf(`disco: %[1]s:3:3: guest b-1: port 80 is taken
disco: %[1]s:4:3: guest c: kernel k: is not a kernel
disco: %[1]s:4:3: guest c: disk d: is odd
`, path)
	if code != 2 || ran || w.err.String() != want {
		t.Errorf("exit code %d, a ran: %v; it says\n%swant\n%s", code, ran, &w.err, want)
	}
	for _, g := range w.built {
		if !g.closed {
			t.Errorf("%s was not closed", g.cfg.Name)
		}
	}
	w = newFleetWorld(t)
	w.fails["a"] = &vmm.HostError{Err: errors.New("no KVM")}
	if code := w.disco("up", "--host", "here", upFile(t, "guests: {a: }")); code != 3 {
		t.Errorf("exit code %d for what is the host's", code)
	}
}

// TestUpSignals: the first signal presses all power buttons, the second kills.
func TestUpSignals(t *testing.T) {
	w := newFleetWorld(t)
	w.ends["b"] = vmm.Outcome{Kind: vmm.Killed} // does not listen
	ready := make(chan struct{}, 2)
	make0 := w.make
	w.make = func(c vmm.Config) (guest, error) {
		g, err := make0(c)
		g.(*fakeGuest).waits = true
		g.(*fakeGuest).during = func(*fakeGuest) { ready <- struct{}{} }
		return g, err
	}
	codes := make(chan int)
	go func() { codes <- w.disco("up", "--host", "here", upFile(t, "guests: {a: , b: }")) }()
	<-ready
	<-ready
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// The second may overtake the first; then both guests are killed.
	for code := -1; code < 0; {
		select {
		case code = <-codes:
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
		case <-time.After(100 * time.Millisecond):
			if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !strings.Contains(w.err.String(), "killed by a second signal") || !strings.Contains(w.err.String(), "all power buttons are pressed") {
		t.Errorf("it says %s", &w.err)
	}
	if !w.built[0].asked {
		t.Error("a was not asked")
	}
}

func TestUpConsoleDir(t *testing.T) {
	w := newFleetWorld(t)
	w.during["a"] = says("of a\n")
	w.during["b"] = says("\x1b[1mas it is\r\n")
	dir := filepath.Join(t.TempDir(), "x", "logs")
	if code := w.disco("up", "--host", "here", "--console-dir", dir, upFile(t, "guests: {a: , b: }")); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	for name, want := range map[string]string{"a.log": "of a\n", "b.log": "\x1b[1mas it is\r\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
		}
	}
	if w.out.Len() > 0 {
		t.Errorf("the screen shows %q", &w.out)
	}
}

func TestUpInLab(t *testing.T) {
	w := newFleetWorld(t)
	w.guests = func() []host.Finding { return noKVM }
	t.Chdir(t.TempDir())
	if err := os.WriteFile("up.yaml", []byte("guests:\n  a: {replicas: 5, memory: 1G}\n  b: {nets: \"user,forward=tcp:8080:80\", timeout: 5s}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := w.disco("up", "--report", "r.json", "--stats-interval", "1s", "up.yaml"); code != 0 || w.lab == nil {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	if got, want := quote(w.lab.Command), "/opt/disco/bin/disco up --host here --report r.json --stats-interval 1s -- up.yaml"; got != want {
		t.Errorf("runs %s, want %s", got, want)
	}
	if w.lab.Memory != 7<<30 || len(w.lab.Forwards) != 1 || len(w.built) != 0 {
		t.Errorf("the lab: %+v; %d guests here", w.lab, len(w.built))
	}
	// What the lab does not have is told before it is started.
	w = newFleetWorld(t)
	path := upFile(t, "guests:\n  a:\n    replicas: 2\n    console: pty\n    nets: tap=t{n}\n")
	code := w.disco("up", "--host", "lab", "--report", path+".json", path)
	if code != 3 || w.lab != nil || strings.Count(w.err.String(), "\n") != 5 || !strings.Contains(w.err.String(), path+":4:14: console: a terminal made in the lab") {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
}

// TestRunGuests: disco run --guests is the short form.
func TestRunGuests(t *testing.T) {
	w := newFleetWorld(t)
	w.during["web-2"] = says("hello\n")
	disk := touch(t, filepath.Join(t.TempDir(), "d.img"))
	if code := w.disco("run", "--guests", "3", "--name", "web", "--disk", disk+",ro", "--memory", "64M", "--host", "here"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	if len(w.built) != 3 || w.built[2].cfg.Name != "web-3" || w.built[2].cfg.Memory != 64<<20 || w.built[0].cfg.Stdin != nil || w.out.String() != "web-2 | hello\n" {
		t.Errorf("%d guests, the consoles say %q", len(w.built), &w.out)
	}
	for args, want := range map[string]string{
		"--guests 2 --disk " + disk:               "disco: guest guest-2: disk " + disk + ": guests guest-1 and guest-2 cannot both have it; give it with ,ro to all, or each its own\n",
		"--guests 2 --net user,forward=tcp:80:80": "disco: guest guest-2: net forward=tcp:80:80: guests guest-1 and guest-2 cannot both have it; give each its own\n",
		"--guests 0":    "disco: guests 0: give a number from 1 to 256\n",
		"--guests 1000": "disco: guests 1000: give a number from 1 to 256\n",
		"--guests x":    "disco: --guests x: not a number\n",
	} {
		w := newFleetWorld(t)
		if code := w.disco(append([]string{"run", "--host", "here"}, strings.Fields(args)...)...); code != 2 || w.err.String() != want {
			t.Errorf("%s: exit code %d, it says %s, want %s", args, code, &w.err, want)
		}
	}
	w = newFleetWorld(t)
	if code := w.disco("run", "--guests", "2", "--host", "lab", "--memory", "2G"); code != 0 || !strings.Contains(quote(w.lab.Command), " --guests 2 ") || w.lab.Memory != 5<<30 {
		t.Errorf("exit code %d, the lab runs %+v", code, w.lab)
	}
}

func TestLines(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"a\nb", "n | a\nn | b\n"},
		{"", ""},
		{"\n\n", "n | \nn | \n"},
		{"\x1b[2J\x1b[1;1Hclear\r\n", "n | clear\n"},
		{"\x1b]0;title\x07text\x1b(B\n", "n | text\n"},
		{"\x1b]never ends\nnext\n", "n | \nn | next\n"},
		{"\x1bP1$r\x1b\\ok\n", "n | ok\n"},
		{"bell\x07 tab\t del\x7f\n", "n | bell tab\t del\n"},
		{"grün \xff\xc2\x9b31m\n", "n | grün \ufffd31m\n"},
		{strings.Repeat("x", longestLine+1), "n | " + strings.Repeat("x", longestLine) + "\nn | x\n"},
	} {
		// In one piece, and byte by byte.
		for _, size := range []int{len(tt.in), 1} {
			var b strings.Builder
			l := (&screen{w: &b}).lines("n", 0)
			for rest := tt.in; rest != ""; rest = rest[size:] {
				if n, err := l.Write([]byte(rest[:size])); n != size || err != nil {
					t.Errorf("%q: %d, %v", tt.in, n, err)
				}
			}
			l.Close()
			if b.String() != tt.want {
				t.Errorf("%q: %q, want %q", tt.in, b.String(), tt.want)
			}
		}
	}
}

// TestLinesShareAScreen: lines of several come out whole.
func TestLinesShareAScreen(t *testing.T) {
	var b strings.Builder
	s := &screen{w: &b, width: 2}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			l := s.lines(fmt.Sprint(i), i)
			for range 100 {
				fmt.Fprintf(l, "%d", i)
				fmt.Fprintf(l, "%d\n", i)
			}
		})
	}
	all.Wait()
	count := map[string]int{}
	for line := range strings.Lines(b.String()) {
		count[line]++
	}
	for i := range 8 {
		if n := count[fmt.Sprintf("%d  | %d%d\n", i, i, i)]; n != 100 {
			t.Errorf("%d whole lines of %d", n, i)
		}
	}
}

func TestLinesGone(t *testing.T) {
	l := (&screen{w: brokenPipe{}}).lines("n", 0)
	if n, err := l.Write([]byte("a\nb\n")); n == 4 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, unix.EPIPE }

// TestPTY types at a console that is a terminal, and reads what it says; what
// nobody reads is dropped.
func TestPTY(t *testing.T) {
	w := newFleetWorld(t)
	path := make(chan string, 1)
	done, read := make(chan struct{}), make(chan struct{})
	w.make = func(c vmm.Config) (guest, error) {
		g := &fakeGuest{cfg: c, killed: make(chan string, 1)}
		g.during = func(*fakeGuest) {
			defer close(done)
			if !strings.Contains(c.Cmdline, "disco.shell") {
				t.Errorf("kernel command line %q", c.Cmdline)
			}
			buf := make([]byte, 16)
			n, err := c.Stdin.Read(buf)
			if err != nil || string(buf[:n]) != "hi\r" {
				t.Errorf("typed %q, %v", buf[:n], err)
			}
			if _, err := c.Stdout.Write([]byte("you said hi\n")); err != nil {
				t.Error(err)
			}
			<-read
			for range 100 { // more than a terminal keeps
				if n, err := c.Stdout.Write(make([]byte, 4096)); n != 4096 || err != nil {
					t.Errorf("%d, %v", n, err)
				}
			}
		}
		return g, nil
	}
	w.stderr = writerFunc(func(p []byte) (int, error) {
		if _, at, ok := strings.Cut(string(p), "the console is "); ok {
			path <- strings.TrimSpace(at)
		}
		return len(p), nil
	})
	codes := make(chan int)
	go func() { codes <- w.disco("up", "--host", "here", upFile(t, "guests: {a: {console: pty}}")) }()
	f, err := os.OpenFile(<-path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("hi\r"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 12)
	if _, err := io.ReadFull(f, buf); err != nil || string(buf) != "you said hi\n" {
		t.Errorf("read %q, %v", buf, err)
	}
	close(read)
	<-done
	if code := <-codes; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestUpExample: the example is in order, and the manual has all keys.
func TestUpExample(t *testing.T) {
	w := newFleetWorld(t)
	if code := w.disco("up", "--host", "here", "../../examples/guests.yaml"); code != 0 || len(w.built) != 4 {
		t.Fatalf("exit code %d, %d guests: %s", code, len(w.built), &w.err)
	}
	if f := w.built[1].cfg.Nets[0].Forwards[0]; f.HostPort != 8082 {
		t.Errorf("web-2 forwards %v", f)
	}
	manual, err := os.ReadFile("../../docs/up.md")
	if err != nil {
		t.Fatal(err)
	}
	u := &up{fleet: fleet{world: &w.world}}
	s := u.schema()
	for key := range s.Guest {
		if !strings.Contains(string(manual), "`"+key+"`") {
			t.Errorf("docs/up.md does not have the key %s", key)
		}
	}
}

// FuzzLines: whatever a guest writes, what comes out is lines after its name that
// leave the terminal alone.
func FuzzLines(f *testing.F) {
	for _, s := range []string{"a\nb", "\x1b[31mred\x1b[0m\r\n", "\x1b]0;t\x07", "\x9b31m", "\xc2\x9b31m", "\x1b\x1b[", "\x00\x7f\xff\u2028\u202e"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, text []byte, at int) {
		var b strings.Builder
		l := (&screen{w: &b}).lines("n", 0)
		at = max(0, min(at, len(text)))
		for _, p := range [][]byte{text[:at], text[at:]} {
			if n, err := l.Write(p); n != len(p) || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
		}
		l.Close()
		if !utf8.ValidString(b.String()) {
			t.Errorf("%q is not UTF-8", b.String())
		}
		for line := range strings.Lines(b.String()) {
			body, ok := strings.CutPrefix(line, "n | ")
			body, whole := strings.CutSuffix(body, "\n")
			if !ok || !whole || strings.ContainsFunc(body, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
				t.Errorf("%q", line)
			}
		}
	})
}
