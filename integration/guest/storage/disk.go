package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/integration/guest/solo"
)

const (
	scratch = "/dev/vda"
	// still is how long nothing happens before and after what is measured, so that
	// what the host counts between two lines is that and little else.
	still = 200 * time.Millisecond
	// rounds are how often all patterns are measured, each with its part of the
	// operations.
	rounds = 3
)

// pattern is one way to use a disk.
type pattern struct {
	name   string
	size   int // bytes of an operation
	write  bool
	random bool
	share  int // of the operations that are asked for, one in so many is done
}

var patterns = []pattern{
	{"idle", 0, false, false, 0},
	{"random-read", 4 << 10, false, true, 1},
	{"random-write", 4 << 10, true, true, 1},
	{"sequential-read", 1 << 20, false, false, 4},
	{"sequential-write", 1 << 20, true, false, 4},
}

// disk measures each pattern. The host looks at its counters when it reads the
// lines that begin and end one.
func disk(w solo.Words) error {
	ops, err := w.Number("ops", 2000)
	if err != nil {
		return err
	}
	threads, err := w.Number("threads", runtime.NumCPU())
	if err != nil {
		return err
	}
	if err := solo.Await(scratch); err != nil {
		return err
	}
	f, err := os.OpenFile(scratch, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	solo.Say("disk=up bytes=%d threads=%d", size, threads)
	// Everything is there once before anything is measured: no holes on the host.
	if err := fill(int(f.Fd()), size); err != nil {
		return err
	}
	solo.Say("disk=filled")
	// Each pattern more than once: what else the host does comes and goes.
	for k := range rounds * len(patterns) {
		p := patterns[k%len(patterns)]
		time.Sleep(still)
		solo.Say("disk=begin pattern=%s", p.name)
		time.Sleep(still)
		n, took, err := p.run(int(f.Fd()), size, ops/rounds, threads)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		time.Sleep(still)
		solo.Say("disk=end pattern=%s ops=%d bytes=%d nanos=%d", p.name, n, n*p.size, took.Nanoseconds())
	}
	solo.Say("disk=done")
	return nil
}

// fill writes the whole disk.
func fill(fd int, size int64) error {
	b, err := buffer(1 << 20)
	if err != nil {
		return err
	}
	for i := range b {
		b[i] = byte(i * 13)
	}
	for off := int64(0); off+int64(len(b)) <= size; off += int64(len(b)) {
		if _, err := unix.Pwrite(fd, b, off); err != nil {
			return err
		}
	}
	return unix.Fdatasync(fd)
}

// buffer is memory in pages, as O_DIRECT wants it.
func buffer(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
}

// run does the operations, shared out among threads, and says how many there were
// and how long they took. Writes are flushed in the end, within the time.
func (p pattern) run(fd int, size int64, ops, threads int) (done int, took time.Duration, err error) {
	if p.size == 0 {
		time.Sleep(time.Second)
		return 0, time.Second, nil
	}
	each := max(1, ops/p.share/threads)
	var all sync.WaitGroup
	errs := make([]error, threads)
	ready := make(chan struct{})
	for t := range threads {
		all.Go(func() {
			runtime.LockOSThread() // its own, all the time: never unlocked
			b, err := buffer(p.size)
			if err != nil {
				errs[t] = err
				return
			}
			<-ready
			errs[t] = p.thread(fd, b, size, t, threads, each)
		})
	}
	began := time.Now()
	close(ready)
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, 0, err
		}
	}
	if p.write {
		if err := unix.Fdatasync(fd); err != nil {
			return 0, 0, err
		}
	}
	return each * threads, time.Since(began), nil
}

// thread does n operations in the part of the disk that is thread t's.
func (p pattern) thread(fd int, b []byte, size int64, t, threads, n int) error {
	slots := size / int64(len(b)) / int64(threads)
	first := slots * int64(t)
	random := uint64(t)*0x9e3779b97f4a7c15 + 1
	for i := range n {
		slot := int64(i) % slots
		if p.random {
			random ^= random << 13
			random ^= random >> 7
			random ^= random << 17
			slot = int64(random % uint64(slots))
		}
		at := (first + slot) * int64(len(b))
		if err := transfer(fd, b, at, p.write); err != nil {
			return err
		}
	}
	return nil
}

// transfer is one operation. It calls the kernel as nothing that may block, so that
// the runtime neither hands the thread's work to another nor wakes its monitor.
func transfer(fd int, b []byte, at int64, write bool) error {
	call := uintptr(unix.SYS_PREAD64)
	if write {
		call = unix.SYS_PWRITE64
	}
	n, _, e := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(at), 0, 0)
	if e != 0 {
		return e
	}
	if int(n) != len(b) {
		return fmt.Errorf("%d of %d bytes at %d", n, len(b), at)
	}
	return nil
}
