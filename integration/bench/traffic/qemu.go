package traffic

import (
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// qemuHost is a QEMU for each guest.
type qemuHost struct {
	o         *Options
	vhost     bool
	bridge    *bridge
	processes []*exec.Cmd
	ended     []chan struct{}
}

func newQEMUHost(o *Options, p Program) (*qemuHost, error) {
	b, err := newBridge(p)
	if err != nil {
		return nil, err
	}
	return &qemuHost{o: o, vhost: p == Vhost, bridge: b}, nil
}

func (h *qemuHost) start(name, words string, server bool) (*running, error) {
	tap, err := h.bridge.tap()
	if err != nil {
		return nil, err
	}
	g := &running{name: name, console: newConsole(), ended: make(chan error, 1)}
	p := exec.Command(h.o.QEMU, h.arguments(tap, len(h.processes), words, server)...)
	p.Stdout, p.Stderr = g.console, g.console
	orders, err := p.StdinPipe()
	if err != nil {
		return nil, err
	}
	g.input = func(line string) { _, _ = io.WriteString(orders, line) } // one that is gone is seen to be
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := p.Start(); err != nil {
		return nil, err
	}
	over := make(chan struct{})
	h.processes, h.ended = append(h.processes, p), append(h.ended, over)
	go func() {
		defer close(over)
		g.ended <- p.Wait()
	}()
	return g, nil
}

// arguments are QEMU's. The devices are on PCI, where they have interrupts of their
// own that vhost-net raises without QEMU.
func (h *qemuHost) arguments(tap string, i int, words string, server bool) []string {
	vhost := "off"
	if h.vhost {
		vhost = "on"
	}
	a := []string{
		"-M", "microvm,accel=kvm,pcie=on", "-cpu", "host", "-smp", "1", "-m", strconv.FormatUint(h.o.Memory>>20, 10),
		"-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", h.o.Kernel, "-initrd", h.o.Initrd, "-append", "console=ttyS0 reboot=t panic=-1 " + words,
		"-netdev", fmt.Sprintf("tap,id=net,ifname=%s,script=no,downscript=no,vhost=%s", tap, vhost),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=net,romfile=,mac=52:54:00:77:00:%02x", i+1),
	}
	if server {
		a = append(a, "-drive", "id=disk,if=none,format=raw,snapshot=on,file="+h.o.Disk, "-device", "virtio-blk-pci,drive=disk")
	}
	return a
}

func (h *qemuHost) carried() (carried, error) {
	if h.vhost {
		return h.bridge.carried(1)
	}
	return h.bridge.carried(2)
}

// lent is nothing. The host's page cache, in which the disk's file is once more, is
// not counted.
func (h *qemuHost) lent() (lent, held uint64) { return 0, 0 }

func (h *qemuHost) close() error {
	for i, p := range h.processes {
		_ = unix.Kill(-p.Process.Pid, unix.SIGKILL) // it may have ended
		<-h.ended[i]
	}
	return h.bridge.close()
}
