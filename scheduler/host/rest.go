package host

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A pool's thread sleeps outside of Go's runtime. Of a plain system call the runtime
// would expect an end soon, and look up to fifty times whether there is one: that was
// 0.9 % of the CPU with a sleep in each quantum, in some runs.
//
// To come back to the runtime costs more than what the thread itself does in a look that
// finds nothing to do, since two others are woken. So while a pool has CPUs for all,
// nine of ten looks are glances from outside: of a guest that had its CPU for itself
// they took 0.03 % instead of 0.07 to 0.16.

// glance is what can be seen from outside of a vCPU that did not want to run.
type glance struct {
	vcpu  *VCPU // not touched outside
	clock int32 // its thread's
	used  int64 // of it, in ns, at the last look
}

// maxGlances bounds how often in a row a pool is only glanced at.
const maxGlances = 10

// glimpse notes who is to be glanced at while the pool rests, and says how often that
// will do, the last time excepted.
func (p *pool) glimpse() int {
	if p.quiet < maxQuiet || p.s.limits > 0 {
		return 0
	}
	for _, v := range p.loose {
		switch {
		case v.tid == 0 || len(p.glances) == sleepers:
			p.glances = p.glances[:0]
			return 0
		case !v.awake:
			p.glances = append(p.glances, glance{v, threadClock(v.tid), v.clock})
		}
	}
	return maxGlances - 1
}

// recall has what was seen by glances count as looks: who uses a little time and again
// has not used much since the last one.
func (p *pool) recall() {
	for i := range p.glances {
		g := &p.glances[i]
		// It may be another pool's by now, which has looked at it since.
		g.vcpu.glanced = max(g.vcpu.glanced, g.used)
	}
	p.glances = p.glances[:0]
}

// rest returns when this process has had so much more CPU time. As long as glances
// find nothing new it does not, and rests once more, but for the last of them. If all
// guests are idle it does not return at all.
//
// It must not allocate, nor do what the garbage collector or the race detector take
// part in: meanwhile it has no processor of Go's. For an atomic the race detector
// needs one, so the flag is read as it is; nothing else is read because of it.
//
//go:norace
//go:nosplit
func (p *pool) rest(use time.Duration, glances int) {
	t := unix.Timespec{Sec: int64(use) / 1e9, Nsec: int64(use) % 1e9}
	var at unix.Timespec
	little := int64(p.s.cfg.Quantum) / littleUse
	entersyscallblock()
	for quiet := true; quiet; glances-- {
		_, _, errno := syscall.RawSyscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_PROCESS_CPUTIME_ID, 0, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
		quiet = glances > 0 && errno == 0 && p.stirred == 0
		for i := range p.glances {
			if !quiet {
				break
			}
			g := &p.glances[i]
			_, _, errno := syscall.RawSyscall(unix.SYS_CLOCK_GETTIME, uintptr(g.clock), uintptr(unsafe.Pointer(&at)), 0)
			used := at.Sec*1e9 + at.Nsec
			quiet = errno == 0 && used-g.used < little
			g.used = used
		}
	}
	exitsyscall()
}

// sleepUntil returns at a monotonic time, or before.
//
//go:norace
//go:nosplit
func sleepUntil(ns int64) {
	t := unix.Timespec{Sec: ns / 1e9, Nsec: ns % 1e9}
	entersyscallblock()
	syscall.RawSyscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	exitsyscall()
}

// The runtime promises to keep them (go.dev/issue/67401).

//go:linkname entersyscallblock runtime.entersyscallblock
func entersyscallblock()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()
