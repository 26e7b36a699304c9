// Package lab is the NUMA machine in a box: a multi-socket AMD host with AMD-V
// and nested paging, played by QEMU in pure emulation, in which a command runs as if it
// had been started there. It needs no rights and no KVM, and any x86-64 Linux.
//
// The lab's kernel is a stock one. Its init is this very program: Run packs the
// running executable into an initramfs in memory, and Init, called first thing by main,
// takes over when it finds itself to be a lab's first process. The lab's root is the
// host's root folder, read-only over 9p, under an overlay in the lab's memory; one
// folder, the current one, is shared read-write. The network is QEMU's user network:
// connections out, and host ports forwarded in.
//
// # Protocol
//
// The two ends speak over one virtio serial port, in frames: kind (1 byte), stream (1
// byte), two zero bytes, length of the payload (4 bytes, little-endian), payload. Numbers
// in payloads are 4 bytes, little-endian; see kind for what each frame carries. The lab
// says hello, the host says start, the lab says started; then bytes of three streams flow
// under credit: a sender has sent at most as many bytes as the receiver has granted, so
// that one slow stream holds up nothing else, and what is granted never exceeds 256 KiB ahead of
// the consumer. The lab says exit when the command has ended and all its output is sent.
//
// # Not done
//
// Files of the host that change during a lab's life, outside the shared folder, may be
// seen old or new. UNIX sockets and FIFOs of the host's programs do not reach into the
// lab. UDP is not forwarded. All nodes are equally distant. Time measured in a lab means
// nothing outside it.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// Run boots a lab, runs o.Command in it, and returns its exit code: 128+n if signal
// n killed it, 127 or 126 if it was not found or could not be run. When Run returns, all
// output has been written, and QEMU and everything else that it made is gone.
//
// The error is a *UsageError, a *HostError (which a lab that got stuck twice is too),
// the cause of ctx, or says how the lab died. A lab that does not get as far as its command is booted
// once more, which o.Stderr is told.
func Run(ctx context.Context, o Options) (exitCode int, err error) {
	memory, err := memoryOfHost()
	if err != nil {
		return 0, &HostError{[]error{err}}
	}
	if problems := o.complete(memory); len(problems) > 0 {
		return 0, &UsageError{problems}
	}
	a, problems := locate(o.Init)
	for _, f := range o.Forwards {
		if err := free(f.Host); err != nil {
			problems = append(problems, err)
		}
	}
	if len(problems) > 0 {
		return 0, &HostError{problems}
	}
	kernel, err := openKernel(a.kernel)
	if err != nil {
		return 0, &HostError{[]error{err}}
	}
	defer kernel.Close()
	initrd, err := makeInitrd(a)
	if err != nil {
		return 0, &HostError{[]error{err}}
	}
	defer initrd.Close()

	return retry(ctx, &o, func() (exitFrame, error) {
		q, err := startQEMU(&o, a.qemu, kernel, initrd)
		if err != nil {
			return exitFrame{}, &HostError{[]error{fmt.Errorf("lab: QEMU: %w", err)}}
		}
		defer q.close()
		return run(ctx, &o, q)
	})
}

// retry runs attempt, and once more if the lab got stuck.
func retry(ctx context.Context, o *Options, attempt func() (exitFrame, error)) (int, error) {
	e, err := attempt()
	var stuck *stuckError
	if errors.As(err, &stuck) && ctx.Err() == nil {
		fmt.Fprintf(o.Stderr, "disco lab: %v\ndisco lab: trying once more (retries: 1)\n", stuck)
		e, err = attempt()
		if err == nil {
			fmt.Fprintln(o.Stderr, "disco lab: it started at the second try (retries: 1)")
		}
	}
	switch {
	case errors.As(err, &stuck):
		return 0, &HostError{[]error{fmt.Errorf("lab: twice %w", stuck)}}
	case err != nil:
		return 0, err
	case e.Error != "" && e.Code == 0:
		return 0, &HostError{[]error{fmt.Errorf("lab: its init failed: %s", e.Error)}}
	case e.Error != "":
		fmt.Fprintf(o.Stderr, "disco lab: %s\n", e.Error)
	}
	return e.Code, nil
}

// free says whether QEMU will be able to listen on a port of the loopback.
func free(port uint16) error {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		var sys *os.SyscallError
		if errors.As(err, &sys) {
			err = sys.Err
		}
		return fmt.Errorf("lab: forward: host port %d: %w: use another", port, err)
	}
	return l.Close()
}
