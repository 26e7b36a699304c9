package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"disco/integration/initramfs/insmod"
)

// mountFolder mounts a shared folder.
func mountFolder(arg string) error {
	tag, options, _ := strings.Cut(arg, "/")
	if err := insmod.LoadAll("/lib/later"); err != nil {
		return err
	}
	at := filepath.Join("/mnt", tag)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	var flags uintptr
	var data []string
	for o := range strings.SplitSeq(options, "/") {
		switch o {
		case "":
		case "ro":
			flags |= unix.MS_RDONLY
		default:
			data = append(data, o)
		}
	}
	if err := unix.Mount(tag, at, "virtiofs", flags, strings.Join(data, ",")); err != nil {
		return fmt.Errorf("mount %s: %w", tag, err)
	}
	return nil
}

// runScript runs a script, whose lines come to the console.
func runScript(file string) error {
	c := exec.Command("/bin/busybox", "sh", file)
	c.Stdin, c.Stdout, c.Stderr = nil, os.Stdout, os.Stdout
	c.Env = []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "SHELL=/bin/sh"}
	err := c.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%s: %w", file, err)
	}
	return err
}
