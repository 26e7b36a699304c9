package host

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// linux/userfaultfd.h
const (
	uffdioAPI      = 0xc018aa3f
	uffdioRegister = 0xc020aa00
	uffdIoctlNew   = 0xaa00 // on /dev/userfaultfd
	uffdAPI        = 0xaa

	featureMinorShmem = 1 << 10
	featureWPShmem    = 1 << 12
	modeWriteProtect  = 1 << 1
	modeMinor         = 1 << 2
	ioctlWriteProtect = 1 << 6
	ioctlContinue     = 1 << 7
)

type uffdAPIArgs struct{ api, features, ioctls uint64 }

type uffdRegisterArgs struct{ start, len, mode, ioctls uint64 }

func uffdMinor() Finding {
	return uffd("userfaultfd minor", featureMinorShmem, modeMinor, ioctlContinue, "5.14")
}

func uffdWriteProtect() Finding {
	return uffd("userfaultfd write-protect", featureWPShmem, modeWriteProtect, ioctlWriteProtect, "5.19")
}

func uffd(name string, feature, mode, ioctl uint64, since string) Finding {
	f := Finding{Name: name}
	fd, err := openUFFD()
	if err != nil {
		f.Status, f.Found = Warn, "userfaultfd: "+cause(err)
		f.Mend = "run as root, or allow it: sysctl vm.unprivileged_userfaultfd=1"
		return f
	}
	defer unix.Close(fd)
	if err := tryUFFD(fd, feature, mode, ioctl); err != nil {
		f.Status, f.Found, f.Mend = Warn, "no: "+err.Error(), "use a newer kernel: Linux "+since+" has it"
		return f
	}
	f.Status, f.Found = OK, "yes, on shared memory"
	return f
}

// openUFFD opens a userfaultfd that also sees the kernel's own faults, KVM's
// among them.
func openUFFD() (int, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0)
	if errno == 0 {
		return int(fd), nil
	}
	dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, errno
	}
	defer unix.Close(dev)
	fd, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(dev), uffdIoctlNew, flags)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// tryUFFD registers a page of shared memory in the given mode, and looks whether
// the kernel then offers the ioctl that answers its faults.
func tryUFFD(fd int, feature, mode, ioctl uint64) error {
	api := &uffdAPIArgs{api: uffdAPI, features: feature}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uffdioAPI, uintptr(unsafe.Pointer(api))); errno != 0 {
		return fmt.Errorf("the kernel does not know it (%w)", errno)
	}
	page := os.Getpagesize()
	mfd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	defer unix.Close(mfd)
	if err := unix.Ftruncate(mfd, int64(page)); err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	mem, err := unix.Mmap(mfd, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	defer unix.Munmap(mem)
	reg := &uffdRegisterArgs{start: uint64(uintptr(unsafe.Pointer(&mem[0]))), len: uint64(page), mode: mode}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uffdioRegister, uintptr(unsafe.Pointer(reg))); errno != 0 {
		return fmt.Errorf("it does not take shared memory (%w)", errno)
	}
	if reg.ioctls&ioctl == 0 {
		return fmt.Errorf("its faults on shared memory cannot be answered (ioctls %#x)", reg.ioctls)
	}
	return nil
}
