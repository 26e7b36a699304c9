// Package host finds out what this machine can do for guests: KVM and what its
// kind of it can run, memory and NUMA features, rights. It asks by trying: a
// capability that a kernel announces but does not have is found missing.
//
// Each probe is a [Finding], which says what was found and how to mend it.
// Probes change nothing, leave nothing behind and take milliseconds.
//
// Not done here: mending anything, the lab's needs (package lab), and booting a
// whole guest (package vmm).
package host

import (
	"io/fs"
	"os"

	"disco/vcpu/kvm"
)

// Status is how a probe came out.
type Status string

const (
	// OK is present and right.
	OK Status = "ok"
	// Warn is absent or slow, and guests run without it.
	Warn Status = "warn"
	// Missing is absent, and guests do not run here without it.
	Missing Status = "missing"
)

// Finding is what one probe says: a line of what it found, and how to mend that.
type Finding struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Found  string `json:"found"`
	Mend   string `json:"mend,omitempty"` // a line for each way; empty if Status is OK
}

// Host is where to look. Use [Here], except in tests.
type Host struct {
	Root fs.FS  // the file system, for /sys and /proc; paths have no leading slash
	KVM  string // path of the KVM device
	Tun  string // path of the tun device
}

// Here is this machine.
func Here() Host {
	return Host{Root: os.DirFS("/"), KVM: "/dev/kvm", Tun: "/dev/net/tun"}
}

// Guests says whether guests can run on this host's KVM: the findings of KVM,
// its capabilities and unmodified kernels, of which the later ones are left out
// where an earlier one is Missing. It is what --host auto asks.
func (h Host) Guests() []Finding {
	sys, f := h.kvm()
	if sys == nil {
		return []Finding{f}
	}
	defer sys.Close()
	return []Finding{f, capabilities(sys), kernels(sys)}
}

// Check runs every probe.
func (h Host) Check() []Finding {
	return append(h.Guests(),
		h.paging(),
		movingPages(),
		h.numa(),
		h.hugePages(),
		h.mapCount(),
		h.tap(),
	)
}

// FirstMissing is the first finding that keeps guests from running, or nil.
func FirstMissing(fs []Finding) *Finding {
	for i := range fs {
		if fs[i].Status == Missing {
			return &fs[i]
		}
	}
	return nil
}

func (h Host) kvm() (*kvm.System, Finding) {
	f := Finding{Name: "KVM"}
	sys, err := kvm.Open(h.KVM)
	if err != nil {
		f.Status, f.Found, f.Mend = Missing, h.KVM+": "+cause(err), kvmMend(err)
		return nil, f
	}
	f.Status, f.Found = OK, h.KVM+", API version 12"
	return sys, f
}
