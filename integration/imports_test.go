package integration

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport is the house plan: which of our own packages each may import,
// directly or not. A package that is not here has no place yet; give it one in
// docs/ARCHITECTURE.md first. Test helpers (…test) and commands stand outside.
var mayImport = map[string][]string{
	"compose":                      {},
	"control":                      {},
	"control/metrics":              {"control"},
	"memory/arena":                 {},
	"memory/uffd":                  {},
	"memory":                       {"memory/arena", "memory/uffd", "numa"},
	"devices":                      {},
	"devices/pci":                  {"devices"},
	"disk/vector":                  {},
	"disk/qcow2":                   {"disk/vector"},
	"disk":                         {"disk/qcow2", "disk/vector"},
	"disk/limit":                   {"disk", "disk/qcow2", "disk/vector", "memory", "memory/arena", "memory/uffd", "numa"},
	"disk/turns":                   {"scheduler/flow", "disk", "disk/qcow2", "disk/vector", "memory", "memory/arena", "memory/uffd", "numa"},
	"disk/cache":                   {"memory", "memory/arena", "memory/uffd", "numa"},
	"disk/overlay":                 {"disk/vector", "memory", "memory/arena", "memory/uffd", "numa"},
	"disk/rootfs":                  {},
	"disk/seed":                    {},
	"folder":                       {},
	"net/frame":                    {"memory", "memory/arena", "memory/uffd", "numa"},
	"numa":                         {},
	"numa/sample":                  {"memory", "memory/arena", "memory/uffd", "numa"},
	"numa/balance":                 {"numa/sample", "memory", "memory/arena", "memory/uffd", "numa"},
	"net/capture":                  {"net/frame", "memory", "memory/arena", "memory/uffd", "numa"},
	"net/lan":                      {"net/segment", "scheduler/flow", "net/user", "net/frame", "memory", "memory/arena", "memory/uffd", "numa"},
	"net/tap":                      {"net/frame", "memory", "memory/arena", "memory/uffd", "numa"},
	"net/segment":                  {"net/frame", "scheduler/flow", "memory", "memory/arena", "memory/uffd", "numa"},
	"net/user":                     {"net/frame", "memory", "memory/arena", "memory/uffd", "numa"},
	"virtio":                       {"memory", "memory/arena", "memory/uffd", "numa", "devices", "devices/pci"},
	"virtio/blk":                   {"virtio", "memory", "memory/arena", "memory/uffd", "numa", "devices", "devices/pci"},
	"virtio/console":               {"virtio", "memory", "memory/arena", "memory/uffd", "numa", "devices", "devices/pci"},
	"virtio/fs":                    {"virtio", "memory", "memory/arena", "memory/uffd", "numa", "devices", "devices/pci"},
	"virtio/net":                   {"virtio", "memory", "memory/arena", "memory/uffd", "numa", "devices", "devices/pci", "net/frame"},
	"virtio/rng":                   {"virtio", "memory", "memory/arena", "memory/uffd", "numa", "devices", "devices/pci"},
	"virtio/vsock":                 {"virtio", "memory", "memory/arena", "memory/uffd", "numa", "devices", "devices/pci"},
	"scheduler":                    {},
	"scheduler/flow":               {},
	"scheduler/host":               {"scheduler"},
	"vcpu/kvm":                     {},
	"vcpu":                         {"vcpu/kvm"},
	"vmm/boot":                     {"memory", "memory/arena", "memory/uffd", "numa"},
	"integration/initramfs":        {"integration/initramfs/insmod"},
	"integration/initramfs/insmod": {},
	"integration/tiny":             {},
	"integration/lab":              {"integration/initramfs", "integration/initramfs/insmod", "vmm/boot", "memory", "memory/arena", "memory/uffd", "numa"},
}

// anyBut are the packages that may import anything except what is listed.
var anyBut = map[string][]string{
	"vmm":       {"host", "integration", "cmd/disco"},
	"host":      {"cmd/disco", "virtio", "disk"},
	"cmd/disco": {},
}

func TestImportsPointDown(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}:{{join .Deps " "}}`, "disco/...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		name, deps, ok := strings.Cut(strings.TrimSpace(line), ":")
		pkg, ours := strings.CutPrefix(name, "disco/")
		if !ok || !ours || pkg == "integration" || strings.HasSuffix(pkg, "test") {
			continue
		}
		var own []string
		for _, d := range strings.Fields(deps) {
			if d, ok := strings.CutPrefix(d, "disco/"); ok {
				own = append(own, d)
			}
		}
		allowed, strict := mayImport[pkg]
		banned, loose := anyBut[pkg]
		for _, d := range own {
			switch {
			case strict && !slices.Contains(allowed, d):
				t.Errorf("%s imports %s, which the house plan does not allow", pkg, d)
			case loose && slices.Contains(banned, d):
				t.Errorf("%s imports %s, which is above it", pkg, d)
			}
		}
		if !strict && !loose && !strings.HasPrefix(pkg, "integration/") {
			t.Errorf("%s has no place in the house plan", pkg)
		}
	}
}
