package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"disco/vmm"
)

// diskForm is what parseDisk reads, for the help text.
const diskForm = "PATH[,OPTION…]"

const diskHelp = "a disk: an image, raw or qcow2, or a block device, written in place. Options: ro, the guest cannot write it; " +
	"format=raw or format=qcow2, not to find out; backing, a qcow2 image may stand on another one in its own folder; " +
	"cache=writeback (default), stable when the guest flushes, cache=writethrough, every write at once, or cache=direct, past the host's page cache; " +
	"iops=N and bps=SIZE, no more requests and bytes a second. Again for the next disk"

var cacheModes = map[string]vmm.CacheMode{
	"writeback": vmm.Writeback, "writethrough": vmm.Writethrough, "direct": vmm.Direct,
}

// diskOption reads an option of a disk into d; ok is false if s is none.
func diskOption(d *vmm.Disk, s string) (ok bool, err error) {
	key, value, _ := strings.Cut(s, "=")
	switch {
	case s == "ro":
		d.ReadOnly = true
	case s == "backing":
		d.Backing = true
	case !strings.Contains(s, "="):
		return false, nil
	case key == "format":
		if d.Format = value; value != "raw" && value != "qcow2" {
			err = fmt.Errorf("format=%s: there are raw and qcow2", value)
		}
	case key == "cache":
		var known bool
		if d.Cache, known = cacheModes[value]; !known {
			err = fmt.Errorf("cache=%s: there are writeback, writethrough and direct", value)
		}
	case key == "iops":
		if d.IOPS, err = strconv.ParseUint(value, 10, 32); err != nil || d.IOPS == 0 {
			err = fmt.Errorf("iops=%s: it is a number of requests a second, 1 or more; leave it out for no limit", value)
		}
	case key == "bps":
		if d.BPS, err = parseSize(value); err != nil || d.BPS == 0 {
			err = fmt.Errorf("bps=%s: it is a size of 1 byte a second or more, such as 20M; leave it out for no limit", value)
		}
	default:
		return false, nil
	}
	return true, err
}

// parseDisk reads PATH and options, each after a comma. A path may contain commas:
// it ends where only options follow.
func parseDisk(s string) (vmm.Disk, error) {
	path, rest := s, []string(nil)
	for {
		at := strings.LastIndexByte(path, ',')
		if at < 0 {
			break
		}
		if ok, _ := diskOption(new(vmm.Disk), path[at+1:]); !ok {
			break
		}
		path, rest = path[:at], append(rest, path[at+1:])
	}
	if path == "" {
		return vmm.Disk{}, errors.New("no path; write PATH or PATH,ro")
	}
	d := vmm.Disk{Path: path}
	given := map[string]bool{}
	for i := len(rest) - 1; i >= 0; i-- {
		key, _, _ := strings.Cut(rest[i], "=")
		if given[key] {
			return vmm.Disk{}, fmt.Errorf("%s is given twice", key)
		}
		given[key] = true
		if _, err := diskOption(&d, rest[i]); err != nil {
			return vmm.Disk{}, err
		}
	}
	return d, nil
}

// formatDisk is what parseDisk reads.
func formatDisk(d vmm.Disk) string {
	s := d.Path
	add := func(given bool, words ...string) {
		if given {
			s += "," + strings.Join(words, "")
		}
	}
	add(d.ReadOnly, "ro")
	add(d.Format != "", "format=", d.Format)
	add(d.Backing, "backing")
	for name, mode := range cacheModes {
		add(mode == d.Cache && mode != vmm.Writeback, "cache=", name)
	}
	add(d.IOPS != 0, "iops=", strconv.FormatUint(d.IOPS, 10))
	add(d.BPS != 0, "bps=", formatSize(d.BPS))
	return s
}
