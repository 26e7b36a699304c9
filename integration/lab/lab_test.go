package lab

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// inside makes this program, when it is run in a lab, what TestLab boots the lab for.
const inside = "DISCO_LAB_TEST"

func TestMain(m *testing.M) {
	Init()
	if os.Getenv(InLab) == "1" && os.Getenv(inside) != "" {
		os.Exit(look())
	}
	os.Exit(m.Run())
}

const kvmGetAPIVersion = 0xae00 // KVM api §4.1

// look says on standard error what the lab looks like, and then copies its input to its
// output until it is told to end by SIGTERM.
func look() int {
	say := func(name string, value any) { fmt.Fprintf(os.Stderr, "%s=%v\n", name, value) }
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		return strings.Join(strings.Fields(string(b)), " ")
	}
	for _, n := range []string{"0", "1", "2"} {
		dir := "/sys/devices/system/node/node" + n
		say("node"+n, read(dir+"/cpulist")+" "+read(dir+"/distance"))
	}
	say("npt", read("/sys/module/kvm_amd/parameters/npt"))
	say("maps", read("/proc/sys/vm/max_map_count"))
	host, err := os.Hostname()
	say("hostname", fmt.Sprint(host, err))
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		version, _, errno := unix.Syscall(unix.SYS_IOCTL, kvm.Fd(), kvmGetAPIVersion, 0)
		say("kvm", fmt.Sprint(version, errno))
	} else {
		say("kvm", err)
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		ifr := struct {
			name  [16]byte
			flags uint16
			_     [22]byte
		}{name: [16]byte{'t', '0'}, flags: unix.IFF_TAP | unix.IFF_NO_PI}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, tun.Fd(), unix.TUNSETIFF, uintptr(unsafe.Pointer(&ifr)))
		say("tap", errno)
	} else {
		say("tap", err)
	}
	wd, err := os.Getwd()
	say("wd", fmt.Sprint(wd, err))
	say("shared", os.WriteFile("shared", []byte("from the lab"), 0o644))
	say("private", os.WriteFile(os.Getenv(inside), []byte("from the lab"), 0o644))
	say("terminal", func() bool { _, err := pty.GetsizeFull(os.Stdin); return err == nil }())

	web, err := net.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		say("web", err)
		return 1
	}
	go func() {
		for {
			c, err := web.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	n, err := io.Copy(os.Stdout, os.Stdin)
	say("copied", fmt.Sprint(n, err))
	<-term
	// What is said last is not lost.
	_, _ = os.Stdout.Write(noise(100 << 10))
	return 42
}

// TestLab boots one lab, from the outside: it needs QEMU and what `make lab` makes, and a
// test program that is static (CGO_ENABLED=0).
func TestLab(t *testing.T) {
	for variable, name := range map[string]string{
		"DISCO_LAB_KERNEL": "vmlinuz", "DISCO_LAB_MODULES": "modules", "DISCO_QEMU": "qemu/qemu-system-x86_64",
	} {
		if os.Getenv(variable) != "" {
			continue
		}
		path, err := filepath.Abs(filepath.Join("..", "..", "build", "lab", name))
		if err != nil {
			t.Fatal(err)
		}
		// A QEMU that is new enough is not fetched.
		if _, err := os.Stat(path); err == nil || variable != "DISCO_QEMU" {
			t.Setenv(variable, path)
		}
	}
	shared := t.TempDir()
	private := filepath.Join(t.TempDir(), "private")
	t.Setenv(inside, private)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()

	signals := make(chan os.Signal, 1)
	sent := noise(10 << 20)
	var out bytes.Buffer
	said := &watched{want: []byte("copied="), seen: make(chan struct{})}
	echoed := make(chan error, 1)
	go func() {
		<-said.seen
		echoed <- echoOver(port)
		signals <- syscall.SIGTERM
	}()
	began := time.Now()
	code, err := Run(t.Context(), Options{
		Nodes: 2, Distance: 31, Forwards: []Forward{{port, 80}}, Command: []string{exe}, Dir: shared,
		Stdin: bytes.NewReader(sent), Stdout: &out, Stderr: said, Signals: signals,
	})
	t.Logf("the lab took %.1f s; it said:\n%s", time.Since(began).Seconds(), said.String())
	if err != nil || code != 42 {
		t.Fatalf("exit code %d, %v; want 42", code, err)
	}
	if err := <-echoed; err != nil {
		t.Errorf("forwarded port: %v", err)
	}
	if want := append(sent, noise(100<<10)...); sha256.Sum256(out.Bytes()) != sha256.Sum256(want) {
		t.Errorf("%d bytes came out, other than the %d expected", out.Len(), len(want))
	}
	for _, want := range []string{
		"node0=0-1 10 31", "node1=2-3 31 10", "node2=open /sys/devices/system/node/node2/cpulist: no such file",
		"npt=Y", "maps=1048576", "hostname=lab<nil>", "kvm=12 errno 0", "tap=errno 0",
		"wd=" + shared + "<nil>", "shared=<nil>", "private=<nil>", "terminal=false", fmt.Sprintf("copied=%d <nil>", len(sent)),
	} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("the lab did not say %q", want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(shared, "shared")); string(b) != "from the lab" {
		t.Errorf("the shared folder has %q, %v", b, err)
	}
	if _, err := os.Stat(private); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file outside the shared folder came out of the lab: %v", err)
	}
}

func echoOver(port uint16) error {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	sent := noise(64 << 10)
	go func() {
		_, _ = c.Write(sent)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes came back of %d", len(got), len(sent))
	}
	return nil
}

// watched is a buffer that says when something has been written to it.
type watched struct {
	bytes.Buffer
	want []byte
	seen chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	before := bytes.Contains(w.Bytes(), w.want)
	n, err := w.Buffer.Write(p)
	if !before && bytes.Contains(w.Bytes(), w.want) {
		close(w.seen)
	}
	return n, err
}
