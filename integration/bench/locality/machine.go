package locality

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"disco/integration/guest/workload"
	"disco/memory"
	"disco/numa"
	"disco/vmm"
	"disco/vmm/boot"
)

// patience is how long a guest that is up may be silent.
const patience = 2 * time.Minute

// machine is a guest whose program has said hello.
type machine struct {
	*vmm.Guest
	conn    *workload.Conn
	stream  net.Conn
	dir     string
	ram     []memory.Range
	console console
	nodes   []numa.Node
	policy  Policy
	ended   chan struct{}
	end     vmm.Outcome
	failed  error
	ctx     context.Context
	cancel  context.CancelFunc
}

// start boots a guest for policy p, thin on the first node only.
func start(ctx context.Context, o *Options, p Policy, thin bool) (_ *machine, err error) {
	m := &machine{ended: make(chan struct{}), nodes: o.Nodes, policy: p}
	if m.dir, err = os.MkdirTemp("", "disco-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	m.ram = boot.RAM(o.Memory)
	cfg := o.config(p, thin)
	cfg.Stdout = &m.console
	cfg.Vsock = filepath.Join(m.dir, "vsock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("%s_%d", cfg.Vsock, workload.Port), Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if m.Guest, err = vmm.New(cfg); err != nil {
		return nil, err
	}
	m.ctx, m.cancel = context.WithCancel(ctx)
	go func() {
		defer close(m.ended)
		m.end, m.failed = m.Run(m.ctx)
	}()
	h, err := m.accept(ctx, l, o.BootTimeout)
	if err != nil {
		return nil, err
	}
	if h.CPUs != cfg.CPUs {
		return nil, fmt.Errorf("the guest found %d of its %d CPUs", h.CPUs, cfg.CPUs)
	}
	m.StartBalance()
	return m, m.checkPlace(thin)
}

// accept waits for the guest to connect and to say hello. A guest that is slow to see
// its connection accepted gives it up and makes another.
func (m *machine) accept(ctx context.Context, l *net.UnixListener, timeout time.Duration) (workload.Hello, error) {
	deadline := time.Now().Add(timeout)
	if err := l.SetDeadline(deadline); err != nil {
		return workload.Hello{}, err
	}
	came := make(chan struct{})
	defer close(came)
	go func() {
		select {
		case <-m.ended:
		case <-ctx.Done():
		case <-came:
		}
		l.Close()
	}()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return workload.Hello{}, context.Cause(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return workload.Hello{}, fmt.Errorf("the guest did not come up in %v; its last lines: %q", timeout, m.console.lines())
		case err != nil:
			return workload.Hello{}, m.why(err)
		}
		m.adopt(ctx, c)
		h, err := m.conn.Hello()
		if err == nil {
			return h, nil
		}
		c.Close()
		if !errors.Is(err, io.EOF) || time.Now().After(deadline) {
			return h, m.why(err)
		}
	}
}

// adopt speaks to the guest over c. A guest that is gone, or a person who has had
// enough, ends all waiting.
func (m *machine) adopt(ctx context.Context, c net.Conn) {
	m.stream, m.conn = c, workload.NewConn(patient{c})
	go func() {
		select {
		case <-m.ended:
		case <-ctx.Done():
		}
		c.Close()
	}()
}

// why is err, or what the guest's end says better.
func (m *machine) why(err error) error {
	select {
	case <-m.ended:
	case <-time.After(leave):
		return fmt.Errorf("%w; the guest's last lines: %q", err, m.console.lines())
	}
	if m.failed != nil {
		return m.failed
	}
	return fmt.Errorf("the guest is gone: %v %s; its last lines: %q", m.end.Kind, m.end.Reason, m.console.lines())
}

// console keeps the end of what a guest prints.
type console struct {
	mu   sync.Mutex
	tail []byte
}

const consoleTail = 1 << 10 // bytes

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, p...)
	c.tail = c.tail[max(0, len(c.tail)-consoleTail):]
	return len(p), nil
}

func (c *console) lines() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.tail)
}

// patient is a stream on which silence is an error.
type patient struct{ net.Conn }

func (p patient) Read(b []byte) (int, error) {
	if err := p.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return p.Conn.Read(b)
}

// close lets a guest that was told bye power off, and ends any other.
func (m *machine) close() error {
	var errs []error
	if m.Guest != nil {
		select {
		case <-m.ended:
		case <-m.ctx.Done():
		case <-time.After(leave):
		}
		m.Kill("the benchmark is over")
		<-m.ended
		m.cancel()
		if m.stream != nil {
			m.stream.Close()
		}
		errs = append(errs, m.failed, m.Guest.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}

// leave is how long a guest may take to power off.
const leave = 5 * time.Second
