package lab

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// machine is what a session needs of the machine that plays the lab.
type machine interface {
	port() io.ReadWriter    // the other end of the init's port; both directions end with the machine
	console() io.Reader     // the kernel's messages, to the machine's end
	ended() <-chan struct{} // closed when the machine is no more
	failure() error         // after ended: why, or nil if its guest ended it or kill did
	kill()                  // ends it; may be called more than once
}

// qemu is one QEMU process. It ends when this process does, however that ends.
type qemu struct {
	portEnd, consoleEnd *os.File
	gone                chan struct{}

	mu     sync.Mutex
	cmd    *exec.Cmd
	killed bool
	err    error
}

// startQEMU starts QEMU for a completed o. The files stay the caller's, who may close
// them when the machine has ended.
func startQEMU(o *Options, path string, kernel, initrd *os.File) (*qemu, error) {
	var ends [2][2]*os.File // port and console; ours and QEMU's
	for i, name := range []string{"lab-port", "lab-console"} {
		near, far, err := socketPair(name)
		if err != nil {
			return nil, err
		}
		ends[i] = [2]*os.File{near, far}
	}
	// The first of ExtraFiles is descriptor 3.
	cmd := exec.Command(path, qemuArguments(o, descriptors{kernel: 3, initrd: 4, port: 5, console: 6})...)
	cmd.ExtraFiles = []*os.File{kernel, initrd, ends[0][1], ends[1][1]}
	cmd.Dir = "/"
	said := &tail{}
	cmd.Stdout, cmd.Stderr = said, said
	// A session of its own keeps the terminal's ^C from it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}

	q := &qemu{portEnd: ends[0][0], consoleEnd: ends[1][0], gone: make(chan struct{}), cmd: cmd}
	started := make(chan error)
	go func() {
		// The death signal is tied to the thread that starts the process, and the
		// process begins with the thread's CPUs. Never unlocked: the thread ends
		// with what was done to it.
		runtime.LockOSThread()
		var err error
		if o.Steady {
			err = keepToOneCPU()
		}
		if err == nil {
			err = cmd.Start()
		}
		for i := range ends {
			ends[i][1].Close()
		}
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		q.mu.Lock()
		if err != nil && !q.killed {
			if text := said.String(); text != "" {
				err = fmt.Errorf("%w: %s", err, text)
			}
			q.err = err
		}
		q.mu.Unlock()
		close(q.gone)
	}()
	if err := <-started; err != nil {
		q.close()
		return nil, err
	}
	if o.Steady {
		go pace(q.gone)
	}
	return q, nil
}

// keepToOneCPU binds the calling thread to the last of the CPUs that it may use.
func keepToOneCPU() error {
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return fmt.Errorf("CPUs of this process: %w", err)
	}
	for cpu := range len(may) * 64 {
		if may.IsSet(cpu) {
			one.Zero()
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("bind to a CPU: %w", err)
	}
	return nil
}

func (q *qemu) port() io.ReadWriter    { return q.portEnd }
func (q *qemu) console() io.Reader     { return q.consoleEnd }
func (q *qemu) ended() <-chan struct{} { return q.gone }

func (q *qemu) failure() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

func (q *qemu) kill() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.killed = true
	_ = q.cmd.Process.Kill() // it may have ended by itself
}

func (q *qemu) close() {
	q.portEnd.Close()
	q.consoleEnd.Close()
}

// socketPair returns two ends of a stream; the near one is for the runtime's poller,
// so that closing it ends a read.
func socketPair(name string) (near, far *os.File, err error) {
	fd, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	if err := unix.SetNonblock(fd[0], true); err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fd[0]), name), os.NewFile(uintptr(fd[1]), name), nil
}

// tail keeps the last of what a program says, as one line.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const most = 1024
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf); n > most {
		t.buf = append(t.buf[:0], t.buf[n-most:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []string
	for line := range bytes.Lines(t.buf) {
		if s := printable(string(bytes.TrimSpace(line))); s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, "; ")
}
