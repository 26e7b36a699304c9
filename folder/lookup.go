package folder

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup finds a name in a directory.
func (f *Folder) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	dir, fd, err := f.nodes.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.nodes.done(dir)
	return status(f.enter(dir, fd, name, out))
}

// enter makes what is there as name known to the guest, and describes it.
func (f *Folder) enter(dir *node, dirFD int, name string, out *fuse.EntryOut) error {
	fd, err := openBeneath(dirFD, name, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	k, _, err := identify(fd)
	if err == nil {
		err = f.describe(fd, &out.Attr)
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	n, err := f.nodes.add(dir, name, fd, k)
	if err != nil {
		return err
	}
	out.NodeId, out.Generation = n.id, 1
	out.SetEntryTimeout(freshness)
	out.SetAttrTimeout(freshness)
	return nil
}

// describe fills in the attributes of the file behind fd.
func (f *Folder) describe(fd int, a *fuse.Attr) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	*a = fuse.Attr{
		Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks),
		Atime: uint64(st.Atim.Sec), Mtime: uint64(st.Mtim.Sec), Ctime: uint64(st.Ctim.Sec),
		Atimensec: uint32(st.Atim.Nsec), Mtimensec: uint32(st.Mtim.Nsec), Ctimensec: uint32(st.Ctim.Nsec),
		Mode: st.Mode, Nlink: uint32(st.Nlink), Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev: uint32(st.Rdev), Blksize: uint32(st.Blksize),
	}
	if st.Dev != f.device {
		// Numbers of another file system: the guest takes all for one.
		a.Ino ^= st.Dev * 0x9e3779b97f4a7c15
	}
	if f.cfg.MapFrom > 0 && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size >= f.cfg.MapFrom {
		a.Flags |= fuse.ATTR_DAX
	}
	return nil
}

// Forget takes back lookups.
func (f *Folder) Forget(id, count uint64) { f.nodes.forget(id, count) }

// GetAttr describes a node, or an open file.
func (f *Folder) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(freshness)
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		if h, err := f.files.use(in.Fh()); err == nil {
			defer h.users.Done()
			return status(f.describe(h.fd, &out.Attr))
		}
	}
	n, fd, err := f.nodes.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.nodes.done(n)
	return status(f.describe(fd, &out.Attr))
}

// Readlink says where a symbolic link of the guest leads.
func (f *Folder) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, fd, err := f.nodes.use(in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	defer f.nodes.done(n)
	p := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(fd, "", p)
	if err != nil {
		return nil, status(err)
	}
	return p[:size], fuse.OK
}

// StatFs describes the file system that holds a node.
func (f *Folder) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n, fd, err := f.nodes.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.nodes.done(n)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
	}
	return fuse.OK
}
