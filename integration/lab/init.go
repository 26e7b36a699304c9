package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"disco/integration/initramfs/insmod"
)

// Init is the lab's first process. It returns at once, having done nothing,
// unless this process was started by the kernel of a lab; then it never returns.
// A program that calls Run without Options.Init must call Init before anything else.
func Init() {
	if os.Getpid() != 1 || os.Args[0] != initPath {
		return
	}
	if !labKernel() {
		return
	}
	if err := initLab(); err != nil {
		fmt.Fprintln(os.Stderr, "disco lab:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// Reached when the kernel cannot power off: ending the first process makes it panic,
	// which ends QEMU.
	os.Exit(1)
}

// labKernel says whether the kernel was told to start a lab.
func labKernel() bool {
	mine := false
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return false
		}
		mine = true
		line, _ = os.ReadFile("/proc/cmdline")
	}
	if slices.Contains(strings.Fields(string(line)), initArg) {
		return true
	}
	if mine {
		_ = unix.Unmount("/proc", 0)
	}
	return false
}

// The folders of modules in the initramfs.
const (
	portModules = "/modules/port" // what the protocol needs
	rootModules = "/modules/root" // what the root filesystem and the network need, after those
	restModules = "/modules/rest" // the others; they are loaded beside all that comes before the command
)

func initLab() error {
	for _, m := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	rest := make(chan error, 1)
	go func() { rest <- insmod.LoadAll(restModules) }()
	if err := insmod.LoadAll(portModules); err != nil {
		return err
	}
	port, err := openPort(portName, 30*time.Second)
	if err != nil {
		return err
	}
	i := &labInit{link: newLink(port), start: make(chan startFrame, 1)}
	served := make(chan error, 1)
	go func() { served <- i.link.serve(i.handle) }()
	if err := i.link.sendJSON(kindHello, helloFrame{protocolVersion}); err != nil {
		return err
	}

	// The host is gone when the port ends: nothing here is of use to anyone.
	ended := make(chan error, 1)
	go func() { ended <- i.run(rest) }()
	select {
	case err := <-ended:
		return err
	case err := <-served:
		return fmt.Errorf("the host's end is gone: %w", err)
	}
}

// openPort waits for the virtio serial port of that name and opens it.
func openPort(name string, patience time.Duration) (*os.File, error) {
	const class = "/sys/class/virtio-ports"
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		ports, err := os.ReadDir(class)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, p := range ports {
			got, err := os.ReadFile(filepath.Join(class, p.Name(), "name"))
			if err != nil || strings.TrimSpace(string(got)) != name {
				continue
			}
			// Blocking, so that the runtime's poller keeps out of a device
			// that reports a hang-up while the host has not connected.
			fd, err := unix.Open("/dev/"+p.Name(), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open /dev/%s: %w", p.Name(), err)
			}
			return os.NewFile(uintptr(fd), p.Name()), nil
		}
	}
	return nil, fmt.Errorf("virtio serial port %q did not appear in %s", name, patience)
}

// labInit is the lab's side of a session.
type labInit struct {
	link  *link
	start chan startFrame

	child  atomic.Int64 // process group of the command; 0 before it runs
	mu     sync.Mutex
	master *os.File // of the command's terminal, or nil; under mu
}

func (i *labInit) handle(f frame) (bool, error) {
	switch f.kind {
	case kindStart:
		var s startFrame
		if err := json.Unmarshal(f.payload, &s); err != nil {
			return false, fmt.Errorf("%w: start: %w", errProtocol, err)
		}
		select {
		case i.start <- s:
		default:
			return false, fmt.Errorf("%w: started twice", errProtocol)
		}
	case kindSignal:
		n, err := f.numbers(1)
		if err != nil {
			return false, err
		}
		if pgid := i.child.Load(); pgid != 0 {
			// The group may have ended a moment ago.
			_ = unix.Kill(-int(pgid), unix.Signal(n[0]))
		}
	case kindResize:
		n, err := f.numbers(2)
		if err != nil {
			return false, err
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.master != nil {
			_ = pty.Setsize(i.master, &pty.Winsize{Cols: uint16(n[0]), Rows: uint16(n[1])})
		}
	default:
		return false, fmt.Errorf("%w: kind %d is not for the lab", errProtocol, f.kind)
	}
	return true, nil
}

func (i *labInit) stage(name string) { _ = i.link.send(kindStage, 0, []byte(name)) }

func (i *labInit) run(rest <-chan error) error {
	i.stage("loading kernel modules")
	if err := insmod.LoadAll(rootModules); err != nil {
		return i.exit(exitFrame{Error: err.Error()})
	}
	s := <-i.start
	if err := i.prepare(&s, rest); err != nil {
		return i.exit(exitFrame{Error: err.Error()})
	}
	return i.exit(i.command(&s))
}

func (i *labInit) exit(e exitFrame) error {
	unix.Sync()
	return i.link.sendJSON(kindExit, e)
}

// prepare turns the initramfs into the machine that the command expects.
func (i *labInit) prepare(s *startFrame, rest <-chan error) error {
	now := unix.NsecToTimespec(s.Now)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	i.stage("mounting the root filesystem")
	if err := mountRoot(s.Dir); err != nil {
		return err
	}
	i.stage("loading the other kernel modules")
	if err := <-rest; err != nil {
		return err
	}
	if err := enterRoot(); err != nil {
		return err
	}
	i.stage("tuning")
	if err := tune(); err != nil {
		return err
	}
	i.stage("setting up the network")
	if err := setUpNetwork(); err != nil {
		return err
	}
	if err := writeResolver(); err != nil {
		return err
	}
	for n, f := range s.Forwards {
		if err := carry(fmt.Sprintf("%s:%d", labAddress, forwardBase+n), fmt.Sprintf("127.0.0.1:%d", f.Lab)); err != nil {
			return err
		}
	}
	if err := os.Chdir(s.Dir); err != nil {
		return err
	}
	i.stage("starting the command")
	return nil
}

// command runs the command to its end, and returns when all its output has been
// sent. What it left running is killed.
func (i *labInit) command(s *startFrame) exitFrame {
	os.Clearenv()
	for _, e := range s.Env {
		if name, value, ok := strings.Cut(e, "="); ok {
			_ = os.Setenv(name, value)
		}
	}
	_ = os.Setenv("PWD", s.Dir)
	argv := s.Command
	if len(argv) == 0 {
		argv = []string{"/bin/sh"}
		if sh, err := exec.LookPath(os.Getenv("SHELL")); err == nil {
			argv[0] = sh
		}
	}
	path, err := exec.LookPath(argv[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return notRun(argv[0], err)
	}

	files, err := i.openFiles(s)
	if err != nil {
		return exitFrame{Error: err.Error()}
	}
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{files.child[0].Fd(), files.child[1].Fd(), files.child[2].Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: s.TTY, Ctty: 0},
	})
	files.closeChild()
	if err != nil {
		return notRun(argv[0], err)
	}
	i.child.Store(int64(pid))
	_ = i.link.send(kindStarted, 0, nil)
	ended := make(chan struct{})
	go i.beat(ended)
	sent := files.pump(i.link)

	code := reap(pid)
	close(ended)
	// What still runs would keep the pipes open; what is in them is still sent.
	_ = unix.Kill(-1, unix.SIGKILL)
	sent.Wait()
	return exitFrame{Code: code}
}

// beat tells the host now and then that the lab has not stood still, until ended.
func (i *labInit) beat(ended <-chan struct{}) {
	t := time.NewTicker(beatInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			_ = i.link.send(kindAlive, 0, nil)
		case <-ended:
			return
		}
	}
}

// notRun gives the exit codes that shells give.
func notRun(name string, err error) exitFrame {
	code := 126
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		code = 127
	}
	var e *exec.Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return exitFrame{Code: code, Error: fmt.Sprintf("%s: %v", name, err)}
}

// reap waits for children, the adopted ones too, until pid has ended.
func reap(pid int) int {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 1 // no children: pid was lost, which wait4 does not do
		case got != pid:
		case ws.Signaled():
			return 128 + int(ws.Signal())
		case ws.Exited():
			return ws.ExitStatus()
		}
	}
}

// files are the two ends of a command's standard files.
type files struct {
	child [3]*os.File
	near  [3]*os.File // stdin is written, the others are read; nil if there is none
}

func (i *labInit) openFiles(s *startFrame) (*files, error) {
	f := &files{}
	if s.TTY {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, fmt.Errorf("open a terminal: %w", err)
		}
		if err := pty.Setsize(master, &pty.Winsize{Cols: s.Cols, Rows: s.Rows}); err != nil {
			return nil, fmt.Errorf("terminal size: %w", err)
		}
		i.mu.Lock()
		i.master = master
		i.mu.Unlock()
		f.child = [3]*os.File{slave, slave, slave}
		f.near = [3]*os.File{master, master, nil}
		return f, nil
	}
	for n := range f.child {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		if n == int(stdin) {
			f.child[n], f.near[n] = r, w
		} else {
			f.child[n], f.near[n] = w, r
		}
	}
	return f, nil
}

func (f *files) closeChild() {
	for _, c := range f.child {
		_ = c.Close() // the three may be one
	}
}

// pump copies between the link and the command's files. The outputs are done when
// the result is; the input is left to itself.
func (f *files) pump(l *link) *sync.WaitGroup {
	in, tty := l.in[stdin], f.near[stdin] == f.near[stdout]
	_ = in.open()
	go func() {
		// A command that closes its input ends the copy, and what would follow is
		// never asked for.
		_, err := io.Copy(f.near[stdin], in)
		switch {
		case !tty:
			_ = f.near[stdin].Close()
		case err == nil:
			_, _ = f.near[stdin].Write([]byte{4}) // ^D, the end of input on a terminal
		}
	}()
	var sent sync.WaitGroup
	for s := stdout; s <= stderr; s++ {
		if f.near[s] == nil {
			_ = l.out[s].Close()
			continue
		}
		sent.Go(func() {
			// A terminal's master gives EIO, not EOF, when the last slave is closed.
			if err := l.out[s].fill(f.near[s]); err != nil && !errors.Is(err, syscall.EIO) {
				fmt.Fprintln(os.Stderr, "disco lab: output:", err)
			}
		})
	}
	return &sent
}
