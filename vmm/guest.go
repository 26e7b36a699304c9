// Package vmm composes a guest from its parts and owns its lifetime.
//
// A [Monitor] holds what the guests of a process share. A [Guest] holds what
// outlives a reboot: open images, network stacks, the console's ends. A machine is
// one power cycle: KVM VM, memory, vCPUs, buses. A Guest is built paused by
// [Monitor.New], or by [New] in a Monitor of its own; [Guest.Run] lets it run until
// it powers off, crashes, is killed or times out, and builds a new machine each
// time it restarts.
//
// Locks: Monitor.mu guards which guests there are and where, and comes before
// Guest.mu, which guards only which machine is current. Neither is held while a
// vCPU or a device worker is waited for.
//
// Not done here: ring layouts and request formats (package virtio and below),
// KVM's ioctls (vcpu/kvm), what to boot by default (cmd/disco).
package vmm

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"disco/devices"
)

// KVMPath is the device that guests run on.
const KVMPath = "/dev/kvm"

// Guest is one virtual machine. PressPowerButton, Kill, ResizeConsole and
// Report may be called from any goroutine; Run and Close from one each, Close
// last.
type Guest struct {
	cfg      Config
	log      *slog.Logger
	monitor  *Monitor
	private  bool // the Monitor is this guest's alone
	image    *image
	backends *backends
	history  *history
	out      *devices.Output
	clock    clock
	share    *share // of the CPUs; nil where the host schedules

	mu      sync.Mutex
	machine *machine      // the current one, or nil between two
	place   *place        // where the current one runs and the next will
	turn    chan struct{} // closed when machine changes
	killed  *Outcome      // an end that was asked for
	pressed bool          // the power button, between two machines
	report  Report
	closed  bool
}

func (g *Guest) build() (*machine, error) {
	g.mu.Lock()
	p := g.place
	g.mu.Unlock()
	g.backends.readFrom(p, &g.cfg)
	g.backends.sit(p)
	image := g.image
	if g.cfg.FromDisk {
		var err error
		if image, err = openRoot(&g.cfg, g.backends.disks[0]); err != nil {
			return nil, err
		}
		defer image.close()
	}
	m, err := build(g.monitor.sys, &g.monitor.bases, &g.cfg, p, image, g.out, g.backends.devices, g.log)
	var bad *ConfigError
	if err != nil && !errors.As(err, &bad) {
		err = &HostError{err}
	}
	if err == nil {
		if err = m.enlist(g.share, g.log); err != nil {
			return nil, errors.Join(&HostError{err}, m.close())
		}
	}
	return m, err
}

// Run lets the guest run and returns how it ended. When ctx is cancelled the
// power button is pressed, and the guest killed if it is still there after
// Config.Grace. The error is the host's; a guest's crash is an Outcome.
func (g *Guest) Run(ctx context.Context) (Outcome, error) {
	var timeout <-chan time.Time
	if g.cfg.Timeout > 0 {
		t := time.NewTimer(g.cfg.Timeout)
		defer t.Stop()
		timeout = t.C
	}
	if g.cfg.Stdin != nil {
		go g.feed()
	}
	g.mu.Lock()
	n := threads(&g.cfg, g.place)
	g.mu.Unlock()
	if err := slackenSysmon(); err != nil {
		g.log.Debug("Go's sysmon looks often", "err", err)
	}
	processors.begin(n)
	defer processors.end(n)
	g.clock.mark(&g.clock.started)
	defer g.clock.mark(&g.clock.ended)
	asked := ctx.Done()
	var grace <-chan time.Time
	m := g.machine
	m.start()
	for {
		select {
		case e := <-m.over:
			if !e.reset {
				return g.finish(m, e.outcome), nil
			}
			g.log.Info("the guest restarts")
			var err error
			if m, err = g.restart(m); err != nil {
				return g.conclude(Outcome{Kind: Killed, Code: ExitHost, Reason: err.Error()}), err
			}
		case <-timeout:
			m.end(ending{outcome: Outcome{Kind: TimedOut, Code: ExitTimeout, Reason: "the guest was still running after " + g.cfg.Timeout.String()}})
		case <-asked:
			asked = nil
			g.log.Info("pressing the power button")
			g.PressPowerButton()
			t := time.NewTimer(g.cfg.Grace)
			defer t.Stop()
			grace = t.C
		case <-grace:
			m.end(ending{outcome: Outcome{Kind: Killed, Code: ExitPoweredOff, Reason: "killed: still running " + g.cfg.Grace.String() + " after the power button"}})
		}
	}
}

// restart ends machine m and starts its successor.
func (g *Guest) restart(m *machine) (*machine, error) {
	m.halt()
	g.account(m)
	g.setMachine(nil)
	if err := m.close(); err != nil {
		return nil, &HostError{err}
	}
	next, err := g.build()
	if err != nil {
		return nil, err
	}
	g.setMachine(next)
	next.start()
	return next, nil
}

// finish stops the machine and concludes.
func (g *Guest) finish(m *machine, o Outcome) Outcome {
	m.halt()
	g.account(m)
	return g.conclude(o)
}

// conclude gives the console's output a moment to drain and completes the
// report. No machine runs any more.
func (g *Guest) conclude(o Outcome) Outcome {
	g.out.Close()
	if o.Kind == Crashed {
		o.LastLines = g.history.lines()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.report.Outcome = o
	return o
}

// Close ends the guest if it runs, and frees all that was opened for it. Closing twice
// is harmless.
func (g *Guest) Close() error {
	g.mu.Lock()
	m, closed := g.machine, g.closed
	g.machine, g.closed = nil, true
	if !closed {
		close(g.turn)
	}
	g.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	if m != nil {
		errs = append(errs, m.close())
	}
	errs = append(errs, g.share.leave())
	if g.backends != nil {
		errs = append(errs, g.backends.close())
	}
	errs = append(errs, g.monitor.bases.sweep())
	if g.image != nil {
		errs = append(errs, g.image.put())
	}
	if g.out != nil {
		g.out.Close()
	}
	g.monitor.dismiss(g)
	if g.private {
		errs = append(errs, g.monitor.Close())
	}
	return errors.Join(errs...)
}
