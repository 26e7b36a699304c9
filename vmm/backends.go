package vmm

import (
	"errors"
	"io"
	"log/slog"

	"disco/devices"
	"disco/disk/cache"
	"disco/net/tap"
	"disco/net/user"
	"disco/scheduler/flow"
	"disco/virtio"
	"disco/virtio/blk"
	"disco/virtio/console"
	netdev "disco/virtio/net"
	"disco/virtio/rng"
	"disco/virtio/vsock"
)

// maxQueues bounds the queues of a disk and the queue pairs of a network
// device; below it there is one for each vCPU.
const maxQueues = 8

// backends are the devices that outlive a restart of the guest, and what they
// hold open. Their order is that of the PCI slots, so that a guest finds the
// same device at the same place whatever else it is given.
type backends struct {
	bases    *bases    // the Monitor's
	segments *segments // the Monitor's
	turns    turner    // the guest; nil for none
	devices  []virtio.Device
	disks    []blk.Backend   // those of Config.Disks
	readers  []*cache.Reader // of the bases of these
	folders  []sharedFolder  // those of Config.Folders
	ports    []*port         // on segments
	console  *console.Device // nil with ConsoleSerial
	closers  []func() error  // in the order of opening

	problems, refusals []error // while opening: what is wrong with cfg, and with the host
}

// turner has a guest's requests wait for their turns: those to the disk that a path is
// on, or through a gate. It is nil where nobody waits.
type turner interface {
	turns(path string) *flow.Flow
	through(g *flow.Gate) *flow.Flow
}

// openBackends opens what cfg names, and reports all that fails at once: as a
// *ConfigError if cfg is to blame for any of it, else as a *HostError.
func openBackends(cfg *Config, bases *bases, segments *segments, turns turner, out *devices.Output, log *slog.Logger) (*backends, error) {
	b := &backends{bases: bases, segments: segments, turns: turns}
	if cfg.Console == ConsoleVirtio {
		b.console = console.New(out)
		b.own(func() error { b.console.Close(); return nil })
		b.devices = append(b.devices, b.console)
	}
	b.devices = append(b.devices, rng.New())
	for _, d := range cfg.Disks {
		b.openDisk(d, cfg, log)
	}
	on := map[string]int{} // devices by segment
	for _, n := range cfg.Nets {
		if n.Kind == NetSegment {
			b.openSegment(&n, on[n.Segment], cfg, log)
			on[n.Segment]++
			continue
		}
		b.openNet(n, cfg, log)
	}
	if cfg.Vsock != "" {
		b.openVsock(cfg, log)
	}
	if cfg.CloudInit != "" {
		b.openSeed(cfg)
	}
	for _, f := range cfg.Folders {
		b.openFolder(f, cfg, log)
	}
	var err error
	switch {
	case b.problems != nil:
		err = &ConfigError{append(b.problems, b.refusals...)}
	case b.refusals != nil:
		err = &HostError{errors.Join(b.refusals...)}
	default:
		return b, nil
	}
	return nil, errors.Join(err, b.close())
}

func (b *backends) own(close func() error) { b.closers = append(b.closers, close) }

func (b *backends) openNet(n Net, cfg *Config, log *slog.Logger) {
	var backend interface {
		netdev.Backend
		io.Closer
	}
	var err error
	switch n.Kind {
	case NetTap:
		backend, err = tap.Open(tap.Config{Name: n.Tap, Bridge: n.Bridge, Queues: min(cfg.CPUs, maxQueues), Log: log})
	case NetUser:
		var forwards []user.Forward
		for _, f := range n.Forwards {
			forwards = append(forwards, user.Forward{Proto: f.Proto, HostAddr: f.HostAddr, HostPort: f.HostPort, GuestPort: f.GuestPort})
		}
		backend, err = user.New(user.Config{Forwards: forwards, Log: log})
	}
	if err != nil {
		b.refusals = append(b.refusals, err)
		return
	}
	b.own(backend.Close)
	dev, err := netdev.New(netdev.Config{Backend: backend, Pairs: min(cfg.CPUs, maxQueues), Log: log})
	if err != nil {
		b.refusals = append(b.refusals, err)
		return
	}
	b.devices = append(b.devices, dev)
}

func (b *backends) openVsock(cfg *Config, log *slog.Logger) {
	dev, err := vsock.New(vsock.Config{Path: cfg.Vsock})
	if err != nil {
		b.refusals = append(b.refusals, err)
		return
	}
	b.own(dev.Close)
	b.devices = append(b.devices, dev)
}

func (b *backends) close() error {
	var errs []error
	for i := len(b.closers) - 1; i >= 0; i-- {
		errs = append(errs, b.closers[i]())
	}
	return errors.Join(errs...)
}
