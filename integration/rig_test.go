package integration

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"disco/integration/tiny"
	"disco/memory"
	"disco/vcpu"
	"disco/vcpu/kvm"
	"disco/vmm/boot"
)

// Where the tiny guests knock when not told otherwise (integration/tiny/src/tiny.h).
const (
	sparePort = 0x510
	spareAddr = 0xdfff0000
)

const (
	rigMemory   = 16 << 20    // bytes
	rigRealMode = 0xfffb_c000 // away from memory and devices
)

// patience bounds every wait of these tests. What they wait for takes
// milliseconds; a test that runs into it has failed.
const patience = 20 * time.Second

// rig is the least machine that runs a tiny guest: memory and vCPUs, and for
// devices the test itself. It shows what package vcpu and the kernel do with
// nothing above them.
type rig struct {
	t     *testing.T
	vm    *kvm.VM
	vcpus []*vcpu.VCPU

	// pio and mmio take what is not the serial port or the power register. They
	// are set before start and called on vCPU threads.
	pio  func(port uint16, write bool, p []byte)
	mmio func(addr uint64, write bool, p []byte)

	mu     sync.Mutex
	serial bytes.Buffer
	off    chan struct{} // closed when the guest powered off
}

// newRig builds a machine with the tiny guest name loaded, paused; the test's
// cleanup takes it down.
func newRig(t *testing.T, cpus int, name, cmdline string) *rig {
	t.Helper()
	r := &rig{t: t, off: make(chan struct{})}
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		t.Fatal(err)
	}
	space, err := memory.New("rig", []memory.Range{{Size: rigMemory}})
	if err != nil {
		t.Fatal(err)
	}
	view, err := space.NewView()
	if err != nil {
		t.Fatal(err)
	}
	if r.vm, err = sys.CreateVM(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var errs []error
		for _, v := range r.vcpus {
			errs = append(errs, v.Close())
		}
		errs = append(errs, r.vm.Close(), space.Close(), sys.Close())
		if err := errors.Join(errs...); err != nil {
			t.Errorf("taking the machine down: %v", err)
		}
	})
	for _, err := range []error{
		r.vm.SplitIRQChip(),
		r.vm.SetRealModeArea(rigRealMode),
		r.vm.SetMemory(0, 0, view.Bytes()),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	entry := loadRig(t, space, cpus, name, cmdline)
	supported, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	for id := range cpus {
		c, err := r.vm.CreateVCPU(id)
		if err != nil {
			t.Fatal(err)
		}
		v := vcpu.New(id, c, r)
		r.vcpus = append(r.vcpus, v)
		if err := v.Reset(vcpu.CPUID(supported, id, cpus)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.vcpus[0].SetBoot(entry); err != nil {
		t.Fatal(err)
	}
	return r
}

// loadRig loads the guest as the monitor loads a kernel.
func loadRig(t *testing.T, space *memory.Space, cpus int, name, cmdline string) vcpu.Boot {
	t.Helper()
	image, err := tiny.Image(name)
	if err != nil {
		t.Fatal(err)
	}
	k, err := boot.ParseKernel(name, bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	p := boot.Params{Kernel: k, Cmdline: cmdline, RAM: space.RAM(), CPUs: cpus}
	e, err := p.Load(ram{space})
	if err != nil {
		t.Fatal(err)
	}
	return vcpu.Boot{
		Long: e.Long, CR3: e.CR3, RIP: e.RIP, RSP: e.RSP, RSI: e.RSI, RBX: e.RBX,
		GDT: e.GDT, GDTLimit: e.GDTLimit, Code: e.Code, Data: e.Data,
	}
}

// ram is guest memory as an io.WriterAt, its offsets being GPAs.
type ram struct{ *memory.Space }

func (r ram) WriteAt(p []byte, off int64) (int, error) {
	if err := r.Space.WriteAt(p, memory.GPA(off)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// PIO and MMIO make a rig its vCPUs' Handler.
func (r *rig) PIO(port uint16, write bool, p []byte) error {
	switch {
	case port == boot.COM1 && write:
		r.mu.Lock()
		r.serial.Write(p)
		r.mu.Unlock()
	case port == boot.SleepControl && write:
		select {
		case <-r.off:
		default:
			close(r.off)
		}
		for _, v := range r.vcpus {
			v.Stop()
		}
	case r.pio != nil:
		r.pio(port, write, p)
	}
	return nil
}

func (r *rig) MMIO(addr uint64, write bool, p []byte) error {
	if r.mmio != nil {
		r.mmio(addr, write, p)
	}
	return nil
}

func (r *rig) start() {
	for _, v := range r.vcpus {
		v.Start()
	}
}

// wait returns when every vCPU has ended, and how the first one did.
func (r *rig) wait() vcpu.End {
	r.t.Helper()
	give := time.After(patience)
	for _, v := range r.vcpus {
		select {
		case <-v.Done():
		case <-give:
			for _, v := range r.vcpus {
				v.Stop()
			}
			<-v.Done()
			r.t.Errorf("vCPU %d still ran after %v; console: %q", v.ID(), patience, r.console())
		}
	}
	return r.vcpus[0].End()
}

// powerOff runs the guest and fails the test unless it powers off.
func (r *rig) powerOff() {
	r.t.Helper()
	r.start()
	e := r.wait()
	select {
	case <-r.off:
	default:
		r.t.Fatalf("ended with %v (%s) instead of powering off; console: %q", e.Cause, e.Text, r.console())
	}
}

func (r *rig) console() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.serial.String()
}

// expect fails the test unless the guest's console is exactly want.
func (r *rig) expect(want string) {
	r.t.Helper()
	if got := r.console(); got != want {
		r.t.Errorf("console %q, want %q", got, want)
	}
}
