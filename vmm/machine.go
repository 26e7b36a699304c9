package vmm

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"disco/devices"
	"disco/devices/pci"
	"disco/memory"
	"disco/numa/balance"
	"disco/scheduler/host"
	"disco/vcpu"
	"disco/vcpu/kvm"
	"disco/virtio"
	"disco/vmm/boot"
)

const (
	// realModeArea is four pages for KVM on Intel CPUs without unrestricted
	// guest mode, where firmware would be.
	realModeArea = 0xfffb_c000
	// The ports by which software without ACPI resets a PC.
	resetControl    = 0xcf9
	keyboardCommand = 0x64
)

// machine is one power cycle of a guest: a KVM VM for each node that it runs on,
// its memory, its vCPUs and the devices on its buses. A reboot closes it and
// builds another around the same backends, so that nothing of the old one can
// leak into the new.
//
// It is built paused. The first thing that ends it is sent to over, once; the
// vCPUs are told to stop in the same moment, on whatever thread that is, and
// close waits for them.
type machine struct {
	place      *place
	vms        []*kvm.VM // each by a View of its own
	space      *memory.Space
	balance    *balance.Daemon // or nil
	late       bool            // it is started by StartBalance
	set        *vcpu.Set
	vcpus      []*vcpu.VCPU // the set's
	share      *share       // by which they are run, or nil
	members    []*host.VCPU // and they in it
	pio, mmio  devices.Bus
	irq        *interrupts
	ioapic     *devices.IOAPIC
	serial     *devices.Serial
	transports []*virtio.Transport
	menders    []mender
	started    bool
	over       chan ending
	parallel   parallel

	halting chan struct{} // closed when the machine is to end
	halts   sync.Once
	movers  sync.RWMutex // held by moves; close waits for them, and keeps it
}

// ending is what a machine ended with.
type ending struct {
	reset   bool    // the guest restarted; outcome is not set
	outcome Outcome // otherwise
}

// build makes a machine for cfg, with the given devices on its PCI bus, and
// loads the kernel. On error nothing is left behind.
func build(sys *kvm.System, bases *bases, cfg *Config, p *place, k *image, out *devices.Output, functions []virtio.Device, log *slog.Logger) (_ *machine, err error) {
	m := &machine{place: p, late: cfg.NUMA.Late, over: make(chan ending, 1), halting: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	views, err := m.openMemory(cfg, boot.RAM(cfg.Memory), log)
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		if err := m.createVM(sys, v); err != nil {
			return nil, err
		}
	}
	m.irq = newInterrupts(m.vms, func(address uint64) int { return m.set.MSIHome(address) })
	if err := m.plug(cfg, out, functions, log); err != nil {
		return nil, err
	}
	if err := m.createVCPUs(sys, cfg, log); err != nil {
		return nil, err
	}
	if err := m.load(bases, cfg, k, log); err != nil {
		return nil, err
	}
	return m, nil
}

// createVM makes a KVM VM that sees the guest's memory by view.
func (m *machine) createVM(sys *kvm.System, view *memory.View) error {
	vm, err := sys.CreateVM()
	if err != nil {
		return err
	}
	m.vms = append(m.vms, vm)
	if err := vm.SplitIRQChip(); err != nil {
		return err
	}
	if err := vm.SetRealModeArea(realModeArea); err != nil {
		return err
	}
	for i, r := range m.space.RAM() {
		if err := vm.SetMemory(uint32(i), uint64(r.Start), view.Bytes()[r.Start:r.End()]); err != nil {
			return err
		}
	}
	return nil
}

// plug puts the devices on the buses.
func (m *machine) plug(cfg *Config, out *devices.Output, functions []virtio.Device, log *slog.Logger) error {
	m.ioapic = devices.NewIOAPIC(func(addr uint64, data uint32) {
		// What the guest programmed may name no CPU; that is its own affair.
		_, _ = m.set.SignalMSI(addr, data)
	})
	m.serial = devices.NewSerial(out, m.ioapic.Line(boot.COM1GSI))
	host := plug{m.vms, m.irq, &slots{}}
	root := pci.NewRoot(&m.mmio, boot.Window32, boot.Window32Size)
	high := boot.Window64(m.space.RAM())
	root.SetHigh(uint64(high.Start), high.Size)
	exit := devices.DebugExit{Exit: func(code int) {
		m.end(ending{outcome: Outcome{Kind: DebugExit, Code: code, Reason: fmt.Sprintf("the guest exited with code %d", code)}})
	}}
	power := devices.Power{
		Sleep: func(byte) { m.end(ending{outcome: Outcome{Kind: PoweredOff, Code: ExitPoweredOff}}) },
		Reset: m.reset,
	}
	panicked := devices.PanicPort{Report: func(devices.PanicEvents) {
		m.end(ending{outcome: crashed("the guest's kernel panicked")})
	}}
	err := errors.Join(
		m.mmio.Add(boot.IOAPIC, devices.IOAPICSize, m.ioapic),
		m.mmio.Add(boot.ECAM, boot.ECAMSize, root),
		m.pio.Add(boot.COM1, boot.COM1Size, m.serial),
		m.pio.Add(boot.SleepControl, devices.PowerSize, power),
		m.pio.Add(boot.PvpanicPort, 1, panicked),
		m.pio.Add(boot.DebugExit, devices.DebugExitSize, exit),
		m.pio.Add(boot.DebugExit32, devices.DebugExitSize, exit),
		m.pio.Add(resetControl, 1, &devices.ResetControl{Reset: m.reset}),
		m.pio.Add(keyboardCommand, 1, devices.KeyboardReset{Reset: m.reset}),
	)
	if err != nil {
		return err
	}
	for _, d := range functions {
		t, err := virtio.NewTransport(d, m.space, host, log)
		if err != nil {
			return err
		}
		m.transports = append(m.transports, t)
		if d, ok := d.(mender); ok {
			m.menders = append(m.menders, d)
		}
		if r, ok := d.(interface{ OnResize(changed func()) }); ok {
			r.OnResize(t.ConfigChanged)
		}
		if err := root.Add(t); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) createVCPUs(sys *kvm.System, cfg *Config, log *slog.Logger) error {
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return err
	}
	if m.set, err = vcpu.NewSet(m.setOptions(sys, cfg, supported, log)); err != nil {
		return err
	}
	m.vcpus = m.set.VCPUs()
	return m.makeBalance(cfg, log)
}

// load writes kernel, initrd and tables into memory and points the boot
// processor at them.
func (m *machine) load(bases *bases, cfg *Config, k *image, log *slog.Logger) error {
	share, done := bases.shareKernel(m.space, k, m.place, cfg, log)
	entry, err := k.load(m.space, cfg, share)
	if err = errors.Join(err, done()); err != nil {
		return err
	}
	return m.vcpus[0].SetBoot(vcpu.Boot{
		Long: entry.Long, CR3: entry.CR3,
		GDT: entry.GDT, GDTLimit: entry.GDTLimit, Code: entry.Code, Data: entry.Data,
		RIP: entry.RIP, RSP: entry.RSP, RSI: entry.RSI, RBX: entry.RBX,
	})
}

// pressPowerButton is an edge on the line of the ACPI power button; one that
// comes before the guest listens is kept for it.
func (m *machine) pressPowerButton() { m.ioapic.Line(boot.PowerButtonGSI).Pulse() }

// buses is the vcpu.Handler of one machine.
type buses struct{ m *machine }

func (b buses) PIO(port uint16, write bool, p []byte) error {
	if write {
		b.m.pio.Write(uint64(port), p)
	} else {
		b.m.pio.Read(uint64(port), p)
	}
	return nil
}

// MMIO is an access to a device, or one to RAM: KVM gives up on a store to a page
// that it finds read-only and brings it here, with the instruction done
// (KVM api §5, KVM_EXIT_MMIO). No page of ours is ever read-only to it; should one
// be, the store is not lost.
func (b buses) MMIO(addr uint64, write bool, p []byte) error {
	at := memory.GPA(addr)
	switch {
	case write && b.m.space.WriteAt(p, at) == nil:
	case write:
		b.m.mmio.Write(addr, p)
	case b.m.space.ReadAt(p, at) == nil:
	default:
		b.m.mmio.Read(addr, p)
	}
	return nil
}

// start lets the guest run.
func (m *machine) start() {
	m.started = true
	m.set.Start()
	if m.balance != nil && !m.late {
		m.balance.Start()
	}
	for _, v := range m.vcpus {
		go func() {
			<-v.Done()
			if e := v.End(); e.Cause != vcpu.Stopped {
				m.end(ending{outcome: crashed("%s", e.Text)})
			}
		}()
	}
}

// end ends the machine with e, if nothing has ended it before. It may be called
// from any thread, and does not wait.
func (m *machine) end(e ending) {
	select {
	case m.over <- e:
		m.set.Stop()
	default:
	}
}

// reset is a restart asked for by the guest: a panic, if it comes with the flag
// that our command line has a panic set.
func (m *machine) reset() {
	var flag [2]byte
	err := m.space.ReadAt(flag[:], warmFlag)
	if err == nil && uint16(flag[0])|uint16(flag[1])<<8 == warmReset {
		m.end(ending{outcome: crashed("the guest's kernel panicked")})
		return
	}
	m.end(ending{reset: true})
}

// halt stops the vCPUs and waits until none runs.
func (m *machine) halt() {
	m.halts.Do(func() { close(m.halting) })
	if !m.started {
		return
	}
	m.dismissVCPUs()
	m.set.Stop()
	if m.serial != nil {
		m.serial.Close() // frees a vCPU that waits for a slow terminal
	}
	for _, v := range m.vcpus {
		<-v.Done()
	}
}

// close ends what is left of the machine, in the reverse order of building.
func (m *machine) close() error {
	m.halt()
	m.movers.Lock()
	var errs []error
	for _, t := range m.transports {
		errs = append(errs, t.Close())
	}
	if m.serial != nil {
		m.serial.Close()
	}
	if m.set != nil {
		errs = append(errs, m.set.Close())
	}
	for _, vm := range m.vms {
		errs = append(errs, vm.Close())
	}
	if m.balance != nil {
		m.balance.Close()
	}
	if m.space != nil {
		errs = append(errs, m.space.Close())
	}
	return errors.Join(errs...)
}
