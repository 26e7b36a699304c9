package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func seconds(arg string) (time.Duration, error) {
	n, err := strconv.ParseUint(arg, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no number of seconds", arg)
	}
	return time.Duration(n) * time.Second, nil
}

// tryLoad has a thread on each CPU compute, and wake the next one's thread, and
// unmap memory that the others have mapped too, so that all CPUs are busy and
// interrupt each other.
func tryLoad(arg string) error {
	d, err := seconds(arg)
	if err != nil {
		return err
	}
	cpus := runtime.NumCPU()
	before := interrupts(cpus)
	ring, err := newRing(cpus)
	if err != nil {
		return err
	}
	end := time.Now().Add(d)
	hops := make([]int, cpus)
	errs := make([]error, cpus)
	var all sync.WaitGroup
	for cpu := range cpus {
		all.Go(func() {
			// Never unlocked: the thread ends with its affinity.
			runtime.LockOSThread()
			hops[cpu], errs[cpu] = ring.turn(cpu, end)
		})
	}
	all.Wait()
	after := interrupts(cpus)
	sum := 0
	for _, n := range hops {
		sum += n
	}
	say("load-hops=%d rescheduled=%d called=%d flushed=%d", sum, after["RES"].sum()-before["RES"].sum(),
		after["CAL"].sum()-before["CAL"].sum(), after["TLB"].sum()-before["TLB"].sum())
	for cpu := range cpus {
		ticks := after["LOC"][cpu] - before["LOC"][cpu]
		say("load-cpu=%d hops=%d ticks=%d", cpu, hops[cpu], ticks)
		if hops[cpu] == 0 {
			errs = append(errs, fmt.Errorf("cpu %d did nothing", cpu))
		}
		if ticks == 0 {
			errs = append(errs, fmt.Errorf("the timer of cpu %d did not tick", cpu))
		}
	}
	return errors.Join(errs...)
}

// ring is a pipe from each CPU's thread to the next one's.
type ring struct{ in, out []*os.File }

func newRing(n int) (*ring, error) {
	r := &ring{in: make([]*os.File, n), out: make([]*os.File, n)}
	for i := range n {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("pipe: %w", err)
		}
		r.in[(i+1)%n] = os.NewFile(uintptr(fds[0]), "token")
		r.out[i] = os.NewFile(uintptr(fds[1]), "token")
		// Two tokens for each CPU, so that nobody waits for long.
		if _, err := r.out[i].WriteString("12"); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// turn passes tokens on, with some work for each, until the end of the time or of
// the tokens, and says how many.
func (r *ring) turn(cpu int, end time.Time) (hops int, err error) {
	defer r.out[cpu].Close()
	defer r.in[cpu].Close()
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return 0, fmt.Errorf("cpu %d: %w", cpu, err)
	}
	want := series()
	token := make([]byte, 1)
	for time.Now().Before(end) {
		if n, _ := r.in[cpu].Read(token); n == 0 {
			break
		}
		if got := series(); got != want {
			return hops, fmt.Errorf("cpu %d computes %v, and %v before", cpu, got, want)
		}
		if hops%16 == 0 {
			if err := remap(); err != nil {
				return hops, err
			}
		}
		if n, _ := r.out[cpu].Write(token); n == 0 {
			break
		}
		hops++
	}
	return hops, nil
}

// series is floating-point work whose result is always the same.
func series() float64 {
	sum := 0.0
	for i := range 500 {
		sum += math.Sqrt(float64(i)) / float64(i+1)
	}
	return sum
}

// remap takes a page away from every CPU's TLB.
func remap() error {
	p, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	p[0] = 1
	return unix.Munmap(p)
}

// counts are those of one interrupt, by CPU.
type counts []uint64

func (c counts) sum() uint64 {
	sum := uint64(0)
	for _, n := range c {
		sum += n
	}
	return sum
}

// interrupts reads /proc/interrupts; every line there has a count for each CPU.
func interrupts(cpus int) map[string]counts {
	all := map[string]counts{}
	for line := range strings.Lines(readText("/proc/interrupts")) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		c := make(counts, cpus)
		for i := range min(cpus, len(words)-1) {
			c[i], _ = strconv.ParseUint(words[i+1], 10, 64)
		}
		all[strings.TrimSuffix(words[0], ":")] = c
	}
	for _, name := range []string{"RES", "CAL", "TLB", "LOC"} {
		if all[name] == nil {
			all[name] = make(counts, cpus)
		}
	}
	return all
}
