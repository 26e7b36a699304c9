package locality

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// balancingFile switches the host kernel's own migration of pages.
const balancingFile = "/proc/sys/kernel/numa_balancing"

// balancing is the host's numa_balancing, and how it was.
type balancing struct {
	file string
	was  string // empty: this kernel has none
}

func openBalancing() (*balancing, error) { return openBalancingAt(balancingFile) }

func openBalancingAt(file string) (*balancing, error) {
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return &balancing{file: file}, nil
	}
	if err != nil {
		return nil, err
	}
	return &balancing{file, strings.TrimSpace(string(b))}, nil
}

// set switches it for one policy: on for autonuma, off for all others, which are
// not to be helped or hindered by it.
func (b *balancing) set(on bool) error {
	if b.was == "" {
		if on {
			return fmt.Errorf("autonuma: this kernel has no %s; leave the policy out", b.file)
		}
		return nil
	}
	value := "0"
	if on {
		value = "1"
	}
	return b.write(value)
}

func (b *balancing) restore() error {
	if b.was == "" {
		return nil
	}
	return b.write(b.was)
}

func (b *balancing) write(value string) error {
	if err := os.WriteFile(b.file, []byte(value), 0); err != nil {
		return fmt.Errorf("the host's numa_balancing: %w; run this as root", err)
	}
	return nil
}

// hostActs is what the host kernel's numa_balancing did since it was booted, for all
// processes: pages moved, and faults taken to find out who uses them.
func hostActs() Counters {
	text, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return Counters{} // the table then says that it did nothing known
	}
	return parseHostActs(string(text))
}

func parseHostActs(vmstat string) (c Counters) {
	for line := range strings.Lines(vmstat) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "numa_pages_migrated":
			c.Migrated, c.Copied = n, n*pageSize
		case "numa_hint_faults":
			c.Faults, c.Sampling = n, n
		}
	}
	return c
}
