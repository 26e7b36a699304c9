package disk

import (
	"fmt"
	"io"

	"disco/disk/qcow2"
)

// Format is the way that an image's bytes are laid out in its file.
type Format string

// The formats that Open knows. The empty Format stands for whichever of them the
// file looks like. A guest that writes a raw image can make it look like any other,
// so name the format of one whose guest is not trusted.
const (
	FormatRaw   Format = "raw"
	FormatQCOW2 Format = "qcow2"
)

// Disk is what holds a disk's bytes (blk.Backend). Offsets and lengths are in bytes,
// are multiples of SectorSize and lie within Size. Its methods may be called from many
// goroutines; none keeps bufs.
type Disk interface {
	Size() int64
	// BlockSize is the logical block size, a power of two from SectorSize up.
	BlockSize() int
	ReadOnly() bool
	ReadV(bufs [][]byte, off int64) error
	WriteV(bufs [][]byte, off int64) error
	// Flush returns when all writes that have returned are on stable storage.
	Flush() error
	// Discard gives up the storage of a range, which then reads as zeroes, as what
	// was there, or as what is below the image.
	Discard(off, n int64) error
	WriteZeroes(off, n int64, unmap bool) error
}

// Image is an open disk image.
type Image interface {
	Disk
	// Close unlocks the image, after a last Flush. No other call may be under way.
	Close() error
}

// Base is what an image stands on: bytes that never change. Past its Size it is
// not read. ReadAt may be called from many goroutines.
type Base interface {
	io.ReaderAt
	Size() int64
}

// Options say how to open an image. The zero value opens it for writing, with
// the host's page cache, in the format that the file looks like.
type Options struct {
	ReadOnly     bool
	Format       Format // empty finds out
	Direct       bool   // past the host's page cache, where requests are aligned as it demands
	WriteThrough bool   // every write is on stable storage before it returns

	// Backing lets the image name a backing file, which must lie in the image's own
	// folder, and that one another. Without, such an image is refused.
	Backing bool
	// Base is read in place of the backing file that the image names, which is then
	// not opened. It is not closed with the image.
	Base Base

	above []*file // the images that stand on this one
}

// FormatOf is the format of what Open returned.
func FormatOf(img Image) Format {
	if _, ok := img.(*Layer); ok {
		return FormatQCOW2
	}
	return FormatRaw
}

// Open opens the image at path and locks it until Close: read-only openers share
// it, a writer has it alone.
func Open(path string, o Options) (Image, error) {
	f, err := openFile(path, o.ReadOnly, o.Direct)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	img, err := o.image(f)
	if err != nil {
		f.close()
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	return img, nil
}

// image makes an Image of an open file, which it then owns.
func (o *Options) image(f *file) (Image, error) {
	format := o.Format
	if format == "" {
		format = FormatRaw
		var b [4]byte
		if err := (container{f}).ReadV([][]byte{b[:]}, 0); err != nil {
			return nil, err
		}
		if qcow2.IsImage(b[:]) {
			format = FormatQCOW2
		}
	}
	switch format {
	case FormatRaw:
		return newRaw(f, o.WriteThrough)
	case FormatQCOW2:
		return o.layer(f)
	}
	return nil, fmt.Errorf("the format %q is not known; there are raw and qcow2", string(format))
}
