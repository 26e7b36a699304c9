package folder

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// listing is an open directory that is being read.
type listing struct {
	mu   sync.Mutex
	buf  [8 << 10]byte // of getdents64
	rest []byte        // of buf, not given to the guest yet
	next int64         // the offset of rest, as getdents64 counts
}

// OpenDir opens a directory.
func (f *Folder) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, fd, err := f.nodes.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.nodes.done(n)
	opened, err := f.reopen(fd, unix.S_IFDIR, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		out.Fh, err = f.files.add(opened, &listing{})
	}
	return status(err)
}

// ReleaseDir closes one.
func (f *Folder) ReleaseDir(in *fuse.ReleaseIn) { f.files.close(in.Fh) }

// FsyncDir returns when a directory's names are on stable storage.
func (f *Folder) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := f.files.use(in.Fh)
	if err != nil {
		return fuse.EBADF
	}
	defer h.users.Done()
	return status(unix.Fsync(h.fd))
}

// ReadDir lists a directory from an offset on.
func (f *Folder) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus does so, and makes each entry known as Lookup would.
func (f *Folder) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir, fd, err := f.nodes.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.nodes.done(dir)
	return f.list(in, func(e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." {
			return true
		}
		// What cannot be entered is listed without a node: the guest asks again.
		var known fuse.EntryOut
		if f.enter(dir, fd, e.Name, &known) == nil {
			*entry = known
		}
		return true
	})
}

// list gives entries to add until it takes no more.
func (f *Folder) list(in *fuse.ReadIn, add func(fuse.DirEntry) bool) fuse.Status {
	h, err := f.files.use(in.Fh)
	if err != nil {
		return fuse.EBADF
	}
	defer h.users.Done()
	if h.dir == nil {
		return fuse.ENOTDIR
	}
	d := h.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rest == nil || d.next != int64(in.Offset) {
		if _, err := unix.Seek(h.fd, int64(in.Offset), unix.SEEK_SET); err != nil {
			return status(err)
		}
		d.rest, d.next = nil, int64(in.Offset)
	}
	for added := false; ; added = true {
		if len(d.rest) == 0 {
			n, err := unix.Getdents(h.fd, d.buf[:])
			if err != nil && !added {
				return status(err)
			}
			if err != nil || n <= 0 {
				d.rest = nil
				return fuse.OK
			}
			d.rest = d.buf[:n]
		}
		e, rest := entry(d.rest)
		if !add(e) {
			return fuse.OK
		}
		d.rest, d.next = rest, int64(e.Off)
	}
}

// entry takes the first struct linux_dirent64 of what the kernel wrote.
func entry(p []byte) (e fuse.DirEntry, rest []byte) {
	const offset, length, kind, name = 8, 16, 18, 19
	le := binary.LittleEndian
	size := le.Uint16(p[length:])
	text := p[name:size]
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	return fuse.DirEntry{
		Ino: le.Uint64(p), Off: le.Uint64(p[offset:]), Mode: uint32(p[kind]) << 12, Name: string(text),
	}, p[size:]
}
