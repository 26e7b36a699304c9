package kvm

import (
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Request numbers (linux/kvm.h). Those that gokvm's exported encoders can make
// are made by them; the sizes are those of the kernel's structures.
var (
	reqGetAPIVersion     = gokvm.IIO(0x00)
	reqCreateVM          = gokvm.IIO(0x01)
	reqCheckExtension    = gokvm.IIO(0x03)
	reqGetVCPUMmapSize   = gokvm.IIO(0x04)
	reqGetSupportedCPUID = gokvm.IIOWR(0x05, 8)

	reqGetMSRIndexList = gokvm.IIOWR(0x02, 4)

	reqCreateVCPU      = gokvm.IIO(0x41)
	reqSetMemory       = gokvm.IIOW(0x46, unsafe.Sizeof(gokvm.UserspaceMemoryRegion{}))
	reqSetTSSAddr      = gokvm.IIO(0x47)
	reqSetIdentityAddr = gokvm.IIOW(0x48, 8)
	reqSetGSIRouting   = gokvm.IIOW(0x6a, 8)
	reqIRQFD           = gokvm.IIOW(0x76, unsafe.Sizeof(irqfd{}))
	reqIOEventFD       = gokvm.IIOW(0x79, unsafe.Sizeof(ioeventfd{}))
	reqRun             = gokvm.IIO(0x80)
	reqGetRegs         = gokvm.IIOR(0x81, unsafe.Sizeof(Regs{}))
	reqSetRegs         = gokvm.IIOW(0x82, unsafe.Sizeof(Regs{}))
	reqGetSregs        = gokvm.IIOR(0x83, unsafe.Sizeof(Sregs{}))
	reqSetSregs        = gokvm.IIOW(0x84, unsafe.Sizeof(Sregs{}))
	reqSetMSRs         = gokvm.IIOW(0x89, 8)
	reqSetCPUID2       = gokvm.IIOW(0x90, 8)
	reqEnableCap       = gokvm.IIOW(0xa3, unsafe.Sizeof(enableCap{}))
	reqSignalMSI       = gokvm.IIOW(0xa5, unsafe.Sizeof(Message{}))
	reqSetClock        = gokvm.IIOW(0x7b, unsafe.Sizeof(Clock{}))
	reqGetClock        = gokvm.IIOR(0x7c, unsafe.Sizeof(Clock{}))
	reqGetMSRs         = gokvm.IIOWR(0x88, 8)
	reqGetLAPIC        = gokvm.IIOR(0x8e, unsafe.Sizeof(LAPIC{}))
	reqSetLAPIC        = gokvm.IIOW(0x8f, unsafe.Sizeof(LAPIC{}))
	reqGetMPState      = gokvm.IIOR(0x98, unsafe.Sizeof(gokvm.MPState{}))
	reqSetMPState      = gokvm.IIOW(0x99, unsafe.Sizeof(gokvm.MPState{}))
	reqSetGuestDebug   = gokvm.IIOW(0x9b, unsafe.Sizeof(guestDebug{}))
	reqGetEvents       = gokvm.IIOR(0x9f, unsafe.Sizeof(Events{}))
	reqSetEvents       = gokvm.IIOW(0xa0, unsafe.Sizeof(Events{}))
	reqGetDebugRegs    = gokvm.IIOR(0xa1, unsafe.Sizeof(DebugRegs{}))
	reqSetDebugRegs    = gokvm.IIOW(0xa2, unsafe.Sizeof(DebugRegs{}))
	reqGetXSave        = gokvm.IIOR(0xa4, xsaveSize)
	reqSetXSave        = gokvm.IIOW(0xa5, xsaveSize)
	reqGetXCRS         = gokvm.IIOR(0xa6, unsafe.Sizeof(XCRS{}))
	reqSetXCRS         = gokvm.IIOW(0xa7, unsafe.Sizeof(XCRS{}))
	reqGetXSave2       = gokvm.IIOR(0xcf, xsaveSize)
	reqSetDeviceAttr   = gokvm.IIOW(0xe1, unsafe.Sizeof(deviceAttr{}))
	reqGetDeviceAttr   = gokvm.IIOW(0xe2, unsafe.Sizeof(deviceAttr{}))
	reqGetStatsFD      = gokvm.IIO(0xce)
)

// call is for requests whose argument is a number.
func call(fd int, req, arg uintptr) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return r, errno
	}
	return r, nil
}

// callPtr is for requests whose argument is a structure. p must point into the
// heap or to something that escapes: the kernel writes through it, and the
// conversion in the call itself is what keeps it in place.
func callPtr(fd int, req uintptr, p unsafe.Pointer) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(p))
	if errno != 0 {
		return r, errno
	}
	return r, nil
}
