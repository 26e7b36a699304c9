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

// processes are QEMU's, one for each guest, and the kernel's merging.
type processes struct {
	o       *Options
	merging *ksm
	all     []*process
}

type process struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has been waited for
}

func (o *Options) qemu() (host, error) {
	merging, err := openKSM()
	if err != nil {
		return nil, err
	}
	return &processes{o: o, merging: merging}, nil
}

func (h *processes) start(ended chan<- error) (*console, error) {
	// The CPU is the guest's until it is done.
	if err := h.merging.run(false); err != nil {
		return nil, err
	}
	c := newConsole()
	p := &process{cmd: exec.Command(h.o.QEMU, h.o.arguments()...), gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = c, c
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	h.all = append(h.all, p)
	go func() {
		err := p.cmd.Wait()
		close(p.gone)
		ended <- fmt.Errorf("QEMU ended (%v)", err)
	}()
	return c, nil
}

// end kills a process, which may have ended.
func (p *process) end() {
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	<-p.gone
}

func (h *processes) drop() error {
	h.all[len(h.all)-1].end()
	h.all = h.all[:len(h.all)-1]
	return nil
}

func (h *processes) close() error {
	for _, p := range h.all {
		p.end()
	}
	return h.merging.restore()
}

// look lets the kernel merge, and adds up the memory of all processes.
func (h *processes) look(ctx context.Context) (*Row, error) {
	if err := h.merging.run(true); err != nil {
		return nil, err
	}
	row := &Row{}
	var err error
	if row.Settled, err = h.o.settle(ctx, h.merging); err != nil {
		return nil, err
	}
	for _, p := range h.all {
		m, err := resident.Rollup(strconv.Itoa(p.cmd.Process.Pid))
		if err != nil {
			return nil, err
		}
		row.M += m["Pss"]
	}
	row.Merged = h.merging.number("pages_sharing") * pageSize
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
var ksmSettings = []struct{ name, value string }{{"sleep_millisecs", "0"}, {"pages_to_scan", "10000"}, {"run", "0"}}

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

// run has the kernel go on merging, or not; what is merged stays so.
func (k *ksm) run(on bool) error {
	for _, s := range ksmSettings {
		value := s.value
		if s.name == "run" && on {
			value = "1"
		}
		if err := os.WriteFile(filepath.Join(ksmDir, s.name), []byte(value), 0); err != nil {
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
