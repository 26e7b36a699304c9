package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"disco/integration/guest"
)

// chunk is how much of a disk is read or written at once.
const chunk = 256 << 10

func number(p []byte) uint64       { return binary.LittleEndian.Uint64(p) }
func putNumber(p []byte, n uint64) { binary.LittleEndian.PutUint64(p, n) }

func diskName(arg string) string {
	if arg == "" {
		return "vda"
	}
	return arg
}

// disk is an open disk of size bytes.
type disk struct {
	*os.File
	size int64
}

func openDisk(arg string, flags int) (*disk, error) {
	f, err := os.OpenFile("/dev/"+diskName(arg), flags, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &disk{f, size}, nil
}

// check compares the whole disk, read anew from the device, with a pattern.
func (d *disk) check(seed uint32) error {
	if err := unix.IoctlSetInt(int(d.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("%s: BLKFLSBUF: %w", d.Name(), err)
	}
	got, want := make([]byte, chunk), make([]byte, chunk)
	for at := int64(0); at < d.size; at += chunk {
		n := min(chunk, d.size-at)
		if _, err := d.ReadAt(got[:n], at); err != nil {
			return err
		}
		guest.Pattern(want[:n], seed, uint64(at/guest.SectorSize))
		if i := mismatch(got[:n], want[:n]); i >= 0 {
			return fmt.Errorf("%s: byte %d is not of the pattern", d.Name(), at+int64(i))
		}
	}
	return nil
}

// mismatch returns where two equally long slices first differ, or -1.
func mismatch(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func readDisk(arg string) error {
	d, err := openDisk(arg, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.check(guest.PatternHost); err != nil {
		return err
	}
	say("dev=%s bytes=%d read=ok", diskName(arg), d.size)
	return nil
}

func tryDisk(arg string) error {
	if err := readDisk(arg); err != nil {
		return err
	}
	d, err := openDisk(arg, os.O_RDWR)
	if err != nil {
		return err
	}
	defer d.Close()
	p := make([]byte, chunk)
	for at := int64(0); at < d.size; at += chunk {
		n := min(chunk, d.size-at)
		guest.Pattern(p[:n], guest.PatternGuest, uint64(at/guest.SectorSize))
		if _, err := d.WriteAt(p[:n], at); err != nil {
			return err
		}
	}
	if err := d.Sync(); err != nil {
		return err
	}
	if err := d.check(guest.PatternGuest); err != nil {
		return err
	}
	say("dev=%s bytes=%d written=ok", diskName(arg), d.size)
	return nil
}

func tryReadOnly(arg string) error {
	if err := readDisk(arg); err != nil {
		return err
	}
	d, err := openDisk(arg, os.O_RDWR|unix.O_DIRECT|unix.O_SYNC)
	if err == nil {
		defer d.Close()
		p, merr := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if merr != nil {
			return merr
		}
		defer unix.Munmap(p)
		if _, err = d.WriteAt(p, 0); err == nil {
			return errors.New("a read-only disk was written")
		}
	}
	say("dev=%s refused=%v", diskName(arg), errors.Unwrap(err))
	return nil
}

// zeroDisk tries the two commands that carry no data (virtio 1.2 §5.2.6).
func zeroDisk(arg string) error {
	d, err := openDisk(arg, os.O_RDWR)
	if err != nil {
		return err
	}
	defer d.Close()
	half := uint64(d.size/2) &^ (guest.SectorSize - 1)
	if err := d.rangeIoctl(unix.BLKZEROOUT, 0, half); err != nil {
		return fmt.Errorf("%s: BLKZEROOUT: %w", d.Name(), err)
	}
	if err := d.rangeIoctl(unix.BLKDISCARD, half, uint64(d.size)-half); err != nil {
		return fmt.Errorf("%s: BLKDISCARD: %w", d.Name(), err)
	}
	p := make([]byte, chunk)
	for at := int64(0); at < int64(half); at += chunk {
		n := min(chunk, int64(half)-at)
		if _, err := d.ReadAt(p[:n], at); err != nil {
			return err
		}
		for i, b := range p[:n] {
			if b != 0 {
				return fmt.Errorf("%s: byte %d is not zero", d.Name(), at+int64(i))
			}
		}
	}
	say("dev=%s zeroed=%d discarded=%d", diskName(arg), half, uint64(d.size)-half)
	return nil
}

func (d *disk) rangeIoctl(request uint, start, length uint64) error {
	area := [2]uint64{start, length}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), uintptr(request), uintptr(unsafe.Pointer(&area)))
	if errno != 0 {
		return errno
	}
	return nil
}
