package vmm

import (
	"errors"
	"io"
	"log/slog"

	"disco/devices"
	"disco/virtio"
	"disco/virtio/rng"
)

// backends are the devices that outlive a restart of the guest, and what they
// hold open.
type backends struct {
	devices []virtio.Device
	closers []io.Closer // in the order of opening
}

func openBackends(cfg *Config, out *devices.Output, log *slog.Logger) (*backends, error) {
	b := &backends{}
	b.devices = append(b.devices, rng.New())
	return b, nil
}

func (b *backends) close() error {
	var errs []error
	for i := len(b.closers) - 1; i >= 0; i-- {
		errs = append(errs, b.closers[i].Close())
	}
	return errors.Join(errs...)
}
