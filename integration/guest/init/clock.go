package main

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tryClock has a thread on CPU 0 exchange timestamps with one on every other CPU
// in turn: a time that is read after another one was seen must not be before it.
func tryClock(arg string) error {
	d, err := seconds(arg)
	if err != nil {
		return err
	}
	cpus := runtime.NumCPU()
	if cpus < 2 {
		return fmt.Errorf("it needs two CPUs")
	}
	exchanges := 0
	for cpu := 1; cpu < cpus; cpu++ {
		n, err := passTime(cpu, d/time.Duration(cpus-1))
		if err != nil {
			return err
		}
		exchanges += n
	}
	say("clock-exchanges=%d", exchanges)
	return nil
}

// passTime passes the time to and fro between CPU 0 and another for d.
func passTime(cpu int, d time.Duration) (n int, err error) {
	var (
		last    atomic.Int64 // what the side that wrote it read
		turn    atomic.Int32
		both    sync.WaitGroup
		base    = time.Now()
		end     = base.Add(d)
		worst   [2]time.Duration
		counted [2]int
		errs    [2]error
	)
	for side, on := range []int{0, cpu} {
		both.Go(func() {
			// Never unlocked: the thread ends with its affinity.
			runtime.LockOSThread()
			var set unix.CPUSet
			set.Set(on)
			if errs[side] = unix.SchedSetaffinity(0, &set); errs[side] != nil {
				turn.Store(-1)
				return
			}
			for {
				t := turn.Load()
				if t < 0 {
					return
				}
				if int(t) != side {
					runtime.Gosched()
					continue
				}
				seen := last.Load()
				now := int64(time.Since(base))
				if back := time.Duration(seen - now); back > worst[side] {
					worst[side] = back
				}
				counted[side]++
				last.Store(now)
				if time.Now().After(end) {
					turn.Store(-1)
					return
				}
				turn.Store(int32(1 - side))
			}
		})
	}
	both.Wait()
	for side := range errs {
		if errs[side] != nil {
			return 0, errs[side]
		}
		if worst[side] > 0 {
			return 0, fmt.Errorf("the clock went back by %v between CPUs 0 and %d", worst[side], cpu)
		}
	}
	return counted[0] + counted[1], nil
}
