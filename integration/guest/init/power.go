package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
)

func powerOff() {
	say("end=poweroff")
	leave(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func reboot() error {
	say("end=reboot")
	return leave(unix.LINUX_REBOOT_CMD_RESTART)
}

// leave ends the guest. It returns only if the kernel would not.
func leave(how int) error {
	unix.Sync()
	unix.IoctlSetInt(1, unix.TCSBRK, 1) // until the console has carried every byte
	if err := unix.Reboot(how); err != nil {
		return fmt.Errorf("reboot(2): %w", err)
	}
	return errors.New("reboot(2) returned")
}

// rebootMark is what rebootOnce leaves in sector 0 for the boot that follows.
const rebootMark = "disco guest: rebooted once"

func rebootOnce(arg string) error {
	d, err := openDisk(arg, os.O_RDWR|os.O_SYNC)
	if err != nil {
		return err
	}
	defer d.Close()
	sector := make([]byte, guest.SectorSize)
	if _, err := d.ReadAt(sector, 0); err != nil {
		return err
	}
	again := bytes.HasPrefix(sector, []byte(rebootMark))
	clear(sector)
	if !again {
		copy(sector, rebootMark)
	}
	if _, err := d.WriteAt(sector, 0); err != nil {
		return err
	}
	if !again {
		return reboot()
	}
	say("rebooted=1")
	return nil
}

func kernelPanic() error {
	say("end=panic")
	unix.IoctlSetInt(1, unix.TCSBRK, 1)
	return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}

func spin() error {
	say("spinning=%d", runtime.NumCPU())
	for range runtime.NumCPU() - 1 {
		go count()
	}
	count()
	return nil
}

// count does not end within anybody's patience.
func count() {
	for n := uint64(1); n != 0; n++ {
	}
}

func hang() error {
	say("hanging=1")
	select {}
}
