package vmm

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"disco/disk"
	"disco/disk/cache"
	"disco/memory"
	"disco/numa"
)

// bases are the images and kernels that a Monitor's guests only read, each open once
// and cached, whoever uses it. They share one cache, made with the first of them. One
// stays open as long as a guest has it as a disk, or maps pages of it, which need not
// be the guest that has read them: another may have sent them.
type bases struct {
	size     uint64 // of the cache, as in MonitorConfig
	topology *numa.Topology

	mu    sync.Mutex
	cache *cache.Cache
	open  map[baseKey]*base
}

// baseKey is a file, and how it is read.
type baseKey struct {
	device, inode uint64
	format        string
	backing       bool
	kernel        fileVersion // zero for an image, which is locked and does not change
}

// base is an image in the cache. It reads as the image does, and lends.
type base struct {
	*cache.File
	image disk.Image // nil for a kernel
	file  *os.File   // to forget, or nil
	uses  int        // disks, under bases.mu
}

// get opens d's image, or finds it open. The caller ends it with put.
func (s *bases) get(d Disk) (*base, error) {
	st, err := os.Stat(d.Path)
	if err != nil {
		return nil, err
	}
	sys := st.Sys().(*syscall.Stat_t)
	key := baseKey{device: sys.Dev, inode: sys.Ino, format: d.Format, backing: d.Backing}
	return s.find(key, func() (*base, error) { return s.add(d) })
}

// find is the base of a key, opened if it is not open, and the cache made for the
// first.
func (s *bases) find(key baseKey, open func() (*base, error)) (*base, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.open[key]
	if b == nil {
		var err error
		if s.cache == nil {
			if s.cache, err = cache.New(cache.Config{Size: s.size, Nodes: s.nodes()}); err != nil {
				return nil, err
			}
		}
		if b, err = open(); err != nil {
			return nil, err
		}
		if s.open == nil {
			s.open = make(map[baseKey]*base)
		}
		s.open[key] = b
	}
	b.uses++
	return b, nil
}

// add opens an image; mu is held, and there is a cache.
func (s *bases) add(d Disk) (*base, error) {
	// The host's page cache would hold the same bytes a second time.
	o := disk.Options{ReadOnly: true, Format: disk.Format(d.Format), Backing: d.Backing, Direct: true}
	img, err := disk.Open(d.Path, o)
	if err != nil {
		o.Direct = false
		if img, err = disk.Open(d.Path, o); err != nil {
			return nil, err
		}
	}
	b := &base{image: img}
	var from cache.Base = disk.NewBase(img)
	if !o.Direct {
		if b.file, err = os.Open(d.Path); err != nil {
			return nil, errors.Join(err, img.Close())
		}
		from = &forgotten{from, b.file, disk.FormatOf(img) == disk.FormatRaw}
	}
	if b.File, err = s.cache.Open(from, "disco-cache-"+filepath.Base(d.Path)); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// forgotten is a Base that the host's page cache is told to forget.
type forgotten struct {
	cache.Base
	file *os.File
	raw  bool // what is at an offset of the image is there in the file
}

// Forget has no failure that matters: it is advice.
func (f *forgotten) Forget(off, n int64) {
	if !f.raw {
		off, n = 0, 0 // all of it
	}
	_ = unix.Fadvise(int(f.file.Fd()), off, n, unix.FADV_DONTNEED)
}

// nodes are the kernel's nodes to spread the cache over.
func (s *bases) nodes() []int {
	t := s.topology
	if t == nil {
		var err error
		if t, err = numa.Read(os.DirFS("/")); err != nil {
			return nil // it is placed where it is read
		}
	}
	if !t.Real() {
		return nil
	}
	var nodes []int
	for _, n := range t.Nodes() {
		nodes = append(nodes, int(n))
	}
	return nodes
}

// put ends a get, after all of the caller's that maps pages of the image. The last
// one closes it, unless other guests were sent pages of it and map them still.
func (s *bases) put(b *base) error {
	s.mu.Lock()
	b.uses--
	s.mu.Unlock()
	return s.sweep()
}

// sweep closes the images that are nobody's and that no guest maps any more.
func (s *bases) sweep() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for key, b := range s.open {
		if b.uses > 0 {
			continue
		}
		err := b.close()
		if errors.Is(err, cache.ErrMapped) {
			continue
		}
		delete(s.open, key)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// close gives up the image, or returns cache.ErrMapped and changes nothing.
func (b *base) close() error {
	var errs []error
	if b.File != nil {
		err := b.File.Close()
		if errors.Is(err, cache.ErrMapped) {
			return err
		}
		errs = append(errs, err)
	}
	if b.image != nil {
		errs = append(errs, b.image.Close())
	}
	if b.file != nil {
		errs = append(errs, b.file.Close())
	}
	return errors.Join(errs...)
}

// close frees the cache, when no base is open any more.
func (s *bases) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache == nil {
		return nil
	}
	err := s.cache.Close()
	s.cache = nil
	return err
}

// CacheStats counts what the Monitor's buffer cache did, and what it holds.
func (m *Monitor) CacheStats() cache.Stats {
	m.bases.mu.Lock()
	defer m.bases.mu.Unlock()
	if m.bases.cache == nil {
		return cache.Stats{}
	}
	return m.bases.cache.Stats()
}

// BlockSize is the image's.
func (b *base) BlockSize() int { return b.image.BlockSize() }

// ReadOnly is true: what the guests share they do not write.
func (b *base) ReadOnly() bool { return true }

// Flush has nothing to do.
func (b *base) Flush() error { return nil }

// WriteV fails.
func (b *base) WriteV([][]byte, int64) error { return unix.EROFS }

// Discard fails.
func (b *base) Discard(int64, int64) error { return unix.EROFS }

// WriteZeroes fails.
func (b *base) WriteZeroes(int64, int64, bool) error { return unix.EROFS }

// based says whether a disk's image is only read, so that guests can share it.
func (d *Disk) based() bool {
	return d.Overlay != OverlayNone || d.ReadOnly && d.Cache != Direct
}

// shares says whether a guest of c is to map pages of its disks' bases or of other
// guests' frames, with an error if it must and this host can not.
func (c *Config) shares(log *slog.Logger) (bool, error) {
	wanted, needed := c.maps()
	for i := range c.Disks {
		if d := &c.Disks[i]; d.based() && d.Share != ShareNever {
			wanted, needed = true, needed || d.Share == ShareAlways
		}
	}
	if !wanted {
		return false, nil
	}
	err := memory.ProbeSharing()
	if err != nil && needed {
		return false, fmt.Errorf("sharing pages of disks and segments: %w; or choose that they are never shared", err)
	}
	if err != nil {
		log.Info("guests copy what they read from images and segments", "reason", err)
	}
	return err == nil, nil
}
