// Package qcow2 reads and writes disk images in QEMU's format of that name,
// versions 2 and 3, after its specification (QEMU, docs/interop/qcow2.txt). A file
// is not trusted: whatever it says, nothing outside of it is read, memory is
// bounded, and what makes no sense is an error.
//
// Done: clusters of 512 bytes to 2 MiB; zero clusters; compressed clusters
// (deflate and zstd) read, and rewritten plain; a backing image below; refcounts of
// 1 to 64 bits, and clusters that internal snapshots share, which are copied
// before they change; discards, zeroes; a file that grows as needed; making empty
// images; a check of all references; new refcounts for an image that was not closed
// by who kept them in memory (lazy refcounts), when it is opened to be written.
//
// Not done: making, choosing or removing snapshots, keeping bitmaps up to date (a
// write drops them), external data files, extended L2 entries and encryption (all
// refused by name), writing compressed clusters, resizing, and other repairs: an
// image that is marked corrupt is read but not written.
//
// # Order
//
// A crash at any moment leaves an image without a wrong reference; at most
// clusters that nothing uses stay marked as used. Data goes to the file at once,
// metadata is kept in memory and is written by Flush in steps, each stable before
// the next: data and refcounts; the refcount table; L2 tables and the L1 table. A
// cluster that is given up is free only after that, so that nothing overwrites
// what the file still refers to.
//
// # Locks
//
// In order: Image.flushing, Image.busy, Image.mu. A request holds busy for reading
// from looking up where its bytes are to having moved them; Flush takes it to know
// that no request that began before uses what it is about to free. mu guards
// metadata and is held while some is read from the file, never while data moves.
// A range of clusters whose place is being changed is in Image.moving, and others
// that want to write there wait.
package qcow2

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const sectorSize = 512

// File is what an image is kept in. Its methods are called from many goroutines
// and must not keep bufs.
type File interface {
	Size() (int64, error)
	// ReadV fills bufs from off; what is past the end reads as zeroes.
	ReadV(bufs [][]byte, off int64) error
	// WriteV writes bufs at off; the file grows as needed.
	WriteV(bufs [][]byte, off int64) error
	// Zero makes a range read as zeroes and have storage; the file grows as needed.
	Zero(off, n int64) error
	// Punch makes a range read as zeroes and gives up its storage, where it can.
	Punch(off, n int64) error
	// Sync returns when what was written before is on stable storage.
	Sync() error
}

// Base is what an image stands on. ReadAt is called from many goroutines; past
// Size it is not.
type Base interface {
	io.ReaderAt
	Size() int64
}

// Backing is the backing file as the image names it.
type Backing struct {
	Name   string
	Format string // as the image says; empty if it does not
	Stamp  *Stamp // what it remembers of it; nil if nothing
}

// Options say how to open an image.
type Options struct {
	ReadOnly     bool
	WriteThrough bool // every write is on stable storage before it returns
	// Backing opens the backing file of an image that names one. Nil refuses such
	// an image. What it returns is not closed with the image.
	Backing func(Backing) (Base, error)
}

// ErrCorrupt is wrapped by errors that say what in an image makes no sense.
var ErrCorrupt = errors.New("the image is damaged")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Image is an open image. Its methods but Close may be called from many
// goroutines. Requests are multiples of 512 bytes.
type Image struct {
	file    File
	base    Base // nil for none
	options Options

	version     uint32
	size        int64
	clusterBits uint
	cluster     int64 // bytes
	refOrder    uint
	l1Offset    int64
	l1Entries   int64
	backing     Backing
	unzip       unzipper

	flushing sync.Mutex
	snap     snapshot      // of the flush under way
	freeing  []extent      // what it will free
	flushes  atomic.Uint64 // that have begun
	flushed  uint64        // the last one that has succeeded; under flushing

	busy sync.RWMutex

	mu         sync.Mutex
	pages      pages
	refOffset  int64
	refEntries int64
	end        int64    // clusters, past the last one that the file may hold
	cursor     int64    // clusters before it are in use, or in spare
	spare      []extent // free clusters before cursor
	dropped    []extent // one reference each is given up by what is not yet stable
	moving     []extent // clusters of the disk
	moved      sync.Cond
	broken     error // nothing more may be written

	requests sync.Pool // of *request
}

// extent is a run of clusters, of the file or of the disk.
type extent struct{ first, count int64 }

// Open opens the image in f, which stays the caller's, to be closed after Close.
func Open(f File, o Options) (*Image, error) {
	fileSize, err := f.Size()
	if err != nil {
		return nil, err
	}
	h, err := readHeader(f, fileSize)
	if err != nil {
		return nil, err
	}
	cluster := int64(1) << h.clusterBits
	i := &Image{
		file: f, options: o, version: h.version, size: h.size, clusterBits: h.clusterBits, cluster: cluster,
		refOrder: h.refOrder, l1Offset: h.l1Offset, l1Entries: h.l1Entries,
		pages: newPages(f, cluster), refOffset: h.refOffset, refEntries: h.refClusters * cluster / 8,
		end:     (fileSize + cluster - 1) / cluster,
		backing: Backing{h.backing, h.backingFormat, h.stamp},
		unzip:   unzipper{zstd: h.compression == compressionZstd},
	}
	i.moved.L = &i.mu
	i.requests.New = func() any { return new(request) }
	if h.backing != "" {
		if o.Backing == nil {
			return nil, fmt.Errorf("it names a backing file, %q, which is not allowed here", h.backing)
		}
		if i.base, err = o.Backing(i.backing); err != nil {
			return nil, err
		}
	}
	if o.ReadOnly {
		return i, nil
	}
	if h.incompatible&featureCorrupt != 0 {
		return nil, fmt.Errorf("%w, and marked so; mend it with qemu-img check -r all, or use it read-only", ErrCorrupt)
	}
	if h.autoclear != 0 {
		// What they stand for, as bitmaps, is not kept up to date here.
		if err := errors.Join(f.WriteV([][]byte{make([]byte, 8)}, atAutoclear), f.Sync()); err != nil {
			return nil, err
		}
	}
	if h.incompatible&featureDirty != 0 {
		if err := i.mend(h); err != nil {
			return nil, fmt.Errorf("it was not closed by the program that wrote it last, and its refcounts cannot be made anew: %w; mend it with qemu-img check -r all, or use it read-only", err)
		}
	}
	return i, nil
}

// Size is the size of the disk in bytes.
func (i *Image) Size() int64 { return i.size }

// BlockSize is 512.
func (i *Image) BlockSize() int { return sectorSize }

// ClusterSize is the unit in bytes in which the file is allocated.
func (i *Image) ClusterSize() int64 { return i.cluster }

// ReadOnly says whether the image was opened read-only.
func (i *Image) ReadOnly() bool { return i.options.ReadOnly }

// Backing is the backing file that the image names; its Name is empty without.
func (i *Image) Backing() Backing { return i.backing }

// Close flushes and lets go of the image, even if it fails. No other call may be
// under way.
func (i *Image) Close() error {
	// What the first flush frees is written by the second.
	return errors.Join(i.Flush(), i.Flush())
}

// check refuses ranges outside the disk, and writes where there are none.
func (i *Image) check(what string, off, n int64, write bool) error {
	switch {
	case off < 0 || n < 0 || off > i.size || n > i.size-off || (off|n)%sectorSize != 0:
		return i.fail(what, off, n, unix.EINVAL)
	case write && i.options.ReadOnly:
		return i.fail(what, off, n, unix.EROFS)
	}
	return nil
}

func (i *Image) fail(what string, off, n int64, err error) error {
	return fmt.Errorf("qcow2: %s of %d bytes at %d: %w", what, n, off, err)
}

// breaks records that nothing may be written any more. Image.mu is held.
func (i *Image) breaks(err error) error {
	if i.broken == nil {
		i.broken = err
	}
	return err
}
