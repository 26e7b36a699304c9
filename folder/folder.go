// Package folder serves a folder of the host to a guest: the files behind a
// virtio-fs device. It answers FUSE's requests, in the shape that go-fuse gives
// them (fuse.RawFileSystem), with the host's files.
//
// # What a guest can reach
//
// Nothing that is not in the folder. Every request of a guest names a node that it
// was given before, or a node and one name in it. A node stands for a file that was
// opened by openat2 with RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS and
// RESOLVE_NO_SYMLINKS, one name at a time, from the folder down; a name with a
// slash, "." and ".." are refused before they reach the kernel. So no symbolic
// link is ever followed here (the guest follows its own), and what somebody
// renames meanwhile cannot turn a walk aside: a directory that is taken out of the
// folder while the guest has it open stays what it is to the guest, as to any
// process that has it open, and leads nowhere else. Devices, FIFOs and sockets of
// the host are seen, and never opened.
//
// # Whose ids are used
//
// Where this process may choose ([Folder] tries it: it needs CAP_SETUID,
// CAP_SETGID and their like, as root has), files that a guest makes belong to the
// user and group of the guest's process, by number, and chown works. Elsewhere all
// belongs to the user of this process. Who may do what is checked by the guest's
// kernel, from the modes that it is told, and by the host's for this process.
//
// # Bounds
//
// A guest can have a number of nodes, of open files, and of descriptors that are
// kept for nodes; see [Config]. Beyond the first two it gets an error, and the
// last is a cache: a node whose descriptor is closed is found again by its name.
//
// Not done here: FUSE's wire format and its queue (virtio/fs), locks between
// guests, POSIX ACLs, ioctls, notifying guests of the host's changes (what they
// know lives for a second), making device nodes.
package folder

import (
	"errors"
	"fmt"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Config says what to serve. The zero value of a bound is its default.
type Config struct {
	Path     string // of a directory
	ReadOnly bool   // the guest changes nothing
	// Nodes bounds the files that a guest knows of at a time; some 400 bytes each.
	Nodes int
	// Files bounds the files and directories that it has open, Cached the
	// descriptors that are kept for nodes beside them.
	Files, Cached int
	// MapFrom is the size in bytes from which a regular file is marked as one to be
	// mapped; 0 marks none.
	MapFrom int64
}

// Defaults of Config.
const (
	DefaultNodes  = 1 << 18
	DefaultFiles  = 1024
	DefaultCached = 256
)

// freshness is how long a guest may rely on a name and on attributes.
const freshness = time.Second

// Folder is one folder as one guest sees it: a fuse.RawFileSystem. Its methods may
// be called from many goroutines, but for Reset and Close, which come when no other
// runs.
type Folder struct {
	fuse.RawFileSystem // answers ENOSYS to what is not here

	cfg   Config
	proc  int // /proc/self/fd
	nodes nodes
	files files
	clerk clerk

	device uint64 // of the root
}

// Open opens the folder for one guest. The caller owns it.
func Open(cfg Config) (*Folder, error) {
	if cfg.Nodes == 0 {
		cfg.Nodes = DefaultNodes
	}
	if cfg.Files == 0 {
		cfg.Files = DefaultFiles
	}
	if cfg.Cached == 0 {
		cfg.Cached = DefaultCached
	}
	f := &Folder{RawFileSystem: fuse.NewDefaultRawFileSystem(), cfg: cfg, proc: -1}
	root, err := unix.Open(cfg.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("folder %s: %w", cfg.Path, err)
	}
	k, _, err := identify(root)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("folder %s: %w", cfg.Path, err), unix.Close(root))
	}
	f.device = k.dev
	f.nodes.open(root, k, cfg.Nodes, cfg.Cached)
	f.files.most = cfg.Files
	if f.proc, err = unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("folder %s: /proc is needed: %w", cfg.Path, err), f.Close())
	}
	if err := f.probe(); err != nil {
		return nil, errors.Join(fmt.Errorf("folder %s: %w", cfg.Path, err), f.Close())
	}
	return f, nil
}

// probe finds out whether the kernel has openat2, Linux 5.6.
func (f *Folder) probe() error {
	fd, err := openBeneath(f.nodes.root.fd, ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("openat2: %w", err)
	}
	return unix.Close(fd)
}

// openBeneath opens one name in a directory, and nothing that it may lead to.
func openBeneath(dir int, name string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		// Beneath a directory that others rename in, the kernel may give up.
		fd, err := unix.Openat2(dir, name, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

// Path is where the folder is.
func (f *Folder) Path() string { return f.cfg.Path }

// ReadOnly says that the guest changes nothing.
func (f *Folder) ReadOnly() bool { return f.cfg.ReadOnly }

// Reset forgets all that the guest has: another session begins, or none.
func (f *Folder) Reset() {
	f.files.closeAll()
	f.nodes.reset()
}

// Close ends it.
func (f *Folder) Close() error {
	f.Reset()
	f.clerk.close()
	errs := []error{unix.Close(f.nodes.root.fd)}
	if f.proc >= 0 {
		errs = append(errs, unix.Close(f.proc))
	}
	return errors.Join(errs...)
}

// Stats are what a guest holds now.
type Stats struct {
	Nodes  int `json:"nodes"`
	Files  int `json:"files"`
	Cached int `json:"cached"`
}

// Stats may be called at any time.
func (f *Folder) Stats() Stats {
	s := Stats{Files: f.files.count()}
	f.nodes.mu.Lock()
	defer f.nodes.mu.Unlock()
	s.Nodes, s.Cached = len(f.nodes.byKey), f.nodes.cached.Len()+f.nodes.held
	return s
}

// String names the folder.
func (f *Folder) String() string { return f.cfg.Path }

// status is an error as FUSE has it. Errors other than the kernel's do not occur.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return fuse.Status(errno)
	}
	return fuse.EIO
}
