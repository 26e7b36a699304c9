// Package boot puts a kernel, its initrd, its command line and the machine's
// description into a guest's memory, and says how the boot CPU begins.
//
// It is pure: kernels and initrds come in through an io.ReaderAt, and guest
// memory is an io.WriterAt whose offsets are guest-physical addresses. Files
// are streamed through a few small buffers, never held whole. Only OpenKernel
// and OpenUnpacked, with its cache, know the file system.
//
// Everything in a file is taken for hostile: nothing is written outside RAM or
// over what the loader itself put there, whatever the headers say.
//
// Done: bzImage and ELF x86-64 kernels by Linux's 64-bit boot protocol, ELF
// kernels by PVH, unpacking of the ELF inside a bzImage, e820, and ACPI tables
// for a hardware-reduced PC with PCI. Not done: 16- and 32-bit bzImages, EFI,
// multiboot, device trees, setup_data, NUMA tables (SRAT, SLIT), and anything
// about KVM.
package boot

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Kernel is a kernel image whose headers have been read and checked. It is
// immutable, and may be loaded many times; it reads from the io.ReaderAt that
// it was parsed from whenever it is loaded or unpacked.
type Kernel struct {
	name string
	r    io.ReaderAt
	size int64
	bz   *bzImage  // one of the two
	elf  *elfImage //
}

// ParseKernel reads the headers of the kernel of size bytes in r. The name is
// for messages. The caller keeps r open for as long as the Kernel is used.
//
// It fails, naming what the file is and what would do instead, if that is not
// an x86-64 bzImage or ELF.
func ParseKernel(name string, r io.ReaderAt, size int64) (*Kernel, error) {
	k := &Kernel{name: name, r: r, size: size}
	head := make([]byte, min(size, bzHeaderEnd))
	if size <= 0 {
		return nil, k.errorf("is empty; %s", giveKernel)
	}
	if n, err := r.ReadAt(head, 0); n < len(head) {
		return nil, k.errorf("cannot be read: %w", err)
	}
	var err error
	switch {
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		k.elf, err = parseELF(r, size)
	case isBzImage(head):
		k.bz, err = parseBzImage(head, size)
	default:
		err = fmt.Errorf("is %s; %s", guess(head), giveKernel)
	}
	if err != nil {
		return nil, k.errorf("%w", err)
	}
	return k, nil
}

// giveKernel is the mend for a file that is no kernel of ours.
const giveKernel = "give an x86-64 bzImage or vmlinux"

func (k *Kernel) errorf(format string, args ...any) error {
	return fmt.Errorf("kernel %s: "+format, append([]any{k.name}, args...)...)
}

// Packed says whether the kernel is a bzImage, with an ELF that Unpack gives.
func (k *Kernel) Packed() bool { return k.bz != nil }

// HasPVH says whether the kernel is an ELF with a PVH entry point.
func (k *Kernel) HasPVH() bool {
	return k.elf != nil && k.elf.hasPVH && k.elf.holds(uint64(k.elf.pvh))
}

// Unpack writes the ELF inside a bzImage to w. It fails if the kernel is not a
// bzImage, if its compression is unknown or damaged, or if there is more than
// 512 MiB in it. Memory use is bounded by the format's window, at most 128 MiB.
func (k *Kernel) Unpack(w io.Writer) error {
	if k.bz == nil {
		return k.errorf("is not a bzImage: there is nothing to unpack")
	}
	if k.bz.payloadSize == 0 {
		return k.errorf("has no payload; use --kaslr, which lets the kernel unpack itself")
	}
	err := unpack(w, io.NewSectionReader(k.r, k.bz.start+k.bz.payload, k.bz.payloadSize))
	if err != nil {
		return k.errorf("cannot be unpacked: %w; use --kaslr, which lets the kernel unpack itself", err)
	}
	return nil
}

// guess names what a file that is no kernel seems to be.
func guess(head []byte) string {
	at := func(off int, s string) bool {
		return len(head) >= off+len(s) && string(head[off:off+len(s)]) == s
	}
	switch {
	case at(0x38, "ARM\x64"):
		return "an arm64 kernel Image"
	case at(0x38, "RSC\x05"):
		return "a RISC-V kernel Image"
	case at(0, "\x1f\x8b"):
		return "a gzip file"
	case at(0, "\xfd7zXZ\x00"):
		return "an xz file"
	case at(0, "\x28\xb5\x2f\xfd"):
		return "a zstd file"
	case at(0, "070701"), at(0, "070702"):
		return "a cpio archive (an initrd?)"
	case at(0, "QFI\xfb"):
		return "a qcow2 disk image"
	case at(0, "MZ"):
		return "an EFI program without a Linux boot header"
	}
	return "not a kernel"
}

// machineName is an ELF machine as people write it.
func machineName(m elf.Machine) string {
	return strings.ToLower(strings.TrimPrefix(m.String(), "EM_"))
}

var errNoPVH = errors.New("has no PVH entry point")
