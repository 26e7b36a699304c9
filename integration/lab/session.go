package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stuckError is a lab that got stuck or died, through no fault of the command or of
// this host that can be told.
type stuckError struct {
	why     string // "did not start within 60s"
	stage   string // what it did last
	running bool   // the command ran
	journal *journal
}

func (e *stuckError) Error() string {
	s := "it " + e.why
	if cause := e.journal.cause(); cause != "" {
		s += " (kernel panic: " + cause + ")"
	}
	s += "; it stood at: " + e.stage
	lines := e.journal.last(shownLines)
	if len(lines) == 0 {
		return s + "; its kernel had said nothing"
	}
	return s + "; its kernel's last lines:\n    " + strings.Join(lines, "\n    ")
}

// The init of a lab that runs a command beats; one that has not for maxSilence
// stands still. An emulated machine can: see docs/decisions/004-ticks-in-the-lab.md.
const (
	beatInterval = 5 * time.Second
	maxSilence   = 90 * time.Second
)

// session is one machine, and the command in it.
type session struct {
	o       *Options
	m       machine
	began   time.Time
	journal *journal
	link    *link

	frames  chan frame // from the lab, but for those of streams
	stage   string
	running bool
	sent    sync.WaitGroup // the copies of outputs
	broken  chan error     // an output that cannot be written
	signals int            // of those that ask for an end
}

const shownLines = 20 // of the kernel's, when the lab fails

// run drives the machine m until its command has ended, and ends m.
func run(ctx context.Context, o *Options, m machine) (exitFrame, error) {
	s := &session{
		o: o, m: m, began: time.Now(),
		journal: &journal{}, link: newLink(m.port()),
		frames: make(chan frame), stage: "firmware and kernel",
		broken: make(chan error, int(streams)),
	}
	if o.Verbose {
		s.journal.live = o.Stderr
	}
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		_, _ = io.Copy(s.journal, m.console()) // it ends when the machine does
	}()

	stop := make(chan struct{})
	served := make(chan error, 1)
	go func() {
		served <- s.link.serve(func(f frame) (bool, error) {
			f.payload = append([]byte(nil), f.payload...)
			select {
			case s.frames <- f:
				return f.kind != kindExit, nil
			case <-stop:
				return false, nil
			}
		})
	}()

	e, err := s.converse(ctx, served)
	m.kill()
	<-m.ended()
	<-logged
	close(stop)
	var stuck *stuckError
	if errors.As(err, &stuck) {
		if f := m.failure(); f != nil {
			return e, &HostError{[]error{fmt.Errorf("lab: QEMU: %w", f)}}
		}
		stuck.journal = s.journal
		if stuck.running {
			return e, fmt.Errorf("lab: %s", stuck.Error()) // not to be tried again
		}
	}
	return e, err
}

func (s *session) converse(ctx context.Context, served <-chan error) (exitFrame, error) {
	watchdog := time.NewTimer(s.o.BootTimeout)
	defer watchdog.Stop()
	var resize <-chan WindowSize
	if s.o.TTY != nil {
		resize = s.o.TTY.Resize
	}
	silence := time.NewTimer(s.o.silence)
	defer silence.Stop()
	var grace <-chan time.Time
	var asked int
	for {
		select {
		case f := <-s.frames:
			e, err := s.handle(f)
			if err != nil {
				return exitFrame{}, err
			}
			if e != nil {
				return *e, s.drain(ctx)
			}
			if s.running {
				watchdog.Stop()
			}
			silence.Reset(s.o.silence)
		case err := <-served:
			// The machine's end closes the port; what it said is more telling.
			s.waitEnd()
			return exitFrame{}, s.died(err)
		case <-watchdog.C:
			return exitFrame{}, &stuckError{why: fmt.Sprintf("did not start within %s", s.o.BootTimeout), stage: s.stage}
		case <-silence.C:
			if s.running {
				return exitFrame{}, &stuckError{why: fmt.Sprintf("has said nothing for %s", s.o.silence), stage: s.stage, running: true}
			}
		case err := <-s.broken:
			return exitFrame{}, err
		case size := <-resize:
			if s.running {
				_ = s.link.sendNumbers(kindResize, 0, uint32(size.Cols), uint32(size.Rows))
			}
		case sig := <-s.o.Signals:
			n, end := s.signal(sig)
			if end {
				return exitFrame{Code: 128 + n}, nil
			}
			if sig == syscall.SIGTERM {
				asked, grace = n, time.After(s.o.Grace)
			}
		case <-grace:
			return exitFrame{Code: 128 + asked}, nil
		case <-ctx.Done():
			return exitFrame{}, context.Cause(ctx)
		}
	}
}

// waitEnd gives a machine that closed its port the moment it needs to end.
func (s *session) waitEnd() {
	select {
	case <-s.m.ended():
	case <-time.After(2 * time.Second):
	}
}

func (s *session) died(err error) error {
	if errors.Is(err, errProtocol) {
		return err
	}
	if s.running {
		return &stuckError{why: "ended while its command ran", stage: s.stage, running: true}
	}
	return &stuckError{why: "ended before its command ran", stage: s.stage}
}

// handle returns how the command ended, once it has.
func (s *session) handle(f frame) (*exitFrame, error) {
	switch f.kind {
	case kindHello:
		var h helloFrame
		if err := json.Unmarshal(f.payload, &h); err != nil {
			return nil, fmt.Errorf("%w: hello: %w", errProtocol, err)
		}
		if h.Version != protocolVersion {
			return nil, fmt.Errorf("%w: the lab's init speaks version %d, not %d", errProtocol, h.Version, protocolVersion)
		}
		s.enter("init")
		return nil, s.begin()
	case kindStage:
		s.enter(printable(string(f.payload)))
	case kindAlive:
	case kindStarted:
		s.enter("command")
		s.running = true
		go func() {
			if s.o.Stdin == nil {
				_ = s.link.out[stdin].Close()
				return
			}
			// When the input fails, the command sees its end; when the link does,
			// serve says so.
			_ = s.link.out[stdin].fill(s.o.Stdin)
		}()
	case kindExit:
		var e exitFrame
		if err := json.Unmarshal(f.payload, &e); err != nil {
			return nil, fmt.Errorf("%w: exit: %w", errProtocol, err)
		}
		return &e, nil
	default:
		return nil, fmt.Errorf("%w: kind %d is not for the host", errProtocol, f.kind)
	}
	return nil, nil
}

func (s *session) enter(stage string) {
	s.stage = stage
	if s.o.Verbose {
		fmt.Fprintf(s.o.Stderr, "disco lab: %6.2f s: %s\n", time.Since(s.began).Seconds(), stage)
	}
}

// begin asks for the command and opens the ways of its output.
func (s *session) begin() error {
	start := startFrame{
		Command: s.o.Command, Dir: s.o.Dir, Env: s.o.Env, Forwards: s.o.Forwards, Now: time.Now().UnixNano(),
	}
	if t := s.o.TTY; t != nil {
		start.TTY, start.Cols, start.Rows = true, t.Cols, t.Rows
	}
	// A link that is broken is reported by serve.
	if err := s.link.sendJSON(kindStart, start); errors.Is(err, errTooLong) {
		return &UsageError{[]error{err}}
	}
	for st, w := range map[stream]io.Writer{stdout: s.o.Stdout, stderr: s.o.Stderr} {
		_ = s.link.in[st].open()
		s.sent.Go(func() { s.copyOut(w, s.link.in[st]) })
	}
	return nil
}

func (s *session) copyOut(w io.Writer, r io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			s.broken <- fmt.Errorf("lab: output: %w", werr)
			return
		}
		if err != nil {
			return // its end, or the link's, which serve reports
		}
	}
}

// drain waits until the last output is written.
func (s *session) drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() { s.sent.Wait(); close(done) }()
	select {
	case <-done:
		select {
		case err := <-s.broken:
			return err
		default:
			return nil
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// signal passes a signal on, or says that it ends the lab.
func (s *session) signal(sig os.Signal) (number int, end bool) {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return 0, false
	}
	if n == syscall.SIGINT || n == syscall.SIGTERM {
		s.signals++
	}
	if !s.running || s.signals > 1 {
		return int(n), true
	}
	_ = s.link.sendNumbers(kindSignal, 0, uint32(n)) // serve reports a broken link
	return int(n), false
}
