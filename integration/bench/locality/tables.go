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

// tables is what second-level page tables there are now beyond those of before:
// the last guest's are gone by the time that the next has done its work.
func (b *benchmark) tables(p Policy, thin bool) Tables {
	t := Tables{Policy: p, Thin: thin, Nodes: b.o.Nodes}
	for i, now := range secPageTables(b.o.Nodes) {
		if i < len(b.before) {
			t.Grown = append(t.Grown, now-b.before[i])
		}
	}
	return t
}

// secPageTables reads the KiB of second-level page tables of each node. Kernels
// before 6.1 have no such line, and fake nodes no such file: then it is nil.
func secPageTables(nodes []numa.Node) (kib []int64) {
	for _, n := range nodes {
		b, err := os.ReadFile(fmt.Sprintf("/sys/devices/system/node/node%d/meminfo", n))
		if err != nil {
			return nil
		}
		v, ok := secondLevel(string(b))
		if !ok {
			return nil
		}
		kib = append(kib, v)
	}
	return kib
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
