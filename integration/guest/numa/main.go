// Command numa is process 1 of the benchmark guest: it connects to the host's vsock
// and runs the workloads that the host asks for (package workload), then powers
// the guest off. What goes wrong it tells the host, and the console if there is no
// host. It links no more than it needs: it starts under emulation of emulation.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/integration/guest/workload"
	"disco/integration/initramfs/insmod"
)

func main() {
	// A collection would visit pages that nobody counts.
	debug.SetGCPercent(-1)
	if err := serve(); err != nil {
		fmt.Println("disco-guest: numa:", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("disco-guest: power off:", err)
	}
	select {}
}

func serve() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	// Linux turns them off for all by itself where there is less than 512 MiB.
	if err := os.WriteFile("/sys/kernel/mm/transparent_hugepage/enabled", []byte("madvise"), 0); err != nil {
		return err
	}
	if err := insmod.LoadAll("/lib/modules"); err != nil {
		return err
	}
	// The other threads of the runtime need room beside those that work.
	runtime.GOMAXPROCS(runtime.NumCPU() + 2)
	host, err := connect()
	if err != nil {
		return err
	}
	defer host.Close()
	m := machine{cpus: runtime.NumCPU()}
	if m.pagemap, err = os.Open("/proc/self/pagemap"); err != nil {
		return err
	}
	defer m.pagemap.Close()
	return workload.Serve(workload.NewConn(host), m, workload.BallastPages)
}

// connect reaches the host, whose device may be a moment behind its driver.
func connect() (*os.File, error) {
	var err error
	for range 50 {
		var fd int
		if fd, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("vsock: %w", err)
		}
		// The kernel's own two seconds may pass before the host has been heard.
		if err = unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD, &unix.Timeval{Sec: 30}); err != nil {
			return nil, fmt.Errorf("vsock: %w", err)
		}
		if err = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: workload.Port}); err == nil {
			return os.NewFile(uintptr(fd), "host"), nil
		}
		unix.Close(fd)
		time.Sleep(100 * time.Millisecond)
	}
	return nil, fmt.Errorf("vsock: port %d of the host: %w", workload.Port, err)
}

// machine is this guest.
type machine struct {
	cpus    int
	pagemap *os.File
}

func (m machine) CPUs() int { return m.cpus }

func (m machine) Pin(cpu int) error {
	var one unix.CPUSet
	one.Set(cpu)
	return unix.SchedSetaffinity(0, &one)
}

// Map gives memory in pages of 4 KiB unless huge ones are asked for, whatever the
// kernel's default is.
func (m machine) Map(pages int, huge bool) ([]uint64, error) {
	size := pages * workload.PageSize
	advice := unix.MADV_NOHUGEPAGE
	room := size
	if huge {
		advice, room = unix.MADV_HUGEPAGE, size+hugePage
	}
	b, err := unix.Mmap(-1, 0, room, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	if huge {
		at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
		b = b[-at&(hugePage-1):][:size]
	}
	if err := unix.Madvise(b, advice); err != nil {
		return nil, fmt.Errorf("madvise: %w", err)
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), size/8), nil
}

const hugePage = 2 << 20

// Bits of a word of /proc/PID/pagemap: Documentation/admin-guide/mm/pagemap.rst.
const (
	pagePresent = 1 << 63
	pageNumber  = 1<<55 - 1
)

func (m machine) Locate(memory []uint64) ([]workload.Frames, error) {
	pages := len(memory) * 8 / workload.PageSize
	first := uintptr(unsafe.Pointer(unsafe.SliceData(memory))) / workload.PageSize
	words := make([]byte, pages*8)
	if _, err := m.pagemap.ReadAt(words, int64(first)*8); err != nil {
		return nil, err
	}
	var all []workload.Frames
	for i := range pages {
		w := binary.LittleEndian.Uint64(words[i*8:])
		ppn := w & pageNumber
		if w&pagePresent == 0 || ppn == 0 {
			return nil, fmt.Errorf("page %d of %d is not there (%#x)", i, pages, w)
		}
		if n := len(all); n > 0 && all[n-1].PPN+uint64(all[n-1].N) == ppn {
			all[n-1].N++
			continue
		}
		all = append(all, workload.Frames{PPN: ppn, N: 1})
	}
	return all, nil
}
