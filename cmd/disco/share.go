package main

import (
	"errors"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"disco/vmm"
)

// shareModes are the texts of --disk-share.
var shareModes = []string{vmm.ShareAuto: "auto", vmm.ShareAlways: "always", vmm.ShareNever: "never"}

var shareChoices = []cobra.Completion{"auto\twhere it pays", "always\twherever it can be done", "never\tcopy"}

func (r *run) shareFlags(f *pflag.FlagSet) {
	f.Var(parsed("disk-share", "WHEN", shareModes[vmm.ShareAuto], &r.share, parseShare, &r.problems), "disk-share",
		"whether guests in one process that read the same blocks of --root or of a disk with ,ro get the same pages of memory, until they write to them: "+
			"auto, where it pays; always, wherever it can be done; or never. What one guest reads another can then notice by how long it waits, so guests "+
			"that must not learn of each other need never, or a process each")
	f.Var(parsed("cache-size", "SIZE", "a quarter of this host's memory", &r.monitor.CacheSize, parseSize, &r.problems), "cache-size",
		"hold so much of such disks in memory for all guests, such as 1G; what guests have mapped stays, even beyond it")
}

func parseShare(s string) (vmm.ShareMode, error) {
	for mode, text := range shareModes {
		if s == text {
			return vmm.ShareMode(mode), nil
		}
	}
	return 0, errors.New("there are auto, always and never")
}

// fillShare gives all disks the mode.
func (r *run) fillShare() {
	for i := range r.cfg.Disks {
		r.cfg.Disks[i].Share = r.share
	}
}
