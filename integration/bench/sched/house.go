package sched

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"disco/integration/bench/said"
	"disco/integration/tiny"
	"disco/vcpu/kvm"
	"disco/vmm"
)

// house is a stage of guests of one monitor, with devices.
type house struct {
	o       Options
	load    load
	dir     string // of kernels and disks
	monitor *vmm.Monitor
	tenants []*tenant
}

// tenant is one of its guests.
type tenant struct {
	guest *vmm.Guest
	gone  chan struct{} // closed when it does not run any more
	ready chan struct{} // closed when it does what it is measured at
	err   error         // how it ended, once it is gone
	had   had
}

// had is CPU time, in s.
type had struct{ vcpus, workers float64 }

func newHouse(o Options, l load) *house { return &house{o: o, load: l} }

const (
	floodPages  = 512 // of a request
	linuxMemory = 128 << 20
	bootTime    = 10 * time.Minute // for all of a load's Linux guests, emulated twice over
)

// begin implements stage.
func (h *house) begin(ctx context.Context, _ *kvm.System, p Policy) (err error) {
	c := vmm.SchedulerConfig{Quantum: h.o.Quantum, CPUs: h.o.CPUs, Strict: true}
	switch p {
	case Stride:
	case Lottery:
		c.Kind = vmm.SchedulerLottery
	default:
		return fmt.Errorf("a monitor does not schedule by %s", p)
	}
	if h.dir, err = os.MkdirTemp("", "disco-bench-"); err != nil {
		return err
	}
	if h.monitor, err = vmm.NewMonitor(vmm.MonitorConfig{Scheduler: c}); err != nil {
		return err
	}
	for i := range h.load.guests {
		if err := h.start(i); err != nil {
			return err
		}
	}
	for i, t := range h.tenants {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.gone:
			return fmt.Errorf("guest %s: %w", h.load.guests[i].name, t.err)
		case <-time.After(bootTime):
			return fmt.Errorf("guest %s has not booted in %v", h.load.guests[i].name, bootTime)
		case <-t.ready:
		}
	}
	return nil
}

func (h *house) start(i int) error {
	m := h.load.guests[i]
	t := &tenant{gone: make(chan struct{}), ready: make(chan struct{})}
	c := vmm.Config{Name: m.name, CPUs: 1, Memory: guestMemory * 4, Tickets: m.tickets, Console: vmm.ConsoleSerial}
	var err error
	if h.load.kind == linux {
		var once sync.Once
		c.Kernel, c.Initrd, c.Memory = h.o.Kernel, h.o.Initrd, linuxMemory
		c.Cmdline = h.o.Cmdline + " disco.task=spin"
		c.Stdout = said.New(func(_ string, words said.Words) {
			if words["spinning"] != "" {
				once.Do(func() { close(t.ready) })
			}
		})
	} else {
		close(t.ready)
		name := "compute"
		if i == 0 {
			name = "flood"
			disk := filepath.Join(h.dir, "disk")
			if err := os.WriteFile(disk, make([]byte, floodPages<<12), 0o600); err != nil {
				return err
			}
			c.Disks, c.Cmdline = []vmm.Disk{{Path: disk, ReadOnly: true, Share: vmm.ShareNever}}, fmt.Sprint("pages=", floodPages)
		}
		if c.Kernel, err = h.kernel(name); err != nil {
			return err
		}
	}
	if t.guest, err = h.monitor.New(c); err != nil {
		return err
	}
	h.tenants = append(h.tenants, t)
	go func() {
		defer close(t.gone)
		outcome, err := t.guest.Run(context.Background())
		if t.err = err; err == nil {
			t.err = fmt.Errorf("%v %s", outcome.Kind, outcome.Reason)
		}
	}()
	return nil
}

// kernel is a tiny guest in a file.
func (h *house) kernel(name string) (string, error) {
	image, err := tiny.Image(name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(h.dir, name)
	return path, os.WriteFile(path, image, 0o600)
}

// look brings what all have had up to date. Of one that is gone it stays.
func (h *house) look() {
	for _, u := range h.monitor.Usage() {
		h.tenants[h.index(u.Guest)].had = had{u.Used.Seconds(), u.Workers.Seconds()}
	}
}

func (h *house) index(name string) int {
	for i, m := range h.load.guests {
		if m.name == name {
			return i
		}
	}
	panic("sched: a guest of no load: " + name)
}

func (h *house) used() []float64 {
	h.look()
	var all []float64
	for _, t := range h.tenants {
		all = append(all, t.had.vcpus+t.had.workers)
	}
	return all
}

func (h *house) workers() (all float64) {
	h.look()
	for _, t := range h.tenants {
		all += t.had.workers
	}
	return all
}

func (h *house) progress() uint64 { return 0 }

func (h *house) tickets(name string, n int64) error {
	return h.tenants[h.index(name)].guest.SetTickets(n)
}

func (h *house) join(name string) error { return fmt.Errorf("guest %s cannot join late", name) }

func (h *house) leave(name string) error {
	t := h.tenants[h.index(name)]
	h.look()
	t.guest.Kill("the benchmark is done with it")
	<-t.gone
	return nil
}

func (h *house) close() error {
	var errs []error
	for i, t := range h.tenants {
		_ = h.leave(h.load.guests[i].name)
		errs = append(errs, t.guest.Close())
	}
	if h.monitor != nil {
		errs = append(errs, h.monitor.Close())
	}
	if h.dir != "" {
		errs = append(errs, os.RemoveAll(h.dir))
	}
	return errors.Join(errs...)
}
