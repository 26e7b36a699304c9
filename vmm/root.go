package vmm

import (
	"errors"
	"fmt"
	"io"

	"disco/disk"
	"disco/disk/rootfs"
	"disco/disk/seed"
	"disco/virtio/blk"
	"disco/vmm/boot"
)

// openRoot finds what the guest's first disk boots. It is done for every power
// cycle: the guest may have installed another kernel.
func openRoot(cfg *Config, root blk.Backend) (*image, error) {
	path := cfg.Disks[0].Path
	system, err := rootfs.Find(&sectors{root}, root.Size())
	if err != nil {
		mend := ""
		if errors.Is(err, rootfs.ErrNoSystem) {
			mend = "; give --kernel, --initrd and --cmdline root=… yourself"
		}
		return nil, &ConfigError{[]error{fmt.Errorf("root %s: %w%s", path, err, mend)}}
	}
	i := &image{words: system.Words}
	name := path + ", " + system.Place
	if cfg.KASLR {
		i.kernel, err = boot.ParseKernel(name, system.Kernel, system.Kernel.Size())
	} else {
		i.kernel, i.file, err = boot.OpenUnpackedAt(name, system.Kernel, system.Kernel.Size())
	}
	if err != nil {
		return nil, &ConfigError{[]error{err}}
	}
	if system.Initrd != nil {
		i.initrd, i.initrdSize = system.Initrd, system.Initrd.Size()
	}
	return i, nil
}

// sectors reads any bytes of a disk that is read in sectors. It may be used by many
// goroutines.
type sectors struct{ disk blk.Backend }

// ReadAt implements [io.ReaderAt].
func (s *sectors) ReadAt(p []byte, off int64) (int, error) {
	const mask = blk.SectorSize - 1
	size := s.disk.Size()
	if off < 0 || off >= size {
		return 0, io.EOF
	}
	short := int64(len(p)) > size-off
	p = p[:min(int64(len(p)), size-off)]
	for done := 0; done < len(p); {
		at, rest := off+int64(done), p[done:]
		if at&mask == 0 && len(rest) >= blk.SectorSize {
			whole := rest[:len(rest)&^mask]
			if err := s.disk.ReadV([][]byte{whole}, at); err != nil {
				return done, err
			}
			done += len(whole)
			continue
		}
		var sector [blk.SectorSize]byte
		if err := s.disk.ReadV([][]byte{sector[:]}, at&^mask); err != nil {
			return done, err
		}
		done += copy(rest, sector[at&mask:])
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// openSeed adds the disk that tells cloud-init what to do.
func (b *backends) openSeed(cfg *Config) {
	files, err := seed.Read(cfg.CloudInit, cfg.Name)
	var d *seed.Disk
	if err == nil {
		d, err = seed.New(files)
	}
	if err != nil {
		b.problems = append(b.problems, err)
		return
	}
	b.devices = append(b.devices, blk.New(blk.Config{Backend: d, Queues: 1, ID: "cidata"}))
}

// CacheRoot unpacks the kernel that New would boot from the disk image at path into
// the user's cache, as [CacheKernel] does.
func CacheRoot(d Disk) {
	img, err := disk.Open(d.Path, disk.Options{ReadOnly: true, Format: disk.Format(d.Format), Backing: d.Backing})
	if err != nil {
		return
	}
	defer img.Close()
	if i, err := openRoot(&Config{Disks: []Disk{d}}, img); err == nil {
		i.close()
	}
}
