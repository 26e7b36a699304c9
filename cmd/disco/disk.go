package main

import (
	"errors"
	"strings"

	"disco/vmm"
)

// parseDisk reads PATH[,ro]. A path may contain commas.
func parseDisk(s string) (vmm.Disk, error) {
	path, ro := strings.CutSuffix(s, ",ro")
	if path == "" {
		return vmm.Disk{}, errors.New("no path; write PATH or PATH,ro")
	}
	return vmm.Disk{Path: path, ReadOnly: ro}, nil
}

// formatDisk is what parseDisk reads.
func formatDisk(d vmm.Disk) string {
	if d.ReadOnly {
		return d.Path + ",ro"
	}
	return d.Path
}
