package main

import (
	"errors"

	"github.com/spf13/pflag"

	"disco/vmm"
)

// rootImage is the image that a guest has as its first disk and boots from.
type rootImage struct {
	disk    vmm.Disk // Path is empty for none
	persist string   // where changes are kept; empty for nowhere
}

func (r *run) imageFlags(f *pflag.FlagSet) {
	f.Var(parsed("root", "IMAGE", "", &r.root.disk, parseDisk, &r.problems), "root",
		"boot the system in IMAGE, a disk image with its own kernel (--kernel overrides), which becomes the first disk; takes what --disk takes. "+
			"The image is only read: what the guest writes is in memory, and gone at power-off")
	f.StringVar(&r.root.persist, "persist", "", "keep what the guest writes to --root in `FILE`, a qcow2 whose backing file is the image; made if it does not exist")
	f.StringVar(&r.cfg.CloudInit, "cloud-init", "", "give the guest a last disk from which cloud-init takes user-data: from `FILE`, or from a folder with "+
		"user-data and, if there are any, meta-data, network-config and vendor-data")
}

// fillRoot makes the image the first disk, and what is booted if no kernel is named.
func (r *run) fillRoot() {
	d := r.root.disk
	switch {
	case d.Path == "" && r.root.persist != "":
		r.problems = append(r.problems, errors.New("persist "+r.root.persist+": it keeps what the guest writes to --root; give that too"))
		return
	case d.Path == "":
		return
	case r.root.persist != "":
		d.Overlay, d.Persist = vmm.OverlayPersist, r.root.persist
	case !d.ReadOnly:
		d.Overlay = vmm.OverlayMemory
	}
	r.cfg.Disks = append([]vmm.Disk{d}, r.cfg.Disks...)
	r.cfg.FromDisk = r.cfg.Kernel == ""
}

// given are the disks of --disk, once fill has put that of --root before them.
func (r *run) given() []vmm.Disk {
	if r.root.disk.Path == "" {
		return r.cfg.Disks
	}
	return r.cfg.Disks[1:]
}
