package folder

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// within calls do with a directory of the guest that is to get, or to lose, a name.
func (f *Folder) within(id uint64, name string, do func(dir *node, fd int) error) fuse.Status {
	if f.cfg.ReadOnly {
		return fuse.EROFS
	}
	if err := checkName(name); err != nil {
		return status(err)
	}
	dir, fd, err := f.nodes.use(id)
	if err != nil {
		return status(err)
	}
	defer f.nodes.done(dir)
	return status(do(dir, fd))
}

func by(in *fuse.InHeader) owner { return owner{in.Uid, in.Gid} }

// permissions are the bits of a mode that are not a file's kind.
const permissions = 0o7777

// Mkdir makes a directory.
func (f *Folder) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.within(in.NodeId, name, func(dir *node, fd int) error {
		err := f.clerk.do(by(&in.InHeader), func() error { return unix.Mkdirat(fd, name, in.Mode&permissions) })
		if err != nil {
			return err
		}
		return f.enter(dir, fd, name, out)
	})
}

// Mknod makes a file, a FIFO or a socket. A device would be one of the host's.
func (f *Folder) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.within(in.NodeId, name, func(dir *node, fd int) error {
		switch in.Mode & unix.S_IFMT {
		case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
		case unix.S_IFCHR, unix.S_IFBLK:
			return unix.EPERM
		default:
			return unix.EINVAL
		}
		err := f.clerk.do(by(&in.InHeader), func() error {
			return unix.Mknodat(fd, name, in.Mode&(unix.S_IFMT|permissions), 0)
		})
		if err != nil {
			return err
		}
		return f.enter(dir, fd, name, out)
	})
}

// Symlink makes a symbolic link, which only guests follow.
func (f *Folder) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return f.within(in.NodeId, name, func(dir *node, fd int) error {
		err := f.clerk.do(by(in), func() error { return unix.Symlinkat(target, fd, name) })
		if err != nil {
			return err
		}
		return f.enter(dir, fd, name, out)
	})
}

// Link gives a file another name.
func (f *Folder) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.within(in.NodeId, name, func(dir *node, fd int) error {
		n, from, err := f.nodes.use(in.Oldnodeid)
		if err != nil {
			return err
		}
		defer f.nodes.done(n)
		// The name in /proc leads to the very file, a symbolic link too.
		if err := unix.Linkat(f.proc, magic(from), fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return err
		}
		return f.enter(dir, fd, name, out)
	})
}

// Unlink takes a name from a file.
func (f *Folder) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.within(in.NodeId, name, func(dir *node, fd int) error { return f.remove(dir, fd, name, 0) })
}

// Rmdir removes a directory.
func (f *Folder) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.within(in.NodeId, name, func(dir *node, fd int) error { return f.remove(dir, fd, name, unix.AT_REMOVEDIR) })
}

func (f *Folder) remove(dir *node, fd int, name string, flags int) error {
	gone := f.nodes.at(dir, name)
	err := unix.Unlinkat(fd, name, flags)
	switch {
	case gone == nil:
	case err != nil:
		f.nodes.done(gone)
	default:
		f.nodes.removed(gone)
	}
	return err
}

// Rename moves a name, or exchanges two.
func (f *Folder) Rename(_ <-chan struct{}, in *fuse.RenameIn, old, name string) fuse.Status {
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	return f.within(in.NodeId, old, func(from *node, fromFD int) error {
		return statusError(f.within(in.Newdir, name, func(to *node, toFD int) error {
			return f.move(from, fromFD, old, to, toFD, name, in.Flags)
		}))
	})
}

func statusError(s fuse.Status) error {
	if s == fuse.OK {
		return nil
	}
	return unix.Errno(s)
}

func (f *Folder) move(from *node, fromFD int, old string, to *node, toFD int, name string, flags uint32) error {
	moved, target := f.nodes.at(from, old), f.nodes.at(to, name)
	err := unix.Renameat2(fromFD, old, toFD, name, uint(flags))
	same := moved == target // two names of one file: nothing happens
	switch {
	case target == nil:
	case err != nil || same:
		f.nodes.done(target)
	case flags&unix.RENAME_EXCHANGE != 0:
		// Its place becomes free when the other has taken this one.
	default:
		f.nodes.removed(target)
	}
	switch {
	case moved == nil:
	case err != nil || same:
		f.nodes.done(moved)
	default:
		f.nodes.moved(moved, to, name)
	}
	if err == nil && !same && target != nil && flags&unix.RENAME_EXCHANGE != 0 {
		f.nodes.moved(target, from, old)
	}
	return err
}

// Create makes a regular file, or takes the one that is there, and opens it.
func (f *Folder) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return f.within(in.NodeId, name, func(dir *node, fd int) error {
		flags := int(in.Flags & openFlags)
		made := -1
		err := f.clerk.do(by(&in.InHeader), func() (err error) {
			made, err = openBeneath(fd, name, flags|unix.O_CREAT|unix.O_EXCL, in.Mode&permissions)
			return err
		})
		there := err == unix.EEXIST && in.Flags&unix.O_EXCL == 0
		if err != nil && !there {
			return err
		}
		if err := f.enter(dir, fd, name, &out.EntryOut); err != nil {
			if made >= 0 {
				_ = unix.Close(made)
			}
			return err
		}
		if there {
			made, err = f.openNode(out.NodeId, flags)
		} else {
			err = nil
		}
		if err == nil {
			out.Fh, err = f.files.add(made, nil)
		}
		if err != nil {
			f.nodes.forget(out.NodeId, 1)
		}
		return err
	})
}

// SetAttr changes attributes, of an open file where that is said.
func (f *Folder) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if f.cfg.ReadOnly {
		return fuse.EROFS
	}
	out.SetTimeout(freshness)
	if in.Valid&fuse.FATTR_FH != 0 {
		if h, err := f.files.use(in.Fh); err == nil {
			defer h.users.Done()
			return status(f.change(h.fd, h.fd, in, out))
		}
	}
	n, fd, err := f.nodes.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.nodes.done(n)
	return status(f.change(fd, -1, in, out))
}

// change changes the file behind fd, which open is too if it is open.
func (f *Folder) change(fd, open int, in *fuse.SetAttrIn, out *fuse.AttrOut) error {
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		uid, gid := -1, -1
		if in.Valid&fuse.FATTR_UID != 0 {
			uid = int(in.Uid)
		}
		if in.Valid&fuse.FATTR_GID != 0 {
			gid = int(in.Gid)
		}
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		if err := unix.Fchmodat(f.proc, magic(fd), in.Mode&permissions, 0); err != nil {
			return err
		}
	}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		if err := f.truncate(fd, open, in.Size); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
		times := []unix.Timespec{
			stamp(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
			stamp(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
		}
		if err := unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return f.describe(fd, &out.Attr)
}

// stamp is one time as utimensat has it.
func stamp(valid, given, now uint32, sec uint64, ns uint32) unix.Timespec {
	switch {
	case valid&given == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(ns)}
}

func (f *Folder) truncate(fd, open int, size uint64) error {
	if size > 1<<63-1 {
		return unix.EFBIG
	}
	if open < 0 {
		var err error
		if open, err = f.reopen(fd, unix.S_IFREG, unix.O_WRONLY); err != nil {
			return err
		}
		defer unix.Close(open)
	}
	return unix.Ftruncate(open, int64(size))
}
