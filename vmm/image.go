package vmm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/vmm/boot"
)

// image is what guests boot, held open so that a restart finds what the start
// found. Guests of the same files have one; it is immutable.
type image struct {
	kernel     *boot.Kernel
	file       *os.File    // that the kernel reads from; nil if it reads from a disk
	initrd     io.ReaderAt // nil for none; closed with the image if it can be
	initrdSize int64
	words      string // for the kernel command line, if the image knows where the root is

	owner *images
	key   imageKey
	users int // under owner.mu
}

// images are those that are open. The zero value is ready.
type images struct {
	mu   sync.Mutex
	open map[imageKey]*image
}

// imageKey tells images apart: files that changed are others.
type imageKey struct {
	kernel, initrd fileVersion
	kaslr          bool
}

// fileVersion is a file and the state of its contents; zero for no file.
type fileVersion struct {
	dev, ino         uint64
	size             int64
	modified, change unix.Timespec
}

func versionOf(path string) fileVersion {
	var st unix.Stat_t
	if path == "" || unix.Stat(path, &st) != nil {
		return fileVersion{}
	}
	return version(&st)
}

func version(st *unix.Stat_t) fileVersion {
	return fileVersion{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

// get opens what cfg names, or finds it open. The caller must put it back.
func (s *images) get(cfg *Config) (*image, error) {
	key := imageKey{versionOf(cfg.Kernel), versionOf(cfg.Initrd), cfg.KASLR}
	s.mu.Lock() // while it is unpacked, too: others may want the same
	defer s.mu.Unlock()
	i := s.open[key]
	if i == nil {
		var err error
		if i, err = openImage(cfg); err != nil {
			return nil, err
		}
		i.owner, i.key = s, key
		if s.open == nil {
			s.open = map[imageKey]*image{}
		}
		s.open[key] = i
	}
	i.users++
	return i, nil
}

// put gives the image back. The last of its users closes it.
func (i *image) put() error {
	i.owner.mu.Lock()
	defer i.owner.mu.Unlock()
	if i.users--; i.users > 0 {
		return nil
	}
	delete(i.owner.open, i.key)
	return i.close()
}

// openImage opens what cfg names. What is wrong with the files is a
// *ConfigError with all of it.
func openImage(cfg *Config) (*image, error) {
	i := &image{}
	var problems []error
	var err error
	open := boot.OpenUnpacked
	if cfg.KASLR {
		open = boot.OpenKernel
	}
	if i.kernel, i.file, err = open(cfg.Kernel); err != nil {
		problems = append(problems, err)
	}
	if cfg.Initrd != "" {
		if f, err := os.Open(cfg.Initrd); err != nil {
			problems = append(problems, fmt.Errorf("initrd %s: %w", cfg.Initrd, errors.Unwrap(err)))
		} else if st, err := f.Stat(); err != nil {
			problems = append(problems, fmt.Errorf("initrd %s: %w", cfg.Initrd, errors.Join(err, f.Close())))
		} else {
			i.initrd, i.initrdSize = f, st.Size()
		}
	}
	if problems != nil {
		return nil, errors.Join(&ConfigError{problems}, i.close())
	}
	return i, nil
}

// CacheKernel unpacks the kernel at path into the user's cache, where New finds
// it, unless it is there already. It is for doing so ahead of time, where the
// CPU is quicker than where the guest will run. Errors come back from New.
func CacheKernel(path string) {
	if _, f, err := boot.OpenUnpacked(path); err == nil {
		f.Close()
	}
}

// load puts it all into an empty guest memory, of the kernel's file what share maps.
func (i *image) load(space *memory.Space, cfg *Config, share boot.Share) (boot.Entry, error) {
	p := boot.Params{Kernel: i.kernel, Share: share, Cmdline: cfg.cmdline(i.words), RAM: space.RAM(), CPUs: cfg.CPUs}
	if i.initrd != nil {
		p.Initrd, p.InitrdSize = i.initrd, i.initrdSize
	}
	e, err := p.Load(ram{space})
	if err != nil {
		return boot.Entry{}, &ConfigError{[]error{err}}
	}
	return e, nil
}

func (i *image) close() error {
	var errs []error
	if i.file != nil {
		errs = append(errs, i.file.Close())
	}
	if c, ok := i.initrd.(io.Closer); ok {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// ram is guest memory as an io.WriterAt, its offsets being GPAs.
type ram struct{ space *memory.Space }

func (r ram) WriteAt(p []byte, off int64) (int, error) {
	if err := r.space.WriteAt(p, memory.GPA(off)); err != nil {
		return 0, err
	}
	return len(p), nil
}
