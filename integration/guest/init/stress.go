package main

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// tryStress has stress-ng fill most of memory in all its ways and check it, with a
// process on each CPU, while others make processes and pipes.
func tryStress(arg string) error {
	d, err := seconds(arg)
	if err != nil {
		return err
	}
	const loader, libraries, program = "/stress/lib/ld-linux-x86-64.so.2", "/stress/lib", "/stress/stress-ng"
	cpus := strconv.Itoa(runtime.NumCPU())
	out, err := exec.Command(loader, "--library-path", libraries, program,
		"--vm", cpus, "--vm-bytes", "50%", "--vm-method", "all", "--verify",
		"--fork", "1", "--pipe", "1", "--timeout", strconv.Itoa(int(d/time.Second))+"s", "--temp-path", "/tmp").CombinedOutput()
	text := string(out)
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("this initrd has no stress-ng: make soak-nodes builds one")
	}
	// It has failed if it says so in any line, whatever its exit code.
	var failed []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, "fail:") || strings.Contains(line, "error:") {
			failed = append(failed, strings.TrimSpace(line))
		}
	}
	if err != nil || failed != nil {
		return fmt.Errorf("stress-ng: %v: %s", err, strings.Join(failed, "; "))
	}
	say("stress-seconds=%d", d/time.Second)
	return nil
}
