package main

import (
	"fmt"
	"os"
)

// slack is how much later a thread's timers may end, in nanoseconds: more than a
// tick of the kernel's.
const slack = 10_000_000

// slacken has the timers of this program's threads end with the kernel's ticks.
// Go's runtime looks after threads that are in system calls every 20 µs, with a
// timer each time: in the lab two thirds of all exits were these while messages went
// to and fro.
func slacken() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		if err := os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", fmt.Append(nil, slack), 0); err != nil {
			return err
		}
	}
	return nil
}
