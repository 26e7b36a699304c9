package integration

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"disco/integration/tiny"
	"disco/memory"
	"disco/vcpu"
	"disco/vcpu/kvm"
)

// Ports of the tiny guests (integration/tiny/src/tiny.h).
const (
	com1      = 0x3f8
	comStatus = 0x3fd
	sleepPort = 0x600
	sparePort = 0x510
	spareAddr = 0xdfff0000
)

// Where a rig's guest finds what it enters with.
const (
	rigMemory   = 16 << 20
	rigGDT      = 0x500
	rigZeroPage = 0x7000
	rigTables   = 0x9000 // 6 pages: the low 4 GiB, identity-mapped in 2 MiB pages
	rigCmdline  = 0x20000
	rigIdentity = 0xfffbc000
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
	view, err := space.NewView(false)
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
		r.vm.SetRealModeArea(rigIdentity),
		r.vm.SetMemory(0, 0, view.Bytes()),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	entry := loadRig(t, space, name, cmdline)
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
	err = r.vcpus[0].SetBoot(vcpu.Boot{
		Long: true, CR3: rigTables, RIP: entry, RSI: rigZeroPage,
		GDT: rigGDT, GDTLimit: 0x1f, Code: 0x10, Data: 0x18,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// loadRig puts the guest, its command line, page tables and GDT into memory.
func loadRig(t *testing.T, space *memory.Space, name, cmdline string) (entry uint64) {
	t.Helper()
	put := func(at uint64, p []byte) {
		if err := space.WriteAt(p, memory.GPA(at)); err != nil {
			t.Fatalf("writing %d bytes at %#x: %v", len(p), at, err)
		}
	}
	words := func(at uint64, w ...uint64) {
		p := make([]byte, 0, 8*len(w))
		for _, v := range w {
			p = binary.LittleEndian.AppendUint64(p, v)
		}
		put(at, p)
	}
	image, err := tiny.Image(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		put(p.Paddr, b)
	}
	const present, huge = 3, 0x80
	pdpt := uint64(rigTables + 0x1000)
	words(rigTables, pdpt|present)
	for i := range uint64(4) {
		dir := pdpt + 0x1000*(1+i)
		words(pdpt+8*i, dir|present)
		for j := range uint64(512) {
			words(dir+8*j, i<<30|j<<21|huge|present)
		}
	}
	words(rigGDT, 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff)
	put(rigCmdline, append([]byte(cmdline), 0))
	put(rigZeroPage+0x228, binary.LittleEndian.AppendUint32(nil, rigCmdline))
	return f.Entry
}

// PIO and MMIO make a rig its vCPUs' Handler.
func (r *rig) PIO(port uint16, write bool, p []byte) error {
	switch {
	case port == com1 && write:
		r.mu.Lock()
		r.serial.Write(p)
		r.mu.Unlock()
	case port == sleepPort && write:
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
