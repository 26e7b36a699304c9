package vcpu

import (
	"errors"
	"fmt"
	"time"

	"disco/vcpu/kvm"
)

// ErrBusy is a Move while the guest is just starting a vCPU, this one or another.
var ErrBusy = errors.New("the guest is just starting a vCPU")

const (
	moveTries = 100
	moveRetry = 5 * time.Millisecond
)

// Move makes vCPU id live in VM to: it swaps roles with its relay there. The
// whole guest stands still meanwhile, for about as long as its slowest device
// access takes, and some hundred microseconds. Interrupts that were on their way
// are passed on: none is lost. An error leaves the vCPU where it was, unless it
// says that the vCPU is lost; ErrBusy can be tried again.
//
// It may be called from any goroutine but not from a Handler, before Start too.
func (s *Set) Move(id, to int) error {
	if id < 0 || id >= len(s.o.Homes) {
		return fmt.Errorf("the guest has no vCPU %d", id)
	}
	if to < 0 || to >= len(s.o.VMs) {
		return fmt.Errorf("vCPU %d: the guest has no KVM VM %d", id, to)
	}
	from, err := s.move(id, to)
	for range moveTries {
		if !errors.Is(err, ErrBusy) {
			break
		}
		time.Sleep(moveRetry)
		from, err = s.move(id, to)
	}
	if err != nil {
		return fmt.Errorf("move vCPU %d to KVM VM %d: %w", id, to, err)
	}
	if s.o.Moved != nil && from != to {
		s.o.Moved(id, from, to)
	}
	return nil
}

func (s *Set) move(id, to int) (from int, err error) {
	s.moving.Lock()
	defer s.moving.Unlock()
	if s.vcpus == nil {
		return to, errors.New("the guest is closed")
	}
	v := s.vcpus[id]
	if from = s.Home(id); from == to {
		return from, nil
	}
	if s.started {
		defer s.gate.reopen()
		if err := s.stopWorld(); err != nil {
			return from, err
		}
	}
	a, b := v.bodies[from], v.bodies[to]
	if a.tid.Load() == gone || b.tid.Load() == gone {
		return from, errors.New("the guest has ended")
	}
	switch ready, err := s.ready(a, b); {
	case err != nil:
		return from, err
	case !ready:
		return from, ErrBusy
	}
	if !a.unborn {
		if err := s.swap(v, a, b); err != nil {
			return from, err
		}
	}
	v.live.Store(int32(to))
	return from, nil
}

// ready says whether v may move from a to b: not while any vCPU is between INIT
// and SIPI, which would arrive at different incarnations, nor while one of the
// two has not got as far as the other.
func (s *Set) ready(a, b *incarnation) (bool, error) {
	for _, v := range s.vcpus {
		for _, b := range v.bodies {
			if state, err := b.kvm.MPState(); err != nil || state == kvm.InitReceived {
				return false, err
			}
		}
	}
	if a.unborn != b.unborn {
		return false, nil
	}
	if !a.unborn {
		return true, nil
	}
	for _, b := range []*incarnation{a, b} {
		if state, err := b.kvm.MPState(); err != nil || state != kvm.Uninitialized {
			return false, err
		}
	}
	return true, nil
}

// swap makes b live and a its relay. If it cannot, b is a relay again.
func (s *Set) swap(v *VCPU, a, b *incarnation) error {
	if err := s.transfer.move(a, b); err != nil {
		return errors.Join(err, s.transfer.leave(b), v.relayMode(b))
	}
	if err := errors.Join(s.transfer.leave(a), v.relayMode(a)); err != nil {
		// Two incarnations hold the vCPU's state; neither may go on.
		v.Stop()
		return fmt.Errorf("the vCPU is lost: %w", err)
	}
	return nil
}
