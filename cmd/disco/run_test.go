package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"disco/host"
	"disco/integration/lab"
	"disco/memory"
	"disco/numa"
	"disco/numa/balance"
	"disco/vmm"
)

func TestExitCodes(t *testing.T) {
	outcome := func(o vmm.Outcome) func(*fakeWorld) { return func(w *fakeWorld) { w.guest.outcome = o } }
	fails := func(err error) func(*fakeWorld) { return func(w *fakeWorld) { w.newErr = err } }
	usage, hosts := errors.New("cpus 0"), &vmm.HostError{Err: errors.New("/dev/kvm: permission denied")}
	tests := []struct {
		name string
		args string
		set  func(*fakeWorld)
		code int
		says string // on standard error; empty for nothing
	}{
		{"powered off", "run --cpus 1", outcome(vmm.Outcome{}), 0, ""},
		{"crashed", "run --cpus 1", outcome(vmm.Outcome{Kind: vmm.Crashed, Code: 1, Reason: "panic", LastLines: []string{"Kernel panic"}}), 1,
			"disco: the last lines of the guest's console:\n  Kernel panic\ndisco: the guest crashed: panic\n"},
		{"crashed, named", "run --name web", outcome(vmm.Outcome{Kind: vmm.Crashed, Code: 1, Reason: "panic"}), 1, "disco: the guest web crashed: panic\n"},
		{"debug exit", "run --cpus 1", outcome(vmm.Outcome{Kind: vmm.DebugExit, Code: 33}), 33, ""},
		{"debug exit 1", "run --cpus 1", outcome(vmm.Outcome{Kind: vmm.DebugExit, Code: 1}), 1, ""},
		{"timed out", "run --timeout 1s", outcome(vmm.Outcome{Kind: vmm.TimedOut, Code: 124, Reason: "still running after 1s"}), 124, "disco: the guest was ended: still running after 1s\n"},
		{"killed", "run --cpus 1", outcome(vmm.Outcome{Kind: vmm.Killed, Reason: "killed"}), 0, "disco: the guest was ended: killed\n"},
		{"left", "run --cpus 1", outcome(vmm.Outcome{Kind: vmm.Killed, Reason: leftReason}), 0, ""},
		{"bad config", "run --cpus 1", fails(&vmm.ConfigError{Problems: []error{usage}}), 2, "disco: cpus 0\n"},
		{"bad config and host", "run --cpus 1", fails(&vmm.ConfigError{Problems: []error{hosts, usage}}), 2, "disco: /dev/kvm: permission denied\ndisco: cpus 0\n"},
		{"host in config", "run --cpus 1", fails(&vmm.ConfigError{Problems: []error{hosts}}), 3, "disco: /dev/kvm: permission denied\n"},
		{"host", "run --cpus 1", fails(hosts), 3, "disco: /dev/kvm: permission denied\n"},
		{"unforeseen", "run --cpus 1", fails(errors.New("odd")), 3, "disco: odd\n"},
		{"unknown flag", "run --bogus", nil, 2, "disco: unknown flag: --bogus\nTry: disco run --help\n"},
		{"flag without value", "run --cpus", nil, 2, "disco: flag needs an argument: --cpus\nTry: disco run --help\n"},
		{"argument", "run vmlinuz", nil, 2, "disco: \"vmlinuz\" is not a flag; kernels, disks and all else are named by flags\nTry: disco run --help\n"},
		{"unknown command", "boot", nil, 2, "disco: unknown command \"boot\" for \"disco\"\nTry: disco --help\n"},
		{"no default guest", "run --cpus 1", func(w *fakeWorld) { clear(w.env) }, 3,
			"disco: the default guest is not there: run `make guest` in disco's source tree, or set DISCO_KERNEL and DISCO_INITRD to a kernel and an initrd of your own\n"},
		{"lab, its code", "run --cpus 1 --host lab", func(w *fakeWorld) { w.labCode = 124 }, 124, ""},
		{"lab absent", "run --cpus 1 --host lab", func(w *fakeWorld) { w.labErr = &lab.HostError{Problems: []error{errors.New("lab: QEMU")}} }, 3, "disco: lab: QEMU\n"},
		{"lab misused", "run --cpus 1 --host lab", func(w *fakeWorld) { w.labErr = &lab.UsageError{Problems: []error{errors.New("nodes 0")}} }, 2, "disco: nodes 0\n"},
		{"nowhere", "run --cpus 1", func(w *fakeWorld) {
			w.guests = func() []host.Finding { return noKVM }
			w.labMissing = func() []error { return []error{errors.New("lab: QEMU is absent"), errors.New("lab: kernel is absent")} }
		}, 3, "disco: guests cannot run here: KVM: /dev/kvm: no such file or directory; modprobe\n" +
			"disco: the lab, which could run them, is not complete\ndisco: lab: QEMU is absent\ndisco: lab: kernel is absent\n"},
		{"version", "version", nil, 0, ""},
		{"help", "help", nil, 0, ""},
		{"help of run", "run --help", nil, 0, ""},
		{"check", "check", nil, 0, ""},
		{"check, nowhere", "check", func(w *fakeWorld) {
			w.findings = func() []host.Finding { return noKVM }
			w.labMissing = func() []error { return []error{errors.New("lab: QEMU")} }
		}, 3, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if tt.name == "check" {
				w.guest.during = func(g *fakeGuest) { fmt.Fprint(g.cfg.Stdout, "hello from a tiny guest\n") }
			}
			if tt.set != nil {
				tt.set(w)
			}
			if code := w.disco(strings.Fields(tt.args)...); code != tt.code || w.err.String() != tt.says {
				t.Errorf("exit code %d, want %d; it says:\n%swant:\n%s", code, tt.code, &w.err, tt.says)
			}
			if w.built != nil && w.newErr == nil && !w.guest.closed {
				t.Error("the guest was not closed")
			}
		})
	}
}

func TestRunConfig(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	disk, kernel := touch(t, filepath.Join(dir, "d.img")), touch(t, filepath.Join(dir, "k"))
	code := w.disco("run", "--kernel", kernel, "--initrd", kernel, "--cmdline", "a b", "--cmdline-only", "--kaslr",
		"--cpus", "3", "--memory", "64M", "--disk", disk+",ro", "--disk", kernel, "--net", "tap=t0,bridge=b0",
		"--net", "user,forward=tcp:80:81", "--console", "serial", "--vsock", filepath.Join(dir, "v"), "--name", "web",
		"--placement", "nodes=0,1", "--numa", "migrate,max-moves=2", "--huge", "off", "--fake-nodes", "2",
		"--timeout", "90s", "--grace", "1s", "--host", "here")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	got := *w.built
	got.Stdin, got.Stdout, got.Log = nil, nil, nil
	migrate := balance.Default()
	migrate.Policy, migrate.MaxMoves = balance.Migrate, 2
	want := vmm.Config{
		Kernel: kernel, Initrd: kernel, Cmdline: "a b", CmdlineOnly: true, KASLR: true, CPUs: 3, Memory: 64 << 20,
		Disks: []vmm.Disk{{Path: disk, ReadOnly: true}, {Path: kernel}},
		Nets: []vmm.Net{{Kind: vmm.NetTap, Tap: "t0", Bridge: "b0"},
			{Forwards: []vmm.Forward{{Proto: "tcp", HostPort: 80, GuestPort: 81}}}},
		NUMA:    vmm.NUMA{FakeNodes: 2, Placement: vmm.Placement{Kind: vmm.PlaceNodes, Nodes: []numa.Node{0, 1}}, Balance: migrate, Huge: memory.HugeOff},
		Console: vmm.ConsoleSerial, Vsock: filepath.Join(dir, "v"), Name: "web", Timeout: 90 * time.Second, Grace: time.Second,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestDefaults(t *testing.T) {
	w := newWorld(t)
	if code := w.disco("run"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	c := w.built
	if c.Kernel != w.env["DISCO_KERNEL"] || c.Initrd != w.env["DISCO_INITRD"] || c.CPUs != min(2, runtime.NumCPU()) ||
		c.Memory != 512<<20 || !reflect.DeepEqual(c.Nets, []vmm.Net{{}}) || c.Cmdline != "quiet loglevel=3" || c.Grace != vmm.DefaultGrace {
		t.Errorf("got %+v", c)
	}
	want := fmt.Sprintf("disco: disco run --kernel %s --initrd %s --cmdline 'quiet loglevel=3' --cpus %d --memory 512M --net user --host auto\n", c.Kernel, c.Initrd, c.CPUs)
	if w.err.String() != want {
		t.Errorf("it says %q, want %q", &w.err, want)
	}
}

func TestOwnKernelHasNoDefaultInitrd(t *testing.T) {
	w := newWorld(t)
	if code := w.disco("run", "--kernel", w.env["DISCO_KERNEL"], "--net", "none"); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	if w.built.Initrd != "" || w.built.Nets != nil || w.err.Len() > 0 {
		t.Errorf("got %+v, it says %q", w.built, &w.err)
	}
}

// TestArgsMeanTheSame runs a command line and the one that it is said to stand
// for, which is also what runs in the lab.
func TestArgsMeanTheSame(t *testing.T) {
	dir := t.TempDir()
	file := touch(t, filepath.Join(dir, "a file"))
	for _, args := range [][]string{
		{},
		{"--kernel", file},
		{"--net", "none", "--console", "serial", "--timeout", "1m30s", "--grace", "0s", "--memory", "16777216", "--kaslr", "--cmdline-only"},
		{"--disk", file + ",ro", "--disk-share", "always", "--cache-size", "64M"},
		{"--net", "segment=lan0,map=never,rate=1M", "--net", "segment=lan0,mtu=9000", "--net", "segment=lan1", "--segment", "lan0",
			"--segment", "lan1,mtu=9000,subnet=10.1.0.0/24,uplink=tap=t0,bridge=b0,router=10.1.0.254", "--segment", "lan2,uplink=user"},
		{"--tickets", "300", "--group", "gold", "--cpu-limit", "12.5%", "--gang", "--scheduler", "lottery", "--quantum", "3ms", "--cpus-host", "0"},
		{"--disk", file + ",ro", "--disk", file + ",ro", "--net", "user,forward=udp:[::1]:53:53", "--net", "tap=t", "-v", "--name", "n",
			"--report", filepath.Join(dir, "r"), "--vsock", filepath.Join(dir, "v"), "--cmdline", "it's -- 'quoted'"},
	} {
		w := newWorld(t)
		first := parseRun(t, w, args)
		second := parseRun(t, w, first.args("here"))
		if second.where != "here" {
			t.Errorf("%q: runs at %s", args, second.where)
		}
		if !reflect.DeepEqual(first.cfg, second.cfg) || !reflect.DeepEqual(first.monitor, second.monitor) || first.report != second.report || first.verbose != second.verbose {
			t.Errorf("%q: got %+v\nthen %+v", args, first.cfg, second.cfg)
		}
	}
}

// parseRun fills a run from flags without starting it.
func parseRun(t *testing.T, w *fakeWorld, args []string) *run {
	t.Helper()
	r := newRun(&w.world)
	c := r.command()
	if err := c.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	if err := r.check(r.fill()); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return r
}

func TestAllProblemsTogether(t *testing.T) {
	w := newWorld(t)
	code := w.disco("run", "--kernel", "/nowhere/k", "--initrd", "/", "--cpus", "100000", "--memory", "1", "--disk", "/nowhere/d",
		"--disk", ",ro", "--net", "tap", "--console", "vga", "--disk-share", "maybe", "--cache-size", "all", "--timeout", "soon", "--grace", "-1s", "--host", "there",
		"--report", "/", "--vsock", "/nowhere/v", "--name", "a/b")
	if code != 2 {
		t.Errorf("exit code %d", code)
	}
	lines := strings.Split(strings.TrimSpace(w.err.String()), "\n")
	for _, want := range []string{
		"--disk ,ro: no path", "--net tap: not a network", "--console vga: there are virtio and serial",
		"--disk-share maybe: there are auto, always and never", "--cache-size all: not a size", "--timeout soon: not a duration",
		"--host there: there are auto, here and lab", `name "a/b"`, "kernel /nowhere/k: there is no such file", "initrd /: it is a directory",
		"cpus 100000: a guest has at most 254", "memory 1 byte: a guest has at least 16M", "disk /nowhere/d: there is no such file",
		"vsock /nowhere/v: its folder", "grace -1s", "report /: it is a directory",
	} {
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "disco: "+want) })
		if i < 0 {
			t.Errorf("no line with %q", want)
			continue
		}
		lines = slices.Delete(lines, i, i+1)
	}
	if len(lines) > 0 {
		t.Errorf("more than that: %q", lines)
	}
	if w.built != nil {
		t.Error("a guest was built")
	}
}

func TestMoreMemoryThanTheHost(t *testing.T) {
	w := newWorld(t)
	if code := w.disco("run", "--memory", "1024T"); code != 3 || !strings.Contains(w.err.String(), "memory 1024T: this host has ") {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
}

func TestNoneWithAnotherNetwork(t *testing.T) {
	for _, args := range [][]string{{"--net", "none", "--net", "user"}, {"--net", "user", "--net", "none"}} {
		w := newWorld(t)
		if code := w.disco(append([]string{"run"}, args...)...); code != 2 || !strings.Contains(w.err.String(), "none goes with no other network") {
			t.Errorf("%q: exit code %d: %s", args, code, &w.err)
		}
	}
}

func TestReport(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "r.json")
	w.guest.outcome = vmm.Outcome{Kind: vmm.Crashed, Code: 1, Reason: "panic", LastLines: []string{"last"}}
	if code := w.disco("run", "--report", path, "-v"); code != 1 {
		t.Errorf("exit code %d", code)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Outcome struct {
			Kind      string
			Code      int
			LastLines []string `json:"last_lines"`
		}
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Outcome.Kind != "crashed" || got.Outcome.Code != 1 || !slices.Equal(got.Outcome.LastLines, []string{"last"}) {
		t.Errorf("got %s", b)
	}
	if !strings.Contains(w.err.String(), "4 exits to the monitor (hlt 1, io 3)") {
		t.Errorf("it says %s", &w.err)
	}
}

func TestSignals(t *testing.T) {
	send := func(s unix.Signal) {
		if err := unix.Kill(os.Getpid(), s); err != nil {
			t.Error(err)
		}
	}
	t.Run("one", func(t *testing.T) {
		w := newWorld(t)
		w.guest.waits = true
		w.guest.during = func(*fakeGuest) { send(unix.SIGTERM) }
		if code := w.disco("run", "--cpus", "1"); code != 0 || !w.guest.asked || !strings.Contains(w.err.String(), "power button is pressed") {
			t.Errorf("exit code %d, asked %v: %s", code, w.guest.asked, &w.err)
		}
	})
	t.Run("two", func(t *testing.T) {
		w := newWorld(t)
		w.guest.waits = true
		w.guest.outcome.Kind = vmm.Crashed // does not heed the button
		w.guest.during = func(*fakeGuest) {
			send(unix.SIGINT)
			send(unix.SIGTERM)
		}
		if code := w.disco("run", "--cpus", "1"); code != 0 || !strings.Contains(w.err.String(), "killed by a second signal") {
			t.Errorf("exit code %d: %s", code, &w.err)
		}
	})
}

// TestBrokenPipes: a connection whose other end is gone is no reason to end, and a
// console that nobody reads is one.
func TestBrokenPipes(t *testing.T) {
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return r, w
	}
	write := func(f *os.File) {
		if _, err := f.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("writing to nobody: %v", err)
		}
	}
	w := newWorld(t)
	_, w.stdout = pipe()
	w.guest.waits = true
	w.guest.during = func(*fakeGuest) {
		r, gone := pipe()
		r.Close()
		write(gone)
		if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	if code := w.disco("run", "--cpus", "1"); code != 0 || !strings.Contains(w.err.String(), "terminated: the power button") || strings.Contains(w.err.String(), "pipe") {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
	w = newWorld(t)
	r, console := pipe()
	r.Close()
	w.stdout = console
	w.guest.waits = true
	w.guest.during = func(*fakeGuest) { write(console) }
	if code := w.disco("run", "--cpus", "1"); code != 0 || !w.guest.asked || !strings.Contains(w.err.String(), "broken pipe: the power button") {
		t.Errorf("exit code %d, asked %v: %s", code, w.guest.asked, &w.err)
	}
}

func TestDefaultGuest(t *testing.T) {
	root := t.TempDir()
	put := func(dirs ...string) string {
		dir := filepath.Join(append([]string{root}, dirs...)...)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		touch(t, filepath.Join(dir, "vmlinuz"))
		touch(t, filepath.Join(dir, "initrd.img"))
		return dir
	}
	w := newWorld(t)
	clear(w.env)
	w.executable = func() (string, error) { return filepath.Join(root, "src", "bin", "disco"), nil }
	check := func(name, kernel, initrd string) {
		t.Helper()
		k, i, err := w.defaultGuest()
		if err != nil || k != kernel || i != initrd {
			t.Errorf("%s: got %s, %s, %v", name, k, i, err)
		}
	}
	if _, _, err := w.defaultGuest(); err == nil {
		t.Error("found in an empty machine")
	}
	w.env["HOME"] = filepath.Join(root, "home")
	home := put("home", ".local", "share", "disco", "guest")
	check("home", home+"/vmlinuz", home+"/initrd.img")
	w.env["XDG_DATA_HOME"] = filepath.Join(root, "xdg")
	xdg := put("xdg", "disco", "guest")
	check("XDG_DATA_HOME", xdg+"/vmlinuz", xdg+"/initrd.img")
	build := put("src", "build", "guest")
	check("next to the executable", build+"/vmlinuz", build+"/initrd.img")
	w.env["DISCO_KERNEL"] = "/my/vmlinux"
	check("DISCO_KERNEL", "/my/vmlinux", build+"/initrd.img")
}
