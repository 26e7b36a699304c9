package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fake is a machine whose init is a function.
type fake struct {
	near, far net.Conn
	log       *io.PipeReader
	logEnd    *io.PipeWriter
	gone      chan struct{}
	once      sync.Once
	err       error
}

func newFake(init func(l *link, end func())) *fake {
	f := &fake{gone: make(chan struct{})}
	f.near, f.far = net.Pipe()
	f.log, f.logEnd = io.Pipe()
	go func() {
		fmt.Fprint(f.logEnd, "[    0.0] Linux\n[    1.0] Kernel panic - not syncing: out of words\n[    1.1] last words\x1b[31m\n")
		init(newLink(f.far), f.kill)
	}()
	return f
}

func (f *fake) port() io.ReadWriter    { return f.near }
func (f *fake) console() io.Reader     { return f.log }
func (f *fake) ended() <-chan struct{} { return f.gone }
func (f *fake) failure() error         { return f.err }
func (f *fake) kill() {
	f.once.Do(func() {
		f.far.Close()
		f.logEnd.Close()
		close(f.gone)
	})
}

// greet plays the init up to the command.
func greet(l *link, start func(startFrame), signal func(uint32)) {
	go func() {
		_ = l.serve(func(f frame) (bool, error) {
			switch f.kind {
			case kindStart:
				var s startFrame
				if err := json.Unmarshal(f.payload, &s); err != nil {
					return false, err
				}
				go start(s)
			case kindSignal:
				n, err := f.numbers(1)
				if err != nil {
					return false, err
				}
				go signal(n[0])
			}
			return true, nil
		})
	}()
	_ = l.sendJSON(kindHello, helloFrame{protocolVersion})
}

// echo is an init whose command copies its input to its output, and ends with 42.
func echo(l *link, _ func()) {
	greet(l, func(startFrame) {
		_ = l.send(kindStarted, 0, nil)
		_ = l.in[stdin].open()
		_ = l.out[stdout].fill(l.in[stdin])
		_ = l.out[stderr].fill(strings.NewReader("done\n"))
		_ = l.sendJSON(kindExit, exitFrame{Code: 42})
	}, nil)
}

// silent is an init that never comes to its command.
func silent(l *link, _ func()) { _ = l.send(kindStage, 0, []byte("mounting")) }

func options() *Options {
	return &Options{Nodes: 2, Dir: "/", BootTimeout: time.Minute, silence: time.Minute, Stdout: io.Discard, Stderr: io.Discard}
}

func TestSessionCarriesStreamsAndTheExitCode(t *testing.T) {
	o := options()
	sent := noise(1 << 20)
	var out, errs bytes.Buffer
	o.Stdin, o.Stdout, o.Stderr = bytes.NewReader(sent), &out, &errs
	e, err := run(t.Context(), o, newFake(echo))
	if err != nil || e.Code != 42 {
		t.Errorf("got %+v, %v", e, err)
	}
	if !bytes.Equal(out.Bytes(), sent) {
		t.Errorf("%d other bytes came out than the %d that went in", out.Len(), len(sent))
	}
	if errs.String() != "done\n" {
		t.Errorf("stderr: %q", errs.String())
	}
}

// slow takes its time over each write.
type slow struct{ bytes.Buffer }

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return s.Buffer.Write(p)
}

func TestOutputIsDrainedBeforeTheExitCode(t *testing.T) {
	o := options()
	var out slow
	sent := noise(window)
	o.Stdin, o.Stdout = bytes.NewReader(sent), &out
	if _, err := run(t.Context(), o, newFake(echo)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), sent) {
		t.Errorf("%d of %d bytes were written", out.Len(), len(sent))
	}
}

func TestWatchdogNamesWhereTheLabStood(t *testing.T) {
	o := options()
	o.BootTimeout = 20 * time.Millisecond
	m := newFake(silent)
	_, err := run(t.Context(), o, m)
	var stuck *stuckError
	if !errors.As(err, &stuck) {
		t.Fatalf("got %v, want a stuck lab", err)
	}
	for _, want := range []string{"did not start within 20ms", "it stood at: mounting", "last words"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%q has the lab's escape sequences", err)
	}
	select {
	case <-m.gone:
	default:
		t.Error("the machine was left running")
	}
}

func TestAStuckLabIsTriedOnceMore(t *testing.T) {
	for _, c := range []struct {
		name    string
		inits   []func(*link, func())
		code    int
		failure string
		said    []string
	}{
		{"the first is well", []func(*link, func()){echo}, 42, "", nil},
		{"the second is well", []func(*link, func()){silent, echo}, 42, "",
			[]string{"it stood at: mounting", "trying once more (retries: 1)", "started at the second try (retries: 1)"}},
		{"it dies first", []func(*link, func()){func(_ *link, end func()) { end() }, echo}, 42, "",
			[]string{"ended before its command ran", "retries: 1"}},
		{"both are stuck", []func(*link, func()){silent, silent}, 0, "twice it did not start", []string{"trying once more"}},
	} {
		o := options()
		o.BootTimeout = 50 * time.Millisecond
		var said bytes.Buffer
		o.Stderr = &said
		tries := 0
		code, err := retry(t.Context(), o, func() (exitFrame, error) {
			tries++
			return run(t.Context(), o, newFake(c.inits[tries-1]))
		})
		if code != c.code || tries != len(c.inits) {
			t.Errorf("%s: code %d after %d tries", c.name, code, tries)
		}
		var host *HostError
		if c.failure == "" && err != nil || c.failure != "" && (!errors.As(err, &host) || !strings.Contains(err.Error(), c.failure)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.failure)
		}
		for _, want := range c.said {
			if !strings.Contains(said.String(), want) {
				t.Errorf("%s: %q does not say %q", c.name, said.String(), want)
			}
		}
	}
}

func TestALabThatDiesUnderItsCommandIsNotTriedAgain(t *testing.T) {
	tries := 0
	o := options()
	_, err := retry(t.Context(), o, func() (exitFrame, error) {
		tries++
		return run(t.Context(), o, newFake(func(l *link, end func()) {
			greet(l, func(startFrame) {
				_ = l.send(kindStarted, 0, nil)
				end()
			}, nil)
		}))
	})
	var host *HostError
	if err == nil || errors.As(err, &host) || tries != 1 {
		t.Fatalf("%v after %d tries", err, tries)
	}
	if !strings.Contains(err.Error(), "ended while its command ran (kernel panic: out of words)") || !strings.Contains(err.Error(), "last words") {
		t.Errorf("%q does not say how it died", err)
	}
}

func TestSignals(t *testing.T) {
	signals := make(chan os.Signal, 2)
	o := options()
	o.Signals = signals
	got := make(chan uint32, 1)
	e, err := run(t.Context(), o, newFake(func(l *link, _ func()) {
		greet(l, func(startFrame) {
			_ = l.send(kindStarted, 0, nil)
			_ = l.in[stdin].open()
			_, _ = io.ReadAll(l.in[stdin]) // it ends when the host knows that the command runs
			signals <- syscall.SIGTERM
		}, func(n uint32) {
			got <- n
			_ = l.sendJSON(kindExit, exitFrame{Code: 128 + int(n)})
		})
	}))
	if err != nil || e.Code != 143 {
		t.Fatalf("got %+v, %v", e, err)
	}
	if n := <-got; n != uint32(syscall.SIGTERM) {
		t.Errorf("the command got signal %d", n)
	}

	// The second ends a lab whose command does not care; before the command runs the
	// first does.
	for name, init := range map[string]func(*link, func()){
		"silent": silent,
		"deaf": func(l *link, _ func()) {
			greet(l, func(startFrame) { _ = l.send(kindStarted, 0, nil) }, func(uint32) {})
		},
	} {
		signals <- syscall.SIGINT
		signals <- syscall.SIGINT
		e, err := run(t.Context(), o, newFake(init))
		if err != nil || e.Code != 130 {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
		for len(signals) > 0 {
			<-signals
		}
	}
}

// A lab whose command does not heed a SIGTERM, or cannot, ends by itself.
func TestGrace(t *testing.T) {
	signals := make(chan os.Signal, 1)
	o := options()
	o.Signals, o.Grace = signals, 10*time.Millisecond
	e, err := run(t.Context(), o, newFake(func(l *link, _ func()) {
		greet(l, func(startFrame) { _ = l.send(kindStarted, 0, nil) }, func(uint32) {})
		signals <- syscall.SIGTERM
	}))
	if err != nil || e.Code != 143 {
		t.Errorf("got %+v, %v", e, err)
	}
}

// A lab that stands still while its command runs is given up, and not tried again:
// the command may have done something.
func TestSilence(t *testing.T) {
	o := options()
	o.silence = 20 * time.Millisecond
	tries := 0
	_, err := retry(t.Context(), o, func() (exitFrame, error) {
		tries++
		return run(t.Context(), o, newFake(func(l *link, _ func()) {
			greet(l, func(startFrame) { _ = l.send(kindStarted, 0, nil) }, func(uint32) {})
		}))
	})
	if err == nil || !strings.HasPrefix(err.Error(), "lab: it has said nothing for 20ms") || tries != 1 {
		t.Errorf("%d tries, %v", tries, err)
	}
}

func TestCancelledSession(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	o := options()
	m := newFake(silent)
	_, err := retry(ctx, o, func() (exitFrame, error) { return run(ctx, o, m) })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	<-m.gone
}

func TestOutputThatCannotBeWrittenEndsTheLab(t *testing.T) {
	o := options()
	r, w := io.Pipe()
	r.CloseWithError(syscall.EPIPE)
	o.Stdout, o.Stdin = w, strings.NewReader("x")
	m := newFake(echo)
	if _, err := run(t.Context(), o, m); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v", err)
	}
	<-m.gone
}

func TestInitThatFails(t *testing.T) {
	for _, c := range []struct {
		e    exitFrame
		code int
		fail bool
	}{
		{exitFrame{Error: "mount: no such device"}, 0, true},
		{exitFrame{Code: 127, Error: "frob: not found"}, 127, false},
	} {
		o := options()
		var said bytes.Buffer
		o.Stderr = &said
		code, err := retry(t.Context(), o, func() (exitFrame, error) {
			return run(t.Context(), o, newFake(func(l *link, _ func()) {
				greet(l, func(startFrame) { _ = l.sendJSON(kindExit, c.e) }, nil)
			}))
		})
		if code != c.code || (err != nil) != c.fail {
			t.Errorf("%+v: %d, %v", c.e, code, err)
		}
		if text := fmt.Sprint(err, said.String()); !strings.Contains(text, c.e.Error) {
			t.Errorf("%q does not say %q", text, c.e.Error)
		}
	}
}

func TestSessionRefusesAnotherProtocol(t *testing.T) {
	_, err := run(t.Context(), options(), newFake(func(l *link, _ func()) {
		_ = l.sendJSON(kindHello, helloFrame{protocolVersion + 1})
	}))
	if err == nil || !strings.Contains(err.Error(), "speaks version") {
		t.Errorf("got %v", err)
	}
}
