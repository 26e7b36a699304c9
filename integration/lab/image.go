package lab

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"disco/integration/initramfs"
	"disco/vmm/boot"
)

// moduleFolders are the modules of each folder, with which go those that they need.
var moduleFolders = []struct {
	dir   string
	names []string
}{
	{portModules, []string{"virtio_pci", "virtio_console"}},
	{rootModules, []string{"9pnet_virtio", "9p", "overlay", "virtio_net"}},
	{restModules, []string{"kvm_amd", "tun", "bridge", "vhost_net"}},
}

// makeInitrd returns the lab's initramfs: the init, and the modules. No folder names
// it, so that nothing is left behind however this process ends.
func makeInitrd(a artefacts) (*os.File, error) {
	const name = "lab-initrd"
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := writeInitrd(f, a); err != nil {
		f.Close()
		return nil, fmt.Errorf("lab: initramfs: %w", err)
	}
	return f, nil
}

func writeInitrd(f io.Writer, a artefacts) error {
	w := initramfs.NewWriter(f)
	for _, dir := range []string{"dev", "proc", "sys"} {
		if err := w.Dir(dir, 0o755); err != nil {
			return err
		}
	}
	// The kernel opens it for the init before devtmpfs is mounted.
	if err := w.Device("dev/console", 0o600, 5, 1); err != nil {
		return err
	}
	tree, err := initramfs.ReadTree(a.modules)
	if err != nil {
		return err
	}
	for _, folder := range moduleFolders {
		modules, err := tree.Resolve(folder.names...)
		if err != nil {
			return err
		}
		if err := w.Modules(folder.dir, modules); err != nil {
			return err
		}
	}
	init, err := os.Open(a.init)
	if err != nil {
		return err
	}
	defer init.Close()
	info, err := init.Stat()
	if err != nil {
		return err
	}
	if err := w.File(initPath, 0o755, init, info.Size()); err != nil {
		return err
	}
	return w.Close()
}

// openKernel returns the kernel in the form that starts soonest. A bzImage unpacks
// itself in emulated code, which takes longer than everything after it; so what QEMU
// gets is the ELF in it. A kernel that QEMU cannot start as an ELF is used as it is.
func openKernel(path string) (*os.File, error) {
	k, f, err := boot.OpenUnpacked(path)
	if err == nil {
		if k.HasPVH() {
			return f, nil
		}
		f.Close()
	}
	k, f, err = boot.OpenKernel(path)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if !k.Packed() {
		f.Close()
		return nil, fmt.Errorf("lab: kernel %s: an ELF that QEMU cannot start: give its bzImage, or one built with CONFIG_PVH", path)
	}
	return f, nil
}
