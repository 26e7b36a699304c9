package sched

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"disco/integration/tiny"
	"disco/memory"
	"disco/vcpu"
	"disco/vcpu/kvm"
	"disco/vmm/boot"
)

const (
	guestMemory = 4 << 20
	realMode    = 0xfffb_c000
	progressAt  = 0x20_0000 // integration/tiny/src/compute.S
)

// guest is one tiny guest that computes.
type guest struct {
	space *memory.Space
	vm    *kvm.VM
	cpu   *vcpu.VCPU

	running bool
	last    float64 // CPU time when it was stopped, in s
}

// newGuest builds the tiny guest compute with a command line, paused.
func newGuest(sys *kvm.System, name, cmdline string) (_ *guest, err error) {
	g := &guest{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("guest %s: %w", name, err), g.close())
		}
	}()
	if g.space, err = memory.New(name, []memory.Range{{Size: guestMemory}}); err != nil {
		return nil, err
	}
	view, err := g.space.NewView()
	if err != nil {
		return nil, err
	}
	if g.vm, err = sys.CreateVM(); err != nil {
		return nil, err
	}
	if err := errors.Join(g.vm.SplitIRQChip(), g.vm.SetRealModeArea(realMode), g.vm.SetMemory(0, 0, view.Bytes())); err != nil {
		return nil, err
	}
	image, err := tiny.Image("compute")
	if err != nil {
		return nil, err
	}
	k, err := boot.ParseKernel("compute", bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return nil, err
	}
	p := boot.Params{Kernel: k, Cmdline: cmdline, RAM: g.space.RAM(), CPUs: 1}
	e, err := p.Load(ram{g.space})
	if err != nil {
		return nil, err
	}
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	c, err := g.vm.CreateVCPU(0)
	if err != nil {
		return nil, err
	}
	g.cpu = vcpu.New(0, c, nobody{})
	if err := g.cpu.WatchHalts(); err != nil {
		return nil, err
	}
	if err := g.cpu.Reset(vcpu.CPUID(supported, 0, 1)); err != nil {
		return nil, err
	}
	return g, g.cpu.SetBoot(vcpu.Boot{
		Long: e.Long, CR3: e.CR3, RIP: e.RIP, RSP: e.RSP, RSI: e.RSI, RBX: e.RBX,
		GDT: e.GDT, GDTLimit: e.GDTLimit, Code: e.Code, Data: e.Data,
	})
}

// start runs the guest, on some of the host's CPUs.
func (g *guest) start(cpus []int) error {
	g.cpu.Start()
	for g.cpu.TID() == 0 {
		time.Sleep(100 * time.Microsecond)
	}
	g.running = true
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	return unix.SchedSetaffinity(g.cpu.TID(), &set)
}

// stop ends the guest and waits for it.
func (g *guest) stop() {
	if g.running {
		g.last = g.used()
		g.running = false
		g.cpu.Stop()
		<-g.cpu.Done()
	}
}

// used is the CPU time that the vCPU's thread has had, in s.
func (g *guest) used() float64 {
	tid := 0
	if g.running {
		tid = g.cpu.TID()
	}
	var t unix.Timespec
	// CLOCK_THREAD_CPUTIME_ID of another thread.
	if tid == 0 || unix.ClockGettime(int32(^tid<<3|6), &t) != nil {
		return g.last
	}
	return float64(t.Nano()) / 1e9
}

// close stops the guest and frees it.
func (g *guest) close() error {
	g.stop()
	var errs []error
	if g.cpu != nil {
		errs = append(errs, g.cpu.Close())
	}
	if g.vm != nil {
		errs = append(errs, g.vm.Close())
	}
	if g.space != nil {
		errs = append(errs, g.space.Close())
	}
	return errors.Join(errs...)
}

// progress is how many chunks of work the guest has done.
func (g *guest) progress() uint64 { return g.word(progressAt) }

func (g *guest) word(at memory.GPA) uint64 {
	var b [8]byte
	if err := g.space.ReadAt(b[:], at); err != nil {
		panic(err) // its own RAM
	}
	return binary.LittleEndian.Uint64(b[:])
}

// nobody answers what the guests ask of devices.
type nobody struct{}

func (nobody) PIO(uint16, bool, []byte) error  { return nil }
func (nobody) MMIO(uint64, bool, []byte) error { return nil }

// ram is guest memory as an io.WriterAt, its offsets being GPAs.
type ram struct{ *memory.Space }

func (r ram) WriteAt(p []byte, off int64) (int, error) {
	if err := r.Space.WriteAt(p, memory.GPA(off)); err != nil {
		return 0, err
	}
	return len(p), nil
}
