package share

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"disco/integration/bench/resident"
	"disco/vmm"
)

// monitor is disco's: one, with all guests.
type monitor struct {
	o       *Options
	mode    Mode
	monitor *vmm.Monitor
	guests  []running
}

type running struct {
	*vmm.Guest
	gone chan struct{} // closed when it does not run any more
}

func (o *Options) disco(m Mode) (host, error) {
	vm, err := vmm.NewMonitor(vmm.MonitorConfig{CacheSize: cacheSize})
	if err != nil {
		return nil, err
	}
	return &monitor{o: o, mode: m, monitor: vm}, nil
}

func (h *monitor) start(ended chan<- error) (*console, error) {
	c := newConsole()
	g, err := h.monitor.New(h.o.config(h.mode, len(h.guests), c))
	if err != nil {
		return nil, err
	}
	r := running{g, make(chan struct{})}
	h.guests = append(h.guests, r)
	go func() {
		outcome, err := g.Run(context.Background())
		if err == nil {
			err = fmt.Errorf("%v %s", outcome.Kind, outcome.Reason)
		}
		close(r.gone)
		ended <- err
	}()
	return c, nil
}

// end kills a guest, if it runs, and frees what it has.
func (r running) end() error {
	r.Kill("the benchmark is done with it")
	<-r.gone
	return r.Close()
}

func (h *monitor) drop() error {
	last := len(h.guests) - 1
	r := h.guests[last]
	h.guests = h.guests[:last]
	return r.end()
}

func (h *monitor) close() error {
	var errs []error
	for _, r := range h.guests {
		errs = append(errs, r.end())
	}
	return errors.Join(append(errs, h.monitor.Close())...)
}

// cacheSize is more than any image here: nothing is to be evicted.
const cacheSize = 4 << 30

func (o *Options) config(m Mode, i int, c *console) vmm.Config {
	d := vmm.Disk{Path: o.Image, Overlay: vmm.OverlayMemory}
	switch m {
	case Always:
		d.Share = vmm.ShareAlways
	case Never:
		d.Share = vmm.ShareNever
	}
	return vmm.Config{
		Name: fmt.Sprintf("share-%d", i+1), Kernel: o.Kernel, Initrd: o.Initrd, Cmdline: o.words(),
		Console: vmm.ConsoleSerial, CPUs: o.CPUs, Memory: o.Memory, Disks: []vmm.Disk{d}, Stdout: c,
	}
}

// look counts the memory of the monitor and its guests.
func (h *monitor) look(context.Context) (*Row, error) {
	debug.FreeOSMemory() // what this program has used to get here is not the monitor's
	row := &Row{}
	for i, g := range h.guests {
		s := g.Space()
		if s == nil {
			return nil, fmt.Errorf("guest %d is gone", i+1)
		}
		t := s.Stats()
		row.RAM += s.Resident()
		row.Shared += t.SharedPages * pageSize
		row.Collapsed += t.Unshared
		row.Kernel += t.Shared * pageSize
		for _, d := range g.DiskStats() {
			row.Mapped += d.Mapped
			row.Copied += d.Copied
			row.Overlay += d.Overlay
			row.Kernel -= d.Mapped
		}
	}
	row.Cache = h.monitor.CacheStats().Pages * pageSize
	row.Frames = row.RAM + row.Cache + row.Overlay
	own, err := resident.Rollup("self")
	if err != nil {
		return nil, err
	}
	row.Own = own["Pss_Anon"] + own["Pss_File"]
	if row.Files, err = resident.Memfds(); err != nil {
		return nil, err
	}
	row.M = row.Files + row.Own
	row.VMAs, err = resident.Mappings()
	return row, err
}
