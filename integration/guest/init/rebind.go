package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// rebind takes every virtio device but the console from its driver, and gives it
// back: the driver resets it and begins anew.
func rebind() error {
	devices, err := filepath.Glob("/sys/bus/virtio/devices/*")
	if err != nil {
		return err
	}
	n := 0
	for _, dev := range devices {
		driver, err := filepath.EvalSymlinks(dev + "/driver")
		if err != nil || filepath.Base(driver) == "virtio_console" {
			continue
		}
		for _, file := range []string{"/unbind", "/bind"} {
			if err := os.WriteFile(driver+file, []byte(filepath.Base(dev)), 0o200); err != nil {
				return fmt.Errorf("%s of %s: %w", filepath.Base(dev), filepath.Base(driver), err)
			}
		}
		n++
	}
	say("rebound=%d", n)
	return nil
}
