package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
	"disco/integration/lab"
	"disco/vmm"
)

// The tests of the lab ring do what a person does: each starts the real program,
// in the lab, with the default guest or what is left of it, and looks at what it
// prints, returns and leaves. DISCO_BINARY, DISCO_KERNEL and DISCO_INITRD name
// others than those of the tree.

// step bounds each wait for a Linux guest. A boot takes some ten seconds in a lab
// that has the host's CPUs to itself.
const step = 3 * time.Minute

// linux is one `disco run`.
type linux struct {
	t        testing.TB
	cmd      *exec.Cmd
	console  screen // what the guest wrote
	messages screen // what disco wrote
	temp     string // where temporary files go
	begun    time.Time
	done     chan struct{} // closed when the process has ended
}

// inTree finds a file that the Makefile made, from the tree's top or from this
// package's folder.
func inTree(t testing.TB, env, path string) string {
	t.Helper()
	for _, p := range []string{os.Getenv(env), path, filepath.Join("..", path)} {
		if _, err := os.Stat(p); p != "" && err == nil {
			return p
		}
	}
	t.Fatalf("%s is not there: make test-lab makes it; or set %s", path, env)
	return ""
}

func guestKernel(t testing.TB) string { return inTree(t, "DISCO_KERNEL", "build/guest/vmlinuz") }
func guestInitrd(t testing.TB) string { return inTree(t, "DISCO_INITRD", "build/guest/initrd.img") }

// disco is the program with these arguments, not started. It has a process group
// and a folder for temporary files of its own.
func disco(t testing.TB, args ...string) *linux {
	t.Helper()
	if os.Getenv(lab.InLab) == "" {
		t.Fatal("this test needs the lab: run it by make test-lab")
	}
	l := &linux{t: t, temp: t.TempDir(), done: make(chan struct{})}
	l.cmd = exec.Command(inTree(t, "DISCO_BINARY", "bin/disco"), args...)
	l.cmd.Env = append(os.Environ(), "TMPDIR="+l.temp, "DISCO_KERNEL="+guestKernel(t), "DISCO_INITRD="+guestInitrd(t))
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	l.cmd.Stdout, l.cmd.Stderr = &l.console, &l.messages
	return l
}

// start lets it run; the test's cleanup kills what is left of it.
func (l *linux) start() *linux {
	l.t.Helper()
	l.begun = time.Now()
	if err := l.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		defer close(l.done)
		// How it ended is in ProcessState.
		_ = l.cmd.Wait()
	}()
	l.t.Cleanup(func() {
		select {
		case <-l.done:
		default:
			_ = l.cmd.Process.Kill()
			<-l.done
		}
	})
	return l
}

// bootGuest starts a guest that has the tasks to do, as package guest lists them.
func bootGuest(t testing.TB, tasks string, args ...string) *linux {
	t.Helper()
	return disco(t, append([]string{"run", "--host", "here", "--cmdline", "disco.task=" + tasks}, args...)...).start()
}

// stood says how far the guest came, for a person.
func (l *linux) stood() string {
	return fmt.Sprintf("after %v\n--- the console's last lines:\n%s\n--- disco said:\n%s",
		time.Since(l.begun).Round(100*time.Millisecond), tail(l.console.String(), 30), tail(l.messages.String(), 20))
}

func tail(s string, n int) string {
	all := strings.Split(strings.TrimRight(s, "\r\n"), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

// says waits until the guest has said text, n times.
func (l *linux) saysTimes(n int, text string) {
	l.t.Helper()
	for end := time.Now().Add(step); strings.Count(l.console.String(), text) < n; time.Sleep(20 * time.Millisecond) {
		ended := false
		select {
		case <-l.done:
			ended = strings.Count(l.console.String(), text) < n
		default:
		}
		if ended {
			l.t.Fatalf("the guest ended and did not say %q, %s", text, l.stood())
		}
		if time.Now().After(end) {
			l.t.Fatalf("the guest does not say %q, %s", text, l.stood())
		}
	}
}

func (l *linux) says(text string) {
	l.t.Helper()
	l.saysTimes(1, text)
}

// ends waits for the program's end and checks its exit code, and that nothing is
// left of it.
func (l *linux) ends(code int) {
	l.t.Helper()
	l.endsWithin(code, step)
}

func (l *linux) endsWithin(code int, limit time.Duration) {
	l.t.Helper()
	select {
	case <-l.done:
	case <-time.After(limit):
		l.t.Fatalf("the guest still runs, %s", l.stood())
	}
	if got := l.cmd.ProcessState.ExitCode(); got != code {
		l.t.Fatalf("exit code %d, want %d, %s", got, code, l.stood())
	}
	l.t.Logf("%v, in %v", l.cmd.ProcessState, time.Since(l.begun).Round(10*time.Millisecond))
	if err := unix.Kill(-l.cmd.Process.Pid, 0); !errors.Is(err, unix.ESRCH) {
		l.t.Errorf("processes of it are left (%v)", err)
	}
	left, err := os.ReadDir(l.temp)
	if err != nil {
		l.t.Error(err)
	}
	for _, f := range left {
		l.t.Errorf("the file %s is left", f.Name())
	}
}

// did checks that the guest did these tasks, and did not fail in one of them.
func (l *linux) did(tasks ...string) {
	l.t.Helper()
	console := l.console.String()
	if strings.Contains(console, guest.Prefix+"warning=") {
		l.t.Errorf("the guest warns, %s", l.stood())
	}
	for _, task := range tasks {
		said := guest.Prefix + "task=" + task + " result="
		if !strings.Contains(console, said+"ok") || strings.Contains(console, said+"failed") {
			l.t.Errorf("the task %s was not done, %s", task, l.stood())
		}
	}
}

// number returns what the guest said last for a key, as in cpus=4.
func (l *linux) number(key string) uint64 {
	l.t.Helper()
	all := regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(guest.Prefix)+`(?:.* )?`+regexp.QuoteMeta(key)+`=(\d+)\b`).
		FindAllStringSubmatch(l.console.String(), -1)
	if all == nil {
		l.t.Fatalf("the guest did not say %s=, %s", key, l.stood())
	}
	n, err := strconv.ParseUint(all[len(all)-1][1], 10, 64)
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

// oneLine checks that disco said one line, with all of these in it.
func (l *linux) oneLine(parts ...string) {
	l.t.Helper()
	said := l.messages.String()
	if strings.Count(said, "\n") != 1 {
		l.t.Errorf("disco said %q, want one line", said)
	}
	for _, p := range parts {
		if !strings.Contains(said, p) {
			l.t.Errorf("disco said %q, want %q in it", said, p)
		}
	}
}

func readReport(t testing.TB, path string) vmm.Report {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// An outcome's kind is a word, which only goes out.
	var r struct {
		vmm.Report
		Outcome struct {
			Kind   string `json:"kind"`
			Code   int    `json:"code"`
			Reason string `json:"reason"`
		} `json:"outcome"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	if r.Outcome.Kind != vmm.PoweredOff.String() || r.Outcome.Code != 0 || r.Outcome.Reason != "" {
		t.Errorf("outcome %+v", r.Outcome)
	}
	return r.Report
}

// TestLabLinux boots a stock Debian kernel on four CPUs and puts them under load:
// they compute, wake each other, and flush each other's TLBs.
func TestLabLinux(t *testing.T) {
	const cpus, memory = 4, 1 << 30
	report := filepath.Join(t.TempDir(), "report.json")
	l := bootGuest(t, "hello,cpus,memory=20,rng,load=8",
		"--cpus", "4", "--memory", "1G", "--net", "none", "--name", "four", "--report", report)
	l.ends(0)
	l.did("hello", "cpus", "memory", "rng", "load")
	if got := l.number("cpus"); got != cpus {
		t.Errorf("%d CPUs, want %d", got, cpus)
	}
	if got := l.number("ran"); got != cpus {
		t.Errorf("threads ran on %d CPUs, want %d", got, cpus)
	}
	if got := l.number("memory-kib"); got > memory>>10 || got < memory>>10*9/10 {
		t.Errorf("%d KiB of memory, want almost %d", got, memory>>10)
	}
	for _, interrupt := range []string{"load-hops", "rescheduled", "called"} {
		if got := l.number(interrupt); got < 100 {
			t.Errorf("%s=%d: that was no load", interrupt, got)
		}
	}
	if said := l.messages.String(); said != "" {
		t.Errorf("disco said %q, want nothing", said)
	}
	r := readReport(t, report)
	if r.Name != "four" || r.CPUs != cpus || r.Memory != memory || r.Reboots != 0 {
		t.Errorf("report %+v", r)
	}
	if !(0 < r.Built && r.Built <= r.Started && r.Started < r.Ended && r.Ended < step.Seconds()) {
		t.Errorf("built %v s, started %v s, ended %v s", r.Built, r.Started, r.Ended)
	}
	if r.UserspaceExit == 0 || r.KVM["exits"] <= r.UserspaceExit {
		t.Errorf("%d exits to the monitor, %d to KVM", r.UserspaceExit, r.KVM["exits"])
	}
	t.Logf("%d exits to the monitor %v, %d in all", r.UserspaceExit, r.Exits, r.KVM["exits"])
}
