package numa

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

const (
	nodesDir   = "sys/devices/system/node"
	cpusOnline = "sys/devices/system/cpu/online"
	allMemory  = "proc/meminfo"

	// More than any kernel can be built for, so that a file of garbage does not
	// ask for gigabytes.
	maxNode = 1<<12 - 1
	maxCPU  = 1<<16 - 1
)

// Read reads the nodes of the machine whose root directory is root: os.DirFS("/")
// for this one. A kernel without NUMA, which shows no nodes, is one node 0 with
// everything. An error names the file; it is also what comes of a node that goes
// offline meanwhile.
func Read(root fs.FS) (*Topology, error) {
	online, err := readList[CPU](root, cpusOnline, maxCPU)
	if err != nil {
		return nil, err
	}
	switch _, err := fs.Stat(root, nodesDir); {
	case errors.Is(err, fs.ErrNotExist):
		return readUniform(root, online)
	case err != nil:
		return nil, fileError(nodesDir, err)
	}
	nodes, err := readList[Node](root, nodesDir+"/online", maxNode)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, fileError(nodesDir+"/online", errors.New("lists no node"))
	}
	places := make([]place, len(nodes))
	owner := map[CPU]Node{}
	for i, n := range nodes {
		dir := nodesDir + "/node" + strconv.Itoa(int(n))
		cpus, err := readList[CPU](root, dir+"/cpulist", maxCPU)
		if err != nil {
			return nil, err
		}
		cpus = slices.DeleteFunc(cpus, func(c CPU) bool {
			_, on := slices.BinarySearch(online, c)
			return !on
		})
		for _, c := range cpus {
			if other, taken := owner[c]; taken {
				return nil, fileError(dir+"/cpulist", fmt.Errorf("CPU %d is node %d's already", c, other))
			}
			owner[c] = n
		}
		distance, err := readDistance(root, dir+"/distance", i, len(nodes))
		if err != nil {
			return nil, err
		}
		meminfo := dir + "/meminfo"
		memory, err := readMemory(root, meminfo)
		if err != nil {
			return nil, err
		}
		places[i] = place{cpus: slices.Clip(cpus), distance: distance, memory: memory, meminfo: meminfo, share: 1, behind: n}
	}
	t := newTopology(nodes, places)
	t.shown = true
	return t, nil
}

func readUniform(root fs.FS, online []CPU) (*Topology, error) {
	memory, err := readMemory(root, allMemory)
	if err != nil {
		return nil, err
	}
	p := place{cpus: online, distance: []int{Local}, memory: memory, meminfo: allMemory, share: 1}
	return newTopology([]Node{0}, []place{p}), nil
}

// ReadMemory is the memory of node n now, from the same root as [Read]. A fake
// node has its share of what its real node has.
func (t *Topology) ReadMemory(root fs.FS, n Node) (Memory, error) {
	p := t.place(n)
	m, err := readMemory(root, p.meminfo)
	return Memory{Total: m.Total / p.share, Free: m.Free / p.share, Available: m.Available / p.share}, err
}

// fileError is err, which came of the file called name, in one line with its
// path from the root.
func fileError(name string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return fmt.Errorf("/%s: %w", name, err)
}

func readList[T ~int](root fs.FS, name string, largest T) ([]T, error) {
	line, err := readLine(root, name)
	if err != nil {
		return nil, err
	}
	list, err := parseList(line, largest)
	if err != nil {
		return nil, fileError(name, err)
	}
	return list, nil
}

// readDistance reads the distances from the node with that index to each of
// count nodes.
func readDistance(root fs.FS, name string, index, count int) ([]int, error) {
	line, err := readLine(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		d := slices.Repeat([]int{Remote}, count)
		d[index] = Local
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	d, err := parseDistance(line)
	if err == nil && len(d) != count {
		err = fmt.Errorf("has %d numbers, want one for each of %d nodes", len(d), count)
	}
	if err != nil {
		return nil, fileError(name, err)
	}
	return d, nil
}

func readMemory(root fs.FS, name string) (Memory, error) {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return Memory{}, fileError(name, err)
	}
	m, err := parseMeminfo(string(b))
	if err != nil {
		return Memory{}, fileError(name, err)
	}
	return m, nil
}

// readLine reads a file of one line. Sysfs always ends it, so one without an end
// was cut short: "0-1" may have been "0-15".
func readLine(root fs.FS, name string) (string, error) {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return "", fileError(name, err)
	}
	line, ended := strings.CutSuffix(string(b), "\n")
	switch {
	case !ended:
		return "", fileError(name, errors.New("is cut short, as it does not end with a newline"))
	case strings.Contains(line, "\n"):
		return "", fileError(name, errors.New("has more than one line"))
	}
	return line, nil
}

// parseList reads what the kernel's %*pbl prints: numbers and ranges, ascending,
// like "0-3,8".
func parseList[T ~int](s string, largest T) ([]T, error) {
	var list []T
	if s == "" {
		return nil, nil
	}
	next := T(0)
	for item := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(item, "-")
		if !isRange {
			high = low
		}
		a, errA := parseNumber(low, int(largest))
		b, errB := parseNumber(high, int(largest))
		if errA != nil || errB != nil || a > b || T(a) < next {
			return nil, fmt.Errorf("%.40q in a list, want a number or a range from %d to %d", item, next, largest)
		}
		for n := T(a); n <= T(b); n++ {
			list = append(list, n)
		}
		next = T(b) + 1
	}
	return list, nil
}

// parseNumber takes digits alone, up to largest.
func parseNumber(s string, largest int) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || int(n) > largest {
		return 0, fmt.Errorf("%.40q is no number up to %d", s, largest)
	}
	return int(n), nil
}

func formatList[T ~int](list []T) string {
	var b strings.Builder
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d", list[i])
		if j > i {
			fmt.Fprintf(&b, "-%d", list[j])
		}
		i = j + 1
	}
	return b.String()
}

// parseDistance reads distances with blanks between them. ACPI 6.5 §5.2.17 gives
// those below Local no meaning.
func parseDistance(s string) ([]int, error) {
	var distances []int
	for field := range strings.FieldsSeq(s) {
		d, err := parseNumber(field, Unreachable)
		if err != nil || d < Local {
			return nil, fmt.Errorf("distance %.40q, want a number from %d to %d", field, Local, Unreachable)
		}
		distances = append(distances, d)
	}
	return distances, nil
}

// parseMeminfo reads a node's meminfo, whose lines begin with its number, as
// well as that of /proc.
func parseMeminfo(s string) (Memory, error) {
	var m Memory
	var active, inactive, slab, dirty uint64 // kernels of old do not tell all
	wanted := map[string]*uint64{"MemTotal:": &m.Total, "MemFree:": &m.Free,
		"Active(file):": &active, "Inactive(file):": &inactive, "SReclaimable:": &slab, "Dirty:": &dirty}
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == "Node" {
			f = f[2:]
		}
		if len(f) == 0 || wanted[f[0]] == nil {
			continue
		}
		if len(f) != 3 || f[2] != "kB" {
			return Memory{}, fmt.Errorf("%s %.40q, want a number and kB", f[0], strings.Join(f[1:], " "))
		}
		kib, err := strconv.ParseUint(f[1], 10, 54)
		if err != nil {
			return Memory{}, fmt.Errorf("%s %.40q is no number of kB", f[0], f[1])
		}
		*wanted[f[0]] = kib << 10
		delete(wanted, f[0])
	}
	for _, name := range []string{"MemTotal", "MemFree"} {
		if wanted[name+":"] != nil {
			return Memory{}, fmt.Errorf("has no %s", name)
		}
	}
	m.Available = m.Free
	for _, n := range []uint64{active - min(active, dirty), inactive, slab} {
		m.Available += min(n/2, m.Total-min(m.Total, m.Available))
	}
	m.Available = min(m.Available, m.Total)
	return m, nil
}
