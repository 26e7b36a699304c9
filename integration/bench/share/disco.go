package share

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"disco/integration/bench/resident"
	"disco/vmm"
)

// disco has n guests of one monitor work, and looks at its memory.
func (o *Options) disco(ctx context.Context, m Mode, n int) (row *Row, err error) {
	monitor, err := vmm.NewMonitor(vmm.MonitorConfig{CacheSize: cacheSize})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, monitor.Close()) }()
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("the guests were not done after %v", o.Timeout))
	defer cancel()
	var running sync.WaitGroup
	var guests []*vmm.Guest
	defer func() {
		cancel()
		for _, g := range guests {
			g.Kill("the benchmark is over")
		}
		running.Wait()
		for _, g := range guests {
			err = errors.Join(err, g.Close())
		}
	}()
	var consoles []*console
	ended := make(chan error, n)
	for i := range n {
		c := newConsole()
		g, err := monitor.New(o.config(m, i, c))
		if err != nil {
			return nil, err
		}
		guests, consoles = append(guests, g), append(consoles, c)
		running.Go(func() {
			outcome, err := g.Run(context.WithoutCancel(ctx))
			if err == nil {
				err = lost(i, fmt.Sprintf("is gone (%v %s)", outcome.Kind, outcome.Reason), c)
			}
			ended <- err
		})
	}
	if err := await(ctx, consoles, ended); err != nil {
		return nil, err
	}
	return count(monitor, guests, consoles)
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

// await waits until all guests are done, or one is lost.
func await(ctx context.Context, consoles []*console, ended <-chan error) error {
	for i, c := range consoles {
		select {
		case <-c.done:
		case why := <-c.failed:
			return lost(i, "failed: "+why, c)
		case err := <-ended:
			return err
		case <-ctx.Done():
			return lost(i, "was waited for: "+context.Cause(ctx).Error(), c)
		}
	}
	return nil
}

// count looks at the memory of guests that are done.
func count(monitor *vmm.Monitor, guests []*vmm.Guest, consoles []*console) (*Row, error) {
	debug.FreeOSMemory() // what this program has used to get here is not the monitor's
	row := &Row{}
	for i, g := range guests {
		s := g.Space()
		if s == nil {
			return nil, lost(i, "is gone", consoles[i])
		}
		t := s.Stats()
		row.RAM += s.Resident()
		row.Shared += t.SharedPages * pageSize
		row.Collapsed += t.Unshared
		for _, d := range g.DiskStats() {
			row.Mapped += d.Mapped
			row.Copied += d.Copied
			row.Overlay += d.Overlay
		}
		row.Each = append(row.Each, consoles[i].said())
	}
	row.Cache = monitor.CacheStats().Pages * pageSize
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
