package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// own is the memory of a process that is not its guest's, in bytes of RSS: what
// is in memory and mapped, shared or not.
type own struct {
	Total     uint64 `json:"total"`
	Anonymous uint64 `json:"anonymous"` // heap, stacks
	File      uint64 `json:"file"`      // the program and its libraries
	Guest     uint64 `json:"guest"`     // left out of Total
}

// mappingLine begins a mapping in smaps: addresses, permissions, offset, device,
// inode and a name, if there is one.
var mappingLine = regexp.MustCompile(`^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)$`)

// ownMemory adds up the mappings of process pid that are not guest memory: those
// whose names contain name, or, if that is empty, that have the guest's size.
func ownMemory(pid int, name string) (*own, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	o, err := addUp(f, name)
	if err != nil {
		return nil, fmt.Errorf("smaps of process %d: %w", pid, err)
	}
	return o, nil
}

func addUp(smaps io.Reader, name string) (*own, error) {
	o := &own{}
	kind := &o.Anonymous
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		if m := mappingLine.FindStringSubmatch(lines.Text()); m != nil {
			from, _ := strconv.ParseUint(m[1], 16, 64) // the pattern has hexadecimal digits only
			to, _ := strconv.ParseUint(m[2], 16, 64)
			switch {
			case name != "" && strings.Contains(m[3], name), name == "" && to-from >= guestMemory:
				kind = &o.Guest
			case strings.HasPrefix(m[3], "/"):
				kind = &o.File
			default:
				kind = &o.Anonymous
			}
			continue
		}
		rest, ok := strings.CutPrefix(lines.Text(), "Rss:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		*kind += kib << 10
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if o.Guest == 0 {
		return nil, errors.New("no guest memory in it")
	}
	o.Total = o.Anonymous + o.File
	return o, nil
}
