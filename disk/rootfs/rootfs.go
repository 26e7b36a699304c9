// Package rootfs finds what a disk image boots: the partition with a kernel, the
// kernel and the initrd that its boot loader would take, and how the kernel is told
// where its root is.
//
// It is pure over an [io.ReaderAt], so it works on raw images, on what a qcow2
// holds and on a disk with a guest's changes. Everything in an image is taken for
// hostile: sizes and loops are bounded, and what is damaged is an error.
//
// Done: GPT, MBR (primary partitions) or no table; ext2, ext3 and ext4; the links
// /vmlinuz and /initrd.img of Debian and Ubuntu, entries of the Boot Loader
// Specification, and else the newest of what lies in /boot.
//
// Not done: LVM, RAID, encryption, other filesystems (a root on one is found if an
// entry of the specification names it), journals that were not replayed, GRUB's
// configuration and what a person chose in its menu.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// System is what an image boots.
type System struct {
	Kernel *File
	Initrd *File  // nil for none
	Words  string // for the kernel command line: the root, and to mount it read-only at first
	Place  string // where the kernel is, for people
}

// ErrNoSystem is wrapped by Find's error for an image in which no kernel was found.
var ErrNoSystem = errors.New("no kernel found in it")

// Find looks for the system of the image of size bytes in r. The files that it
// returns read from r.
func Find(r io.ReaderAt, size int64) (*System, error) {
	parts, err := partitions(r, size)
	if err != nil {
		return nil, err
	}
	var looked []string
	for i := range parts {
		p := &parts[i]
		section := io.NewSectionReader(r, p.offset, p.size)
		v, err := openVolume(section, p.size)
		switch {
		case errors.Is(err, errNotExt4):
			looked = append(looked, fmt.Sprintf("%s is %s", p.name, guess(section)))
		case err != nil:
			looked = append(looked, fmt.Sprintf("%s: %v", p.name, err))
		default:
			p.volume = v
		}
	}
	for _, p := range parts {
		if p.volume == nil {
			continue
		}
		s, err := p.volume.system()
		if err != nil {
			looked = append(looked, fmt.Sprintf("%s: %v", p.name, err))
			continue
		}
		if s == nil {
			looked = append(looked, p.name+" is ext4 without a kernel in /boot or /")
			continue
		}
		root := rootOf(parts, p)
		switch {
		case root != "":
			s.Words = "root=" + root + " ro"
		case s.Words == "":
			return nil, fmt.Errorf("%s has the kernel %s, but no partition is an ext4 root filesystem; "+
				"give --kernel, --initrd and --cmdline root=… yourself", p.name, s.Kernel.path)
		}
		s.Place = p.name + ", " + s.Kernel.path
		return s, nil
	}
	if len(looked) == 0 {
		looked = append(looked, "its partition table is empty")
	}
	return nil, fmt.Errorf("%w: %s", ErrNoSystem, strings.Join(looked, "; "))
}

// rootOf is how the kernel finds the root filesystem: the kernel's own partition if
// that is one, or else the first that is; empty if none is.
func rootOf(parts []partition, own partition) string {
	if own.volume.isRoot() {
		return own.root
	}
	for _, p := range parts {
		if p.volume != nil && p.volume.isRoot() {
			return p.root
		}
	}
	return ""
}

// isRoot says whether the filesystem looks like the root of a Linux.
func (v *volume) isRoot() bool {
	for _, dir := range []string{"/etc", "/usr"} {
		if n, err := v.walk(dir); err != nil || !n.is(modeDir) {
			return false
		}
	}
	return true
}

// guess names what a partition without ext4 seems to hold.
func guess(r io.ReaderAt) string {
	for _, k := range []struct {
		at    int64
		magic string
		name  string
	}{
		{0, "XFSB", "XFS, which is not read here"},
		{0x10040, "_BHRfS_M", "Btrfs, which is not read here"},
		{0, "hsqs", "SquashFS, which is not read here"},
		{0, "LUKS\xba\xbe", "encrypted (LUKS)"},
		{512, "LABELONE", "of LVM, which is not read here"},
		{4086, "SWAPSPACE2", "swap space"},
		{0x36, "FAT", "FAT"},
		{0x52, "FAT32", "FAT"},
		{0x8001, "CD001", "ISO 9660"},
	} {
		b := make([]byte, len(k.magic))
		if _, err := r.ReadAt(b, k.at); err == nil && string(b) == k.magic {
			return k.name
		}
	}
	return "no filesystem that is known here"
}
