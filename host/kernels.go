package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"disco/vcpu/kvm"
)

// Some KVMs run the guest's kernel mode by an emulator that knows part of the
// instruction set: paravirtual guests run, and an unmodified Linux stops early in
// its boot. KVM does not tell, so a guest of a few instructions finds out.

// steps are what Linux does in kernel mode and such emulators do not: an
// instruction sequence each, run in order in 64-bit mode at CPL 0, with RDI at
// 8 KiB of zeroes, RAX any, and a handler for #BP that returns.
var steps = []struct {
	name string
	code []byte
}{
	{"cmpxchg16b", []byte{
		0x31, 0xc0, // xor %eax, %eax
		0x31, 0xd2, // xor %edx, %edx
		0xf0, 0x48, 0x0f, 0xc7, 0x0f, // lock cmpxchg16b (%rdi)
	}},
	{"int3", []byte{0xcc}},
	{"xsetbv", []byte{
		0x31, 0xc9, // xor %ecx, %ecx
		0x31, 0xd2, // xor %edx, %edx
		0xb8, 3, 0, 0, 0, // mov $3, %eax
		0x0f, 0x01, 0xd1, // xsetbv
	}},
	{"xsave", []byte{
		0xb8, 3, 0, 0, 0, // mov $3, %eax
		0x0f, 0xae, 0x27, // xsave (%rdi)
	}},
	{"xrstor", []byte{
		0xb8, 3, 0, 0, 0, // mov $3, %eax
		0x0f, 0xae, 0x2f, // xrstor (%rdi)
	}},
}

// The probe guest's memory.
const (
	probePML4    = 0x1000
	probePDPT    = 0x2000
	probePD      = 0x3000
	probeGDT     = 0x4000
	probeIDT     = 0x5000
	probeHandler = 0x6000
	probeCode    = 0x7000
	probeStack   = 0x9000 // grows down
	probeData    = 0xa000
	probeSize    = 0x10000

	probePort     = 0x10 // takes the number of the step that begins
	realModeArea  = 0xfffbc000
	codeSelector  = 0x08
	stackSelector = 0x10
)

func probeImage(mem []byte) {
	put := func(addr int, v uint64) { binary.LittleEndian.PutUint64(mem[addr:], v) }
	const present, writable, large = 1, 2, 0x80
	put(probePML4, probePDPT|present|writable)
	put(probePDPT, probePD|present|writable)
	put(probePD, present|writable|large)

	put(probeGDT+codeSelector, 0x00af9b000000ffff)  // 64-bit code, ring 0
	put(probeGDT+stackSelector, 0x00cf93000000ffff) // data, ring 0

	const breakpoint, interruptGate = 3, 0x8e
	gate := probeIDT + 16*breakpoint
	put(gate, probeHandler|codeSelector<<16|interruptGate<<40)
	copy(mem[probeHandler:], []byte{0x48, 0xcf}) // iretq

	code := mem[probeCode:probeCode]
	for i, s := range steps {
		code = append(code, 0xb0, byte(i), 0xe6, probePort) // mov $i, %al; out %al, $probePort
		code = append(code, s.code...)
	}
	code = append(code, 0xb0, byte(len(steps)), 0xe6, probePort)
	_ = append(code, 0xf4) // hlt
}

// kernels runs the probe guest.
func kernels(sys *kvm.System) Finding {
	f := Finding{Name: "unmodified kernels"}
	done, why, err := runProbe(sys)
	switch {
	case err != nil:
		f.Status, f.Found, f.Mend = Missing, "cannot tell: "+err.Error(), "free memory, or raise this user's limits (ulimit -a)"
	case done < len(steps):
		f.Status = Missing
		f.Found = fmt.Sprintf("no: this KVM does not run %s in kernel mode (%s)", steps[done].name, why)
		f.Mend = "use a host with VT-x or AMD-V and its KVM module; until then guests run in the lab, emulated"
	default:
		f.Status, f.Found = OK, "yes"
	}
	return f
}

// runProbe says how many steps the guest got through and, if not all, why it
// stopped; or that it could not be built.
func runProbe(sys *kvm.System) (done int, why string, err error) {
	vm, err := sys.CreateVM()
	if err != nil {
		return 0, "", err
	}
	defer vm.Close()
	mem, err := unix.Mmap(-1, 0, probeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, "", fmt.Errorf("memory of the probe guest: %w", err)
	}
	defer unix.Munmap(mem)
	probeImage(mem)
	if err := vm.SetRealModeArea(realModeArea); err != nil {
		return 0, "", err
	}
	if err := vm.SetMemory(0, 0, mem); err != nil {
		return 0, "", err
	}

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		return 0, "", err
	}
	defer cpu.Close()
	if err := probeRegisters(sys, cpu); err != nil {
		return 0, "", err
	}
	return followProbe(cpu)
}

func followProbe(cpu *kvm.VCPU) (done int, why string, err error) {
	// Each step leaves KVM once, and a signal now and then does too; a KVM that
	// comes back without end is no use either.
	const patience = 1000
	for range patience {
		if err := cpu.Run(); errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		} else if err != nil {
			return done, "KVM_RUN: " + err.Error(), nil
		}
		exit := cpu.Exit()
		if exit != kvm.ExitIO {
			return done, exit.String(), nil
		}
		io := cpu.IO()
		if !io.Out || io.Port != probePort || len(io.Data) != 1 {
			return done, fmt.Sprintf("access to port %#x", io.Port), nil
		}
		if done = int(io.Data[0]); done >= len(steps) {
			return len(steps), "", nil
		}
	}
	return done, "no progress", nil
}

// probeRegisters puts the vCPU in 64-bit mode at CPL 0, at the code.
func probeRegisters(sys *kvm.System, cpu *kvm.VCPU) error {
	cpuid, err := sys.SupportedCPUID()
	if err != nil {
		return err
	}
	if err := cpu.SetCPUID(cpuid); err != nil {
		return err
	}
	sregs, err := cpu.Sregs()
	if err != nil {
		return err
	}
	const (
		cr0 = 1<<31 | 1<<5 | 1<<4 | 1<<1 | 1<<0 // PG NE ET MP PE
		cr4 = 1<<18 | 1<<10 | 1<<9 | 1<<5       // OSXSAVE OSXMMEXCPT OSFXSR PAE
		lma = 1<<10 | 1<<8                      // LMA LME
	)
	sregs.CR0, sregs.CR3, sregs.CR4, sregs.EFER = cr0, probePML4, cr4, lma
	code := kvm.Segment{Limit: 0xffffffff, Selector: codeSelector, Typ: 11, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: stackSelector, Typ: 3, Present: 1, S: 1, DB: 1, G: 1}
	sregs.CS, sregs.SS, sregs.DS, sregs.ES, sregs.FS, sregs.GS = code, data, data, data, data, data
	sregs.GDT = kvm.Descriptor{Base: probeGDT, Limit: 0x17}
	sregs.IDT = kvm.Descriptor{Base: probeIDT, Limit: 0x1ff}
	if err := cpu.SetSregs(sregs); err != nil {
		return err
	}
	return cpu.SetRegs(&kvm.Regs{RIP: probeCode, RSP: probeStack, RDI: probeData, RFLAGS: 2})
}
