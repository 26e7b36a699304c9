package share

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/bench/resident"
)

// qemu has n guests of QEMU work, lets the kernel merge their pages, and looks at
// the memory of all processes.
func (o *Options) qemu(ctx context.Context, _ Mode, n int) (row *Row, err error) {
	merging, err := openKSM()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, merging.restore()) }()
	if err := merging.start(); err != nil {
		return nil, err
	}
	working, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("the guests were not done after %v", o.Timeout))
	defer cancel()
	var consoles []*console
	var processes []*exec.Cmd
	ended := make(chan error, n)
	defer func() {
		for _, p := range processes {
			_ = unix.Kill(-p.Process.Pid, unix.SIGKILL) // it may have ended
		}
		for range processes {
			<-ended
		}
	}()
	for i := range n {
		c := newConsole()
		p := exec.Command(o.QEMU, o.arguments()...)
		p.Stdout, p.Stderr = c, c
		p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
		if err := p.Start(); err != nil {
			return nil, err
		}
		consoles, processes = append(consoles, c), append(processes, p)
		go func() {
			err := p.Wait()
			ended <- lost(i, fmt.Sprintf("is gone (%v)", err), c)
		}()
	}
	if err := await(working, consoles, ended); err != nil {
		ended <- nil // one of those that are waited for has been read
		return nil, err
	}
	row = &Row{}
	if row.Settled, err = o.settle(ctx, merging); err != nil {
		return nil, err
	}
	for i, p := range processes {
		m, err := resident.Rollup(strconv.Itoa(p.Process.Pid))
		if err != nil {
			return nil, err
		}
		row.M += m["Pss"]
		row.Each = append(row.Each, consoles[i].said())
	}
	row.Merged = merging.number("pages_sharing") * pageSize
	return row, nil
}

// arguments are QEMU's. The disk's data are read past the host's page cache where
// that is possible, and the cache is not counted.
func (o *Options) arguments() []string {
	return []string{
		"-M", "microvm,accel=kvm,mem-merge=on", "-cpu", "host", "-smp", strconv.Itoa(o.CPUs), "-m", strconv.FormatUint(o.Memory>>20, 10),
		"-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", o.Kernel, "-initrd", o.Initrd, "-append", "console=ttyS0 reboot=t panic=-1 " + o.words(),
		"-drive", "id=root,if=none,readonly=on,format=raw,file=" + o.Image, "-device", "virtio-blk-device,drive=root",
	}
}

// settle waits until the kernel finds little more to merge; false if that took too
// long.
func (o *Options) settle(ctx context.Context, k *ksm) (bool, error) {
	began := time.Now()
	scans, merged := k.number("full_scans"), k.number("pages_sharing")
	for time.Since(began) < o.Settle {
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(2 * time.Second):
		}
		// A page is merged when a second scan finds it unchanged.
		if k.number("full_scans") < scans+2 {
			continue
		}
		now := k.number("pages_sharing")
		if now <= merged+merged/200 {
			return true, nil
		}
		scans, merged = k.number("full_scans"), now
		o.say("%s merged", mib(merged*pageSize))
	}
	return false, nil
}

// ksm is the kernel's samepage merging: Documentation/admin-guide/mm/ksm.rst.
type ksm struct{ was map[string]string }

const ksmDir = "/sys/kernel/mm/ksm"

// ksmSettings have it scan as fast as a CPU can.
var ksmSettings = []struct{ name, value string }{{"sleep_millisecs", "0"}, {"pages_to_scan", "10000"}, {"run", "1"}}

func openKSM() (*ksm, error) {
	k := &ksm{was: map[string]string{}}
	for _, s := range ksmSettings {
		b, err := os.ReadFile(filepath.Join(ksmDir, s.name))
		if err != nil {
			return nil, fmt.Errorf("KSM: %w", err)
		}
		k.was[s.name] = strings.TrimSpace(string(b))
	}
	return k, nil
}

func (k *ksm) start() error {
	for _, s := range ksmSettings {
		if err := os.WriteFile(filepath.Join(ksmDir, s.name), []byte(s.value), 0); err != nil {
			return fmt.Errorf("KSM: %w", err)
		}
	}
	return nil
}

// restore leaves things as they were; nothing is merged any more.
func (k *ksm) restore() error {
	errs := []error{os.WriteFile(filepath.Join(ksmDir, "run"), []byte("2"), 0)}
	for name, value := range k.was {
		errs = append(errs, os.WriteFile(filepath.Join(ksmDir, name), []byte(value), 0))
	}
	return errors.Join(errs...)
}

// number reads a counter; what cannot be read is 0.
func (k *ksm) number(name string) uint64 {
	b, err := os.ReadFile(filepath.Join(ksmDir, name))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}
