package vmm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"disco/net/segment"
)

// seater has the calling thread run on the CPUs of a seat, or for nil on all that the
// process may use; nil if it is not known which these are.
func seater() func(*segment.Seat) error {
	var all unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil {
		return nil
	}
	return func(on *segment.Seat) error {
		set := all
		if on != nil {
			set.Zero()
			for _, c := range on.CPUs {
				if all.IsSet(c) {
					set.Set(c)
				}
			}
		}
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("bind a worker's thread: %w", err)
		}
		return nil
	}
}

// sit tells segments where the guest runs, on hosts with several nodes.
func (b *backends) sit(p *place) {
	var seat *segment.Seat
	if p.pin && len(p.nodes) == 1 {
		seat = &segment.Seat{CPUs: cpusOf(p.topology, p.nodes[0])}
	}
	for _, port := range b.ports {
		port.Sit(seat)
	}
}
