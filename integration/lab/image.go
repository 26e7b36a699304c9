package lab

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

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
	{restModules, []string{"kvm_amd", "tun", "bridge"}},
}

// memoryFile returns an empty file that no folder names, so that nothing is left
// behind however this process ends.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// makeInitrd returns the lab's initramfs: the init, and the modules.
func makeInitrd(a artefacts) (*os.File, error) {
	f, err := memoryFile("lab-initrd")
	if err != nil {
		return nil, err
	}
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
	for _, folder := range moduleFolders {
		files, err := initramfs.ResolveModules(a.modules, folder.names...)
		if err != nil {
			return err
		}
		if err := w.Modules(folder.dir, files); err != nil {
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
// itself in emulated code, which takes longer than everything after it; so its ELF is
// unpacked here, once, and kept in the user's cache folder under the bzImage's
// digest. A kernel that QEMU cannot start as an ELF is used as it is.
func openKernel(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lab: kernel: %w", err)
	}
	elf, err := unpackedKernel(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lab: %w", err)
	}
	if elf == nil {
		return f, nil
	}
	f.Close()
	return elf, nil
}

// unpackedKernel returns nil if the kernel in f is to be used as it is.
func unpackedKernel(f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	kernel, err := boot.ParseKernel(f.Name(), f, info.Size())
	if err != nil {
		return nil, err
	}
	if !kernel.Packed() {
		if !bootsByPVH(f) {
			return nil, fmt.Errorf("kernel %s: an ELF that QEMU cannot start: give its bzImage, or one built with CONFIG_PVH", f.Name())
		}
		return nil, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, info.Size())); err != nil {
		return nil, err
	}
	cached := ""
	if dir, err := os.UserCacheDir(); err == nil {
		cached = filepath.Join(dir, "disco", "lab", fmt.Sprintf("vmlinux-%x", h.Sum(nil)[:16]))
		if c, err := os.Open(cached); err == nil {
			return c, nil
		}
	}
	m, err := memoryFile("lab-kernel")
	if err != nil {
		return nil, err
	}
	if err := kernel.Unpack(m); err != nil || !bootsByPVH(m) {
		m.Close()
		return nil, nil
	}
	if cached != "" {
		// The cache saves time and nothing else: without it, all is done again.
		_ = keep(m, cached)
	}
	return m, nil
}

// bootsByPVH says whether an ELF kernel has the note that QEMU starts it by
// (Xen's XEN_ELFNOTE_PHYS32_ENTRY).
func bootsByPVH(r io.ReaderAt) bool {
	const physEntry = 18
	f, err := elf.NewFile(r)
	if err != nil {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return false
		}
		for len(b) >= 12 {
			name, desc, kind := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
			size := 12 + (uint64(name)+3)&^3 + (uint64(desc)+3)&^3
			if uint64(len(b)) < size {
				break
			}
			if kind == physEntry && name == 4 && string(b[12:15]) == "Xen" {
				return true
			}
			b = b[size:]
		}
	}
	return false
}

// keep stores the content of f at path, which appears whole or not at all, and
// drops what was stored beside it.
func keep(f *os.File, path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t, err := os.CreateTemp(dir, "new-")
	if err != nil {
		return err
	}
	defer os.Remove(t.Name())
	_, err = io.Copy(t, io.NewSectionReader(f, 0, info.Size()))
	if cerr := t.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "vmlinux-*"))
	if err != nil {
		return err
	}
	if err := os.Rename(t.Name(), path); err != nil {
		return err
	}
	for _, o := range old {
		if o != path {
			_ = os.Remove(o)
		}
	}
	return nil
}
