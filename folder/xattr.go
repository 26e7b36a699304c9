package folder

import (
	"bytes"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Extended attributes are those of users alone: the others mean something to the
// host, such as who may do what.
const (
	userPrefix = "user."
	maxList    = 64 << 10 // bytes (XATTR_LIST_MAX)
)

// xattr calls do with a path that leads to the node's file. Symbolic links and
// special files have no attributes of users.
func (f *Folder) xattr(id uint64, change bool, do func(path string) error) fuse.Status {
	if change && f.cfg.ReadOnly {
		return fuse.EROFS
	}
	n, fd, err := f.nodes.use(id)
	if err != nil {
		return status(err)
	}
	defer f.nodes.done(n)
	_, kind, err := identify(fd)
	if err != nil {
		return status(err)
	}
	if kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return status(do("/proc/self/fd/" + magic(fd)))
}

// GetXAttr reads an attribute; with no room for it, it says how much is needed.
func (f *Folder) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !strings.HasPrefix(name, userPrefix) {
		return 0, fuse.Status(unix.EOPNOTSUPP)
	}
	var size int
	s := f.xattr(in.NodeId, false, func(path string) (err error) {
		size, err = unix.Getxattr(path, name, dest)
		return err
	})
	return uint32(max(size, 0)), s
}

// ListXAttr lists them.
func (f *Folder) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	var names []byte
	s := f.xattr(in.NodeId, false, func(path string) error {
		all := make([]byte, maxList)
		n, err := unix.Listxattr(path, all)
		if err != nil {
			return err
		}
		for name := range bytes.SplitSeq(all[:n], []byte{0}) {
			if strings.HasPrefix(string(name), userPrefix) {
				names = append(append(names, name...), 0)
			}
		}
		return nil
	})
	switch {
	case s != fuse.OK:
		return 0, s
	case len(dest) == 0:
		return uint32(len(names)), fuse.OK
	case len(names) > len(dest):
		return uint32(len(names)), fuse.ERANGE
	}
	return uint32(copy(dest, names)), fuse.OK
}

// SetXAttr writes one.
func (f *Folder) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	if !strings.HasPrefix(name, userPrefix) {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if uint64(in.Size) > uint64(len(data)) {
		return fuse.EINVAL
	}
	return f.xattr(in.NodeId, true, func(path string) error {
		return unix.Setxattr(path, name, data[:in.Size], int(in.Flags))
	})
}

// RemoveXAttr removes one.
func (f *Folder) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if !strings.HasPrefix(name, userPrefix) {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return f.xattr(in.NodeId, true, func(path string) error { return unix.Removexattr(path, name) })
}
