package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nobody has no rights but everybody's.
const nobody = 65534

// refused runs disco to its end, which comes before any guest's, and checks that
// it returns code and says so many lines, with all the parts in them.
func (l *linux) refused(code, lines int, parts ...string) {
	l.t.Helper()
	l.start()
	l.ends(code)
	said := l.messages.String()
	if strings.Count(said, "\n") != lines || strings.Count(said, "disco: ") != lines {
		l.t.Errorf("disco said %q, want %d lines", said, lines)
	}
	for _, p := range parts {
		if !strings.Contains(said, p) {
			l.t.Errorf("disco said %q, want %q in it", said, p)
		}
	}
	if l.console.String() != "" {
		l.t.Errorf("a guest that does not run says %q", l.console.String())
	}
}

// TestLabRefusals: what a host lacks or forbids, and what a person gets wrong, is
// told in a line each, and leaves nothing behind.
func TestLabRefusals(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().(*net.TCPAddr).Port
	image := testDisk(t, "image", 1<<20)
	dir := t.TempDir()
	run := func(args ...string) *linux {
		return disco(t, append([]string{"run", "--host", "here", "--timeout", "20s"}, args...)...)
	}
	as := func(user uint32, l *linux) *linux {
		l.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user}
		return l
	}

	run("--net", fmt.Sprintf("user,forward=tcp:%d:80", taken)).refused(3, 1, fmt.Sprint(taken), "taken")
	run("--net", "tap=disco-test-tap,bridge=no-such-br").refused(3, 1, "no-such-br")
	as(nobody, run("--net", "tap=disco-test-tap")).refused(3, 1, "disco-test-tap", "permission denied", "ip tuntap add")
	if _, err := net.InterfaceByName("disco-test-tap"); err == nil {
		t.Error("the interface disco-test-tap is left")
	}
	run("--memory", "1", "--cpus", "100000", "--disk", dir, "--disk", filepath.Join(dir, "absent"), "--kernel", image+"x").
		refused(2, 5, "memory", "cpus", "absent", dir, "image")
	run("--kernel", image).refused(2, 1, image)
	run("--memory", "16M").refused(2, 1, "give it --memory")
	run("--memory", "1T").refused(3, 1, "memory 1T")
	as(nobody, run("--disk", image)).refused(2, 1, image)

	// The image is root's alone, in a folder that is.
	const kvm = "/dev/kvm"
	if err := os.Chmod(kvm, 0o600); err != nil {
		t.Fatal(err)
	}
	as(nobody, run()).refused(3, 1, kvm)
	if err := os.Chmod(kvm, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(kvm, kvm+".away"); err != nil {
		t.Fatal(err)
	}
	run().refused(3, 1, kvm)
	if err := os.Rename(kvm+".away", kvm); err != nil {
		t.Fatal(err)
	}
}
