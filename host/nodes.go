package host

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Node is one NUMA node as sysfs shows it.
type Node struct {
	ID       int
	CPUs     string // as a list of ranges, like "0-3,8"; empty if it has none
	Memory   uint64 // bytes
	Distance []int  // to each node, in the order of their numbers; 10 is local
}

const nodesDir = "sys/devices/system/node"

// Nodes reads the NUMA nodes that are online, by ascending number.
func (h Host) Nodes() ([]Node, error) {
	entries, err := fs.ReadDir(h.Root, nodesDir)
	if err != nil {
		return nil, err
	}
	var nodes []Node
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "node")
		id, err := strconv.Atoi(number)
		if !ok || err != nil {
			continue
		}
		n, err := h.node(id)
		if err != nil {
			return nil, fmt.Errorf("NUMA node %d: %w", id, err)
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return a.ID - b.ID })
	return nodes, nil
}

func (h Host) node(id int) (Node, error) {
	n := Node{ID: id}
	dir := path.Join(nodesDir, "node"+strconv.Itoa(id))
	cpus, err := fs.ReadFile(h.Root, path.Join(dir, "cpulist"))
	if err != nil {
		return n, err
	}
	n.CPUs = strings.TrimSpace(string(cpus))
	distance, err := fs.ReadFile(h.Root, path.Join(dir, "distance"))
	if err != nil {
		return n, err
	}
	for _, field := range strings.Fields(string(distance)) {
		d, err := strconv.Atoi(field)
		if err != nil {
			return n, fmt.Errorf("distance: %w", err)
		}
		n.Distance = append(n.Distance, d)
	}
	meminfo, err := fs.ReadFile(h.Root, path.Join(dir, "meminfo"))
	if err != nil {
		return n, err
	}
	for line := range strings.Lines(string(meminfo)) {
		// "Node 0 MemTotal:       24731844 kB"
		f := strings.Fields(line)
		if len(f) == 5 && f[2] == "MemTotal:" {
			kib, err := strconv.ParseUint(f[3], 10, 54)
			if err != nil {
				return n, fmt.Errorf("meminfo: %w", err)
			}
			n.Memory = kib << 10
		}
	}
	return n, nil
}

func (h Host) numa() Finding {
	f := Finding{Name: "NUMA"}
	nodes, err := h.Nodes()
	if err != nil || len(nodes) == 0 {
		f.Status, f.Found = Warn, "no nodes in /sys: this kernel is taken as one node"
		f.Mend = "use a kernel with CONFIG_NUMA if this machine has several sockets"
		return f
	}
	parts := make([]string, len(nodes))
	for i, n := range nodes {
		cpus := n.CPUs
		if cpus == "" {
			cpus = "none"
		}
		parts[i] = fmt.Sprintf("node %d: CPUs %s, %d MiB", n.ID, cpus, n.Memory>>20)
		if len(nodes) > 1 {
			parts[i] += fmt.Sprintf(", distances %s", join(n.Distance))
		}
	}
	count := "1 node"
	if len(nodes) > 1 {
		count = fmt.Sprintf("%d nodes", len(nodes))
	}
	f.Status, f.Found = OK, count+"; "+strings.Join(parts, "; ")
	return f
}

func join(numbers []int) string {
	s := make([]string, len(numbers))
	for i, n := range numbers {
		s[i] = strconv.Itoa(n)
	}
	return strings.Join(s, " ")
}
