// Command mkinitrd writes the default guest's initramfs: the guest's init, a
// static busybox, and the kernel modules of the devices that the machine has.
// Without a busybox it writes one for a guest that is its init alone.
package main

import (
	"bytes"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"disco/integration/initramfs"
)

// modules are what a guest of this monitor needs beyond what Debian's cloud
// kernel has built in, the console first: it carries what the rest has to say.
var modules = []string{
	"virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng",
	"vmw_vsock_virtio_transport", "button", "evdev",
}

// later are modules that the default guest loads when it needs them.
var later = []string{"virtiofs"}

//go:embed udhcpc.sh
var udhcpc string

func main() {
	out := flag.String("o", "", "initramfs to write")
	init := flag.String("init", "", "static program to run as process 1")
	busybox := flag.String("busybox", "", "static busybox; without one there is no shell, and nothing that one needs")
	drivers := flag.String("drivers", strings.Join(modules, ","), "kernel modules to load, in this order")
	tree := flag.String("modules", "", "modules tree of the kernel (…/lib/modules/VERSION)")
	add := flag.String("add", "", "`NAME=FOLDER`: further files, under NAME")
	flag.Parse()
	if *out == "" || *init == "" || *tree == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := write(*out, *init, *busybox, *tree, *add, strings.Split(*drivers, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "mkinitrd:", err)
		os.Exit(1)
	}
}

// write makes the archive beside its final name and renames it, so that a file of
// that name is always whole.
func write(out, init, busybox, tree, add string, drivers []string) error {
	f, err := os.CreateTemp(filepath.Dir(out), filepath.Base(out)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(fill(initramfs.NewWriter(f), init, busybox, tree, add, drivers), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}

func fill(w *initramfs.Writer, init, busybox, tree, add string, drivers []string) error {
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"} {
		if err := w.Dir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{
		{"dev/console", 5, 1}, {"dev/null", 1, 3}, {"dev/ttyS0", 4, 64},
	} {
		if err := w.Device(d.name, 0o600, d.major, d.minor); err != nil {
			return err
		}
	}
	if err := addProgram(w, "init", init); err != nil {
		return err
	}
	if busybox != "" {
		if err := addShell(w, busybox); err != nil {
			return err
		}
	}
	if name, folder, ok := strings.Cut(add, "="); ok {
		if err := addFolder(w, name, folder); err != nil {
			return err
		}
	}
	found, err := initramfs.ReadTree(tree)
	if err != nil {
		return err
	}
	resolved, err := found.Resolve(drivers...)
	if err != nil {
		return err
	}
	if err := w.Modules("lib/modules", resolved); err != nil {
		return err
	}
	if busybox != "" {
		if resolved, err = found.Resolve(later...); err != nil {
			return err
		}
		if err := w.Modules("lib/later", resolved); err != nil {
			return err
		}
	}
	return w.Close()
}

// addFolder adds the files of a folder, all as programs, under a name.
func addFolder(w *initramfs.Writer, name, folder string) error {
	return filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		within, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return w.Dir(filepath.Join(name, within), 0o755)
		}
		return addProgram(w, filepath.Join(name, within), path)
	})
}

func addProgram(w *initramfs.Writer, name, from string) error {
	p, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return w.File(name, 0o755, bytes.NewReader(p), int64(len(p)))
}

// addShell adds busybox and the files that it and a person expect.
func addShell(w *initramfs.Writer, busybox string) error {
	if err := addProgram(w, "bin/busybox", busybox); err != nil {
		return err
	}
	for _, f := range []struct{ name, text string }{
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"},
		{"etc/group", "root:x:0:\n"},
		{"etc/hostname", "disco\n"},
		{"etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"},
	} {
		if err := w.File(f.name, 0o644, strings.NewReader(f.text), int64(len(f.text))); err != nil {
			return err
		}
	}
	if err := w.File("etc/udhcpc", 0o755, strings.NewReader(udhcpc), int64(len(udhcpc))); err != nil {
		return err
	}
	return w.Symlink("busybox", "bin/sh")
}
