package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Names of the programs that promises are about.
const (
	discoSerial  = "disco"
	discoDefault = "disco, virtio console, --net user"
	qemuMicrovm  = "qemu microvm"
	qemuTuned    = "qemu microvm, tuned"
)

// program is one way to boot the guest.
type program struct {
	name string
	argv []string
	env  []string
	// report is where disco leaves its own counts.
	report string
	// memory is part of the name of the mapping of guest memory, or empty for any
	// mapping of the guest's size.
	memory string
}

// programs are what is measured, without those that only leaves out.
func programs(a artefacts, dir string, only []string) []program {
	mib := strconv.Itoa(guestMemory >> 20)
	report := filepath.Join(dir, "report.json")
	// The kernel that disco unpacks is kept where the other files are.
	env := append(os.Environ(), "XDG_CACHE_HOME="+filepath.Join(dir, "cache"))
	disco := func(name string, more ...string) program {
		return program{
			name: name, env: env, report: report, memory: "memfd:disco-",
			argv: append([]string{a.disco, "run", "--host", "here", "--kernel", a.kernel, "--initrd", a.initrd,
				"--cpus", "1", "--memory", mib + "M", "--report", report}, more...),
		}
	}
	microvm := func(name, options string) program {
		return program{name: name, argv: []string{a.qemu,
			"-M", "microvm,accel=kvm" + options, "-cpu", "host",
			"-smp", "1", "-m", mib, "-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
			"-kernel", a.kernel, "-initrd", a.initrd, "-append", cmdline}}
	}
	all := []program{
		disco(discoSerial, "--net", "none", "--console", "serial", "--cmdline-only", "--cmdline", cmdline),
		microvm(qemuMicrovm, ""),
		{name: "gokvm", argv: []string{a.gokvm, "boot", "-k", a.kernel, "-i", a.initrd, "-m", mib + "M", "-c", "1", "-p", cmdline + gokvmWords}},
		disco(discoDefault, "--cmdline", "quiet disco.task=poweroff"),
		microvm(qemuTuned, tuning),
	}
	if len(only) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(p program) bool {
		return !slices.ContainsFunc(only, func(w string) bool { return strings.HasPrefix(p.name, w) })
	})
}

// tuning leaves out what the guest would only probe and calibrate by, and puts
// in the RTC, which this machine lacks by default: Linux polls a missing one some
// 20,000 times, which is most of the time and of the exits of such a boot.
const tuning = ",x-option-roms=off,pit=off,pic=off,rtc=on"

// gokvmWords are what gokvm's guest needs besides, of the words that gokvm gives
// a guest by itself; those that make it print are left out. It has neither ACPI
// nor an I/O APIC that the guest is told of. Without tsc_early_khz, about every
// other guest waits for a timer's tick in calibrate_delay that never comes.
const gokvmWords = " noapic noacpi notsc lapic tsc_early_khz=2000 nowatchdog pci=realloc=off virtio_pci.force_legacy=1"

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if e := out.Close(); err == nil {
		err = e
	}
	return err
}
