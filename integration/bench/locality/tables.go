package locality

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"disco/numa"
)

// Tables is the memory of second-level page tables on each node that came with
// one guest.
type Tables struct {
	Policy Policy      `json:"policy"`
	Thin   bool        `json:"thin,omitempty"`
	Nodes  []numa.Node `json:"nodes"`
	Grown  []int64     `json:"grown_kib"` // by node; nil if the kernel does not say
}

// secPageTables reads the KiB of second-level page tables of each node. Kernels
// before 6.1 have no such line, and fake nodes no such file: ok is false.
func secPageTables(nodes []numa.Node) (kib []int64, ok bool) {
	for _, n := range nodes {
		b, err := os.ReadFile(fmt.Sprintf("/sys/devices/system/node/node%d/meminfo", n))
		if err != nil {
			return nil, false
		}
		v, found := secondLevel(string(b))
		if !found {
			return nil, false
		}
		kib = append(kib, v)
	}
	return kib, true
}

// secondLevel finds "Node N SecPageTables: V kB".
func secondLevel(meminfo string) (kib int64, ok bool) {
	for line := range strings.Lines(meminfo) {
		words := strings.Fields(line)
		if len(words) == 5 && words[2] == "SecPageTables:" {
			v, err := strconv.ParseInt(words[3], 10, 64)
			return v, err == nil
		}
	}
	return 0, false
}

// printTables is one line for each guest on several nodes.
func (r *Results) printTables(w io.Writer) {
	for _, t := range r.Tables {
		if t.Thin || t.Grown == nil {
			continue
		}
		var s []string
		for i, n := range t.Nodes {
			s = append(s, fmt.Sprintf("node %d %d KiB", n, t.Grown[i]))
		}
		fmt.Fprintf(w, "second-level page tables, %s: %s\n", t.Policy, strings.Join(s, ", "))
	}
}
