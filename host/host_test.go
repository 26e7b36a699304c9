package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"disco/vcpu/kvm"
)

func tree(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

// withNodes is the sysfs of a host with two sockets and a node without CPUs.
var withNodes = map[string]string{
	"sys/devices/system/cpu/online":           "0-3\n",
	"sys/devices/system/node/online":          "0-1,10\n",
	"sys/devices/system/node/node0/cpulist":   "0-1\n",
	"sys/devices/system/node/node0/distance":  "10 21 30\n",
	"sys/devices/system/node/node0/meminfo":   "Node 0 MemTotal:        1572864 kB\nNode 0 MemFree:         1000000 kB\n",
	"sys/devices/system/node/node1/cpulist":   "2-3\n",
	"sys/devices/system/node/node1/distance":  "21 10 30\n",
	"sys/devices/system/node/node1/meminfo":   "Node 1 MemTotal:        1572864 kB\nNode 1 MemFree:         1000000 kB\n",
	"sys/devices/system/node/node10/cpulist":  "\n",
	"sys/devices/system/node/node10/distance": "30 30 10\n",
	"sys/devices/system/node/node10/meminfo":  "Node 10 MemTotal:       4194304 kB\nNode 10 MemFree:        4000000 kB\n",
}

func TestFiles(t *testing.T) {
	tests := []struct {
		name   string
		files  map[string]string
		probe  func(Host) Finding
		status Status
		found  string
		mend   string
	}{
		{"two sockets", withNodes, Host.numa, OK,
			"3 nodes; node 0: CPUs 0-1, 1536 MiB, distances 10 21 30; node 1: CPUs 2-3, 1536 MiB, distances 21 10 30; node 10: CPUs none, 4096 MiB, distances 30 30 10", ""},
		{"one node", map[string]string{
			"sys/devices/system/cpu/online":          "0-7\n",
			"sys/devices/system/node/online":         "0\n",
			"sys/devices/system/node/node0/cpulist":  "0-7\n",
			"sys/devices/system/node/node0/distance": "10\n",
			"sys/devices/system/node/node0/meminfo":  "Node 0 MemTotal: 1048576 kB\nNode 0 MemFree: 1024 kB\n",
		}, Host.numa, OK, "1 node; node 0: CPUs 0-7, 1024 MiB", ""},
		{"kernel without NUMA", map[string]string{
			"sys/devices/system/cpu/online": "0-7\n",
			"proc/meminfo":                  "MemTotal: 1048576 kB\nMemFree: 1024 kB\n",
		}, Host.numa, Warn, "1 node for the whole machine, as its kernel has no NUMA; node 0: CPUs 0-7, 1024 MiB", "CONFIG_NUMA"},
		{"broken node", map[string]string{
			"sys/devices/system/cpu/online":         "0\n",
			"sys/devices/system/node/online":        "0\n",
			"sys/devices/system/node/node0/cpulist": "zero\n",
		}, Host.numa, Warn, `/sys/devices/system/node/node0/cpulist: "zero"`, "mount sysfs"},
		{"no sysfs", nil, Host.numa, Warn, "/sys/devices/system/cpu/online: ", "mount sysfs"},

		{"ept", map[string]string{"sys/module/kvm_intel/parameters/ept": "Y\n"}, Host.paging, OK, "kvm_intel has ept on", ""},
		{"npt", map[string]string{"sys/module/kvm_amd/parameters/npt": "1\n"}, Host.paging, OK, "kvm_amd has npt on", ""},
		{"ept off", map[string]string{"sys/module/kvm_intel/parameters/ept": "N\n"}, Host.paging, Warn, "kvm_intel has ept off", "ept=1"},
		{"npt off", map[string]string{"sys/module/kvm_amd/parameters/npt": "0\n"}, Host.paging, Warn, "kvm_amd has npt off", "npt=1"},
		{"another kvm", map[string]string{"sys/module/kvm/parameters/x": "1"}, Host.paging, Warn, "neither kvm_intel nor kvm_amd", "kvm_intel with ept=1 or kvm_amd"},

		{"thp", map[string]string{
			"sys/kernel/mm/transparent_hugepage/shmem_enabled":          "always within_size [advise] never deny force\n",
			"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":     "128\n",
			"sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages":  "0\n",
			"sys/kernel/mm/hugepages/hugepages-nonsense/nr_hugepages":   "5\n",
			"sys/kernel/mm/hugepages/hugepages-64kB/free_hugepages":     "5\n",
			"sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepage": "0\n",
		}, Host.hugePages, OK, "shared memory: advise; pools: 128 of 2048 KiB", ""},
		{"thp never", map[string]string{"sys/kernel/mm/transparent_hugepage/shmem_enabled": "always advise [never]"},
			Host.hugePages, Warn, "shared memory: never; no pools", "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"},
		{"no thp", nil, Host.hugePages, Warn, "no transparent huge pages", "CONFIG_TRANSPARENT_HUGEPAGE"},

		{"map count", map[string]string{"proc/sys/vm/max_map_count": "1048576\n"}, Host.mapCount, OK, "1048576", ""},
		{"map count low", map[string]string{"proc/sys/vm/max_map_count": "65530\n"}, Host.mapCount, Warn, "65530", "sysctl -w vm.max_map_count=1048576"},
		{"map count unread", nil, Host.mapCount, Warn, "cannot be read", "/proc"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.probe(Host{Root: tree(tt.files)})
			if f.Status != tt.status || !strings.Contains(f.Found, tt.found) || !strings.Contains(f.Mend, tt.mend) || (f.Status == OK) != (f.Mend == "") {
				t.Errorf("got %+v", f)
			}
			if strings.Contains(f.Found+f.Mend, "\n") {
				t.Errorf("more than one line: %+v", f)
			}
		})
	}
}

type fakeKVM map[kvm.Capability]int

func (k fakeKVM) CheckExtension(c kvm.Capability) int { return k[c] }

func TestCapabilities(t *testing.T) {
	all := fakeKVM{kvm.CapMaxVCPUs: 288}
	for _, n := range needed {
		all[n.c] = 1
	}
	if f := capabilities(all); f.Status != Warn || !strings.Contains(f.Found, "BINARY_STATS_FD") {
		t.Errorf("without the wished: %+v", f)
	}
	for _, w := range wished {
		all[w.c] = 1
	}
	if f := capabilities(all); f.Status != OK || f.Found != "all 15; up to 288 vCPUs in a guest" {
		t.Errorf("with all: %+v", f)
	}
	delete(all, kvm.CapIRQFD)
	if f := capabilities(all); f.Status != Missing || f.Found != "without IRQFD" {
		t.Errorf("without IRQFD: %+v", f)
	}
}

func TestNoKVM(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "absent"): "modprobe kvm_intel",
		plain:                        "use a kernel with KVM",
	} {
		fs := Host{KVM: path}.Guests()
		if len(fs) != 1 || fs[0].Status != Missing || !strings.Contains(fs[0].Found, path) || !strings.Contains(fs[0].Mend, want) {
			t.Errorf("%s: got %+v", path, fs)
		}
		if FirstMissing(fs) == nil {
			t.Errorf("%s: nothing is missing", path)
		}
	}
}

func TestNoTun(t *testing.T) {
	f := Host{Tun: filepath.Join(t.TempDir(), "tun")}.tap()
	if f.Status != Warn || !strings.Contains(f.Found, "no such file") || !strings.Contains(f.Mend, "modprobe tun") {
		t.Errorf("got %+v", f)
	}
}

func TestHostMovingPages(t *testing.T) {
	if f := movingPages(); f.Status != OK {
		t.Errorf("%+v", f)
	}
}

func TestHostCheckLeavesNothing(t *testing.T) {
	open := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	Here().Check()
	before := open()
	Here().Check()
	if after := open(); after != before {
		t.Errorf("%d open files, %d before", after, before)
	}
}

func TestKVMGuests(t *testing.T) {
	fs := Here().Guests()
	if len(fs) != 3 {
		t.Fatalf("got %+v", fs)
	}
	for _, f := range fs[:2] {
		if f.Status == Missing {
			t.Errorf("%+v", f)
		}
	}
	// Which answer is right depends on the kind of KVM.
	hardware := false
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		if _, err := os.Stat("/sys/module/" + module); err == nil {
			hardware = true
		}
	}
	kernels := fs[2]
	if hardware && kernels.Status != OK {
		t.Errorf("with VT-x or AMD-V: %+v", kernels)
	}
	if !hardware && (kernels.Status != Missing || !strings.Contains(kernels.Found, "in kernel mode")) {
		t.Errorf("without VT-x or AMD-V: %+v", kernels)
	}
}
