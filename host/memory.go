package host

import (
	"disco/memory"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// chosen is the bracketed word of a sysfs choice such as "always [madvise] never".
func chosen(s string) string {
	_, s, _ = strings.Cut(s, "[")
	s, _, _ = strings.Cut(s, "]")
	return s
}

func (h Host) read(path string) string {
	b, err := fs.ReadFile(h.Root, path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// hugePages judges by shmem_enabled, which rules a guest's memory; the pools of
// hugetlb are only told.
// movingPages is whether pages can be moved and copied between nodes while a guest
// uses them.
func movingPages() Finding {
	f := Finding{Name: "moving pages", Status: OK, Found: "yes: userfaultfd with minor faults and write-protection, and the right to move pages"}
	if err := memory.Probe(); err != nil {
		f.Status, f.Found = Warn, "no: "+err.Error()
		f.Mend = "see the reason; guests on several nodes keep their pages where they are until then"
	}
	return f
}

func (h Host) hugePages() Finding {
	const thp = "sys/kernel/mm/transparent_hugepage/"
	f := Finding{Name: "huge pages"}
	shmem := chosen(h.read(thp + "shmem_enabled"))
	pools := h.pools()
	switch shmem {
	case "advise", "always", "within_size", "force":
		f.Status, f.Found = OK, fmt.Sprintf("transparent, shared memory: %s; %s", shmem, pools)
	case "":
		f.Status, f.Found = Warn, "this kernel has no transparent huge pages; "+pools
		f.Mend = "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE"
	default:
		f.Status, f.Found = Warn, fmt.Sprintf("transparent, shared memory: %s; %s", shmem, pools)
		f.Mend = "echo advise > /" + thp + "shmem_enabled"
	}
	return f
}

func (h Host) pools() string {
	const dir = "sys/kernel/mm/hugepages"
	entries, _ := fs.ReadDir(h.Root, dir)
	var pools []string
	for _, e := range entries {
		n := h.read(dir + "/" + e.Name() + "/nr_hugepages")
		kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"))
		if err == nil && n != "" && n != "0" {
			pools = append(pools, fmt.Sprintf("%s of %d KiB", n, kib))
		}
	}
	if pools == nil {
		return "no pools"
	}
	return "pools: " + strings.Join(pools, ", ")
}

// comfortable is the number of mappings with room for some 100,000 pages that
// are shared one by one.
const comfortable = 262144

func (h Host) mapCount() Finding {
	f := Finding{Name: "vm.max_map_count"}
	s := h.read("proc/sys/vm/max_map_count")
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case err != nil:
		f.Status, f.Found = Warn, "cannot be read"
		f.Mend = "mount /proc"
	case n < comfortable:
		f.Status, f.Found = Warn, fmt.Sprintf("%d: few pages can be shared before the monitor falls back to copies", n)
		f.Mend = fmt.Sprintf("sysctl -w vm.max_map_count=%d", 4*comfortable)
	default:
		f.Status, f.Found = OK, s
	}
	return f
}
