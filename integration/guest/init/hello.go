package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hello prints what the guest sees.
func hello() error {
	say("hello from a Linux guest, which sees:")
	say("kernel=%s", readText("/proc/sys/kernel/osrelease"))
	say("cpus=%d online=%s", runtime.NumCPU(), readText("/sys/devices/system/cpu/online"))
	say("memory-kib=%d", memInfo("MemTotal"))
	disks, _ := filepath.Glob("/sys/block/vd*")
	for _, d := range disks {
		sectors, _ := strconv.ParseUint(readText(d+"/size"), 10, 64)
		say("disk=%s bytes=%d readonly=%s", filepath.Base(d), sectors*512, readText(d+"/ro"))
	}
	err := configureNet()
	if cid, err := vsockCID(); err == nil {
		say("vsock-cid=%d", cid)
	}
	return err
}

// memInfo returns a line of /proc/meminfo, in KiB, or zero.
func memInfo(key string) uint64 {
	for line := range strings.Lines(readText("/proc/meminfo")) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseUint(strings.Fields(value)[0], 10, 64)
			return n
		}
	}
	return 0
}

// tryCPUs runs a thread on each CPU in turn.
func tryCPUs() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	defer unix.SchedSetaffinity(0, &before)
	ran := 0
	var errs []error
	for cpu := range len(before) * 64 {
		if !before.IsSet(cpu) {
			continue
		}
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			errs = append(errs, fmt.Errorf("cpu %d: %w", cpu, err))
			continue
		}
		var here uint32
		if _, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&here)), 0, 0); errno != 0 {
			errs = append(errs, fmt.Errorf("getcpu: %w", errno))
			continue
		}
		if int(here) != cpu {
			errs = append(errs, fmt.Errorf("the thread for cpu %d ran on %d", cpu, here))
			continue
		}
		ran++
	}
	say("cpus=%d ran=%d", runtime.NumCPU(), ran)
	return errors.Join(errs...)
}

// tryMemory writes the number of each page into it, and then checks them all.
func tryMemory(arg string) error {
	percent := uint64(50)
	if arg != "" {
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil || n == 0 || n > 95 {
			return fmt.Errorf("memory=%s: want a share of 1 to 95 percent", arg)
		}
		percent = n
	}
	page := os.Getpagesize()
	size := int(memInfo("MemAvailable")<<10*percent/100) &^ (page - 1)
	p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("mmap %d bytes: %w", size, err)
	}
	defer unix.Munmap(p)
	for at := 0; at < size; at += page {
		putNumber(p[at:], uint64(at))
		putNumber(p[at+page-8:], ^uint64(at))
	}
	for at := 0; at < size; at += page {
		if number(p[at:]) != uint64(at) || number(p[at+page-8:]) != ^uint64(at) {
			return fmt.Errorf("the page at offset %d holds %d", at, number(p[at:]))
		}
	}
	say("memory-kib=%d bytes=%d", memInfo("MemTotal"), size)
	return nil
}

// tryRNG reads from the kernel's current hardware random number generator.
func tryRNG() error {
	f, err := os.Open("/dev/hwrng")
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, 64)
	for n := 0; n < len(p); {
		m, err := f.Read(p[n:])
		if err != nil {
			return fmt.Errorf("/dev/hwrng: %w", err)
		}
		n += m
	}
	seen := make(map[byte]bool)
	for _, b := range p {
		seen[b] = true
	}
	say("rng=%s distinct=%d", readText("/sys/class/misc/hw_random/rng_current"), len(seen))
	if len(seen) < 16 {
		return errors.New("/dev/hwrng: 64 bytes with fewer than 16 values among them")
	}
	return nil
}
