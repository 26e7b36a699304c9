package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Names of the programs that promises are about.
const (
	discoName   = "disco"
	microvmName = "qemu microvm"
)

const memoryMiB = 256

// program is one monitor with its guest.
type program struct {
	name string
	disk string // the file that it is given, made anew for each run
	argv []string
}

// programs are what is measured, without those that only leaves out.
func programs(o options, dir string, only []string) []program {
	disk := filepath.Join(dir, "disk.img")
	cpus := strconv.Itoa(o.cpus)
	task := fmt.Sprintf("quiet nohz=off disco.task=disk disco.ops=%d disco.threads=%d", o.ops, o.cpus)
	disco := []string{o.disco, "run", "--host", "here", "--net", "none", "--console", "serial", "--kernel", o.kernel, "--initrd", o.initrd,
		"--cpus", cpus, "--memory", strconv.Itoa(memoryMiB) + "M", "--cmdline", task, "--disk", disk}
	qemu := func(machine, device string) []string {
		return []string{o.qemu, "-M", "microvm,accel=kvm" + machine, "-cpu", "host", "-smp", cpus, "-m", strconv.Itoa(memoryMiB),
			"-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
			"-kernel", o.kernel, "-initrd", o.initrd, "-append", "console=ttyS0 reboot=t panic=-1 " + task,
			"-drive", "id=disk,if=none,format=raw,file=" + disk, "-device", device + ",drive=disk"}
	}
	all := []program{
		{discoName, disk, disco},
		{microvmName, disk, qemu("", "virtio-blk-device")},
		{"qemu microvm, PCI", disk, qemu(",pcie=on", "virtio-blk-pci")},
	}
	if len(only) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(p program) bool {
		return !slices.ContainsFunc(only, func(w string) bool { return strings.HasPrefix(p.name, w) })
	})
}
