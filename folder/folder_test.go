package folder

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// guest does with a Folder what a guest's kernel does.
type guest struct {
	*Folder
	t testing.TB
	// as whom
	uid, gid uint32
}

func serve(t testing.TB, c Config) *guest {
	t.Helper()
	if c.Path == "" {
		c.Path = t.TempDir()
	}
	f, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return &guest{Folder: f, t: t, uid: uint32(os.Getuid()), gid: uint32(os.Getgid())}
}

func (g *guest) header(node uint64) fuse.InHeader {
	return fuse.InHeader{NodeId: node, Caller: fuse.Caller{Owner: fuse.Owner{Uid: g.uid, Gid: g.gid}}}
}

// walk looks names up one after the other.
func (g *guest) walk(from uint64, path string) (uint64, error) {
	for name := range strings.SplitSeq(path, "/") {
		var out fuse.EntryOut
		h := g.header(from)
		if s := g.Lookup(nil, &h, name, &out); s != fuse.OK {
			return 0, unix.Errno(s)
		}
		from = out.NodeId
	}
	return from, nil
}

func (g *guest) must(path string) uint64 {
	g.t.Helper()
	n, err := g.walk(rootID, path)
	if err != nil {
		g.t.Fatalf("%s: %v", path, err)
	}
	return n
}

func (g *guest) open(node uint64, flags uint32) (uint64, error) {
	var out fuse.OpenOut
	if s := g.Open(nil, &fuse.OpenIn{InHeader: g.header(node), Flags: flags}, &out); s != fuse.OK {
		return 0, unix.Errno(s)
	}
	return out.Fh, nil
}

func (g *guest) content(node uint64) (string, error) {
	fh, err := g.open(node, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer g.Release(nil, &fuse.ReleaseIn{Fh: fh})
	p := make([]byte, 4096)
	n, s := g.ReadV(fh, [][]byte{p[:3], nil, p[3:]}, 0)
	if s != fuse.OK {
		return "", unix.Errno(s)
	}
	return string(p[:n]), nil
}

func (g *guest) list(node uint64) []string {
	g.t.Helper()
	var out fuse.OpenOut
	if s := g.OpenDir(nil, &fuse.OpenIn{InHeader: g.header(node)}, &out); s != fuse.OK {
		g.t.Fatalf("opendir: %v", s)
	}
	defer g.ReleaseDir(&fuse.ReleaseIn{Fh: out.Fh})
	var names []string
	for off := uint64(0); ; {
		l := fuse.NewDirEntryList(make([]byte, 200), off)
		if s := g.ReadDir(nil, &fuse.ReadIn{InHeader: g.header(node), Fh: out.Fh, Offset: off}, l); s != fuse.OK {
			g.t.Fatalf("readdir: %v", s)
		}
		all, err := fuse.ParseDirEntries(l.Bytes())
		if err != nil {
			g.t.Fatal(err)
		}
		if len(all) == 0 {
			slices.Sort(names)
			return names
		}
		for _, e := range all {
			names = append(names, e.Name)
			off = e.Off
		}
	}
}

func (g *guest) create(dir uint64, name string, mode uint32) (node, fh uint64, err error) {
	var out fuse.CreateOut
	in := fuse.CreateIn{InHeader: g.header(dir), Flags: unix.O_RDWR | unix.O_CREAT, Mode: mode}
	if s := g.Create(nil, &in, name, &out); s != fuse.OK {
		return 0, 0, unix.Errno(s)
	}
	return out.NodeId, out.Fh, nil
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// descriptors counts those of this process.
func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestRoundTrip(t *testing.T) {
	g := serve(t, Config{})
	node, fh, err := g.create(rootID, "file", 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if n, s := g.WriteV(fh, [][]byte{[]byte("hello "), {}, []byte("world")}, 0); n != 11 || s != fuse.OK {
		t.Fatalf("wrote %d, %v", n, s)
	}
	for _, s := range []fuse.Status{
		g.Flush(nil, &fuse.FlushIn{Fh: fh}),
		g.Fsync(nil, &fuse.FsyncIn{Fh: fh}),
		g.Fsync(nil, &fuse.FsyncIn{Fh: fh, FsyncFlags: fsyncData}),
		g.Fallocate(nil, &fuse.FallocateIn{Fh: fh, Length: 8192}),
	} {
		if s != fuse.OK {
			t.Error(s)
		}
	}
	var at fuse.LseekOut
	if s := g.Lseek(nil, &fuse.LseekIn{Fh: fh, Whence: unix.SEEK_DATA}, &at); s != fuse.OK || at.Offset != 0 {
		t.Errorf("seek: %v, %d", s, at.Offset)
	}
	var attr fuse.AttrOut
	in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: g.header(node), Valid: fuse.FATTR_SIZE | fuse.FATTR_MODE | fuse.FATTR_MTIME, Size: 5, Mode: 0o600, Mtime: 7, Mtimensec: 8}}
	if s := g.SetAttr(nil, &in, &attr); s != fuse.OK {
		t.Fatal(s)
	}
	if attr.Size != 5 || attr.Mode != unix.S_IFREG|0o600 || attr.Mtime != 7 || attr.Mtimensec != 8 || attr.Uid != g.uid {
		t.Errorf("attributes %+v", attr)
	}
	g.Release(nil, &fuse.ReleaseIn{Fh: fh})
	if text, err := g.content(node); text != "hello" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if got, err := os.ReadFile(filepath.Join(g.Path(), "file")); string(got) != "hello" || err != nil {
		t.Errorf("the host has %q, %v", got, err)
	}
}

func TestNames(t *testing.T) {
	g := serve(t, Config{})
	h := g.header(rootID)
	var out fuse.EntryOut
	for i, s := range []fuse.Status{
		g.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: 0o755}, "dir", &out),
		g.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFREG | 0o644}, "file", &out),
		g.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFIFO | 0o644}, "pipe", &out),
		g.Symlink(nil, &h, "../../etc/passwd", "link", &out),
	} {
		if s != fuse.OK {
			t.Fatalf("%d: %v", i, s)
		}
	}
	dir, file, link := g.must("dir"), g.must("file"), g.must("link")
	if s := g.Link(nil, &fuse.LinkIn{InHeader: g.header(dir), Oldnodeid: file}, "hard", &out); s != fuse.OK || out.NodeId != file {
		t.Errorf("link: %v, node %d, not %d", s, out.NodeId, file)
	}
	if s := g.Link(nil, &fuse.LinkIn{InHeader: g.header(dir), Oldnodeid: link}, "soft", &out); s != fuse.OK || out.NodeId != link {
		t.Errorf("link of a link: %v, node %d, not %d", s, out.NodeId, link)
	}
	if s := g.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: dir}, "file", "moved"); s != fuse.OK {
		t.Error(s)
	}
	if p, s := g.Readlink(nil, &fuse.InHeader{NodeId: link}); string(p) != "../../etc/passwd" || s != fuse.OK {
		t.Errorf("readlink %q, %v", p, s)
	}
	if got := g.list(rootID); !slices.Equal(got, []string{".", "..", "dir", "link", "pipe"}) {
		t.Errorf("the root has %v", got)
	}
	if got := g.list(dir); !slices.Equal(got, []string{".", "..", "hard", "moved", "soft"}) {
		t.Errorf("dir has %v", got)
	}
	in := g.header(dir)
	if s := g.Rmdir(nil, &h, "dir"); s != fuse.Status(unix.ENOTEMPTY) {
		t.Errorf("rmdir: %v", s)
	}
	for _, name := range []string{"hard", "moved", "soft"} {
		if s := g.Unlink(nil, &in, name); s != fuse.OK {
			t.Errorf("unlink %s: %v", name, s)
		}
	}
	if s := g.Rmdir(nil, &h, "dir"); s != fuse.OK {
		t.Error(s)
	}
	// A file without a name is still there for who has it.
	var attr fuse.AttrOut
	if s := g.GetAttr(nil, &fuse.GetAttrIn{InHeader: g.header(file)}, &attr); s != fuse.OK || attr.Nlink != 0 {
		t.Errorf("attributes of a removed file: %v, %+v", s, attr)
	}
}

// TestEscapes asks for what is not in the folder, in every way that a request has.
func TestEscapes(t *testing.T) {
	top := t.TempDir()
	write(t, filepath.Join(top, "secret"), "secret")
	write(t, filepath.Join(top, "folder/inside/file"), "file")
	g := serve(t, Config{Path: filepath.Join(top, "folder")})
	for name, target := range map[string]string{
		"relative": "../secret", "absolute": filepath.Join(top, "secret"), "up": "..", "magic": "/proc/self/root", "self": "/proc/self/fd",
	} {
		if err := os.Symlink(target, filepath.Join(g.Path(), name)); err != nil {
			t.Fatal(err)
		}
		link := g.must(name)
		if _, err := g.content(link); err != unix.ELOOP {
			t.Errorf("opening the link %s: %v", name, err)
		}
		if s := g.OpenDir(nil, &fuse.OpenIn{InHeader: g.header(link)}, new(fuse.OpenOut)); s == fuse.OK {
			t.Errorf("the link %s opens as a directory", name)
		}
		if _, err := g.walk(link, "secret"); err == nil {
			t.Errorf("a name was found in the link %s", name)
		}
		if _, s := g.OpenMap(link, 0, 4096, false); s == fuse.OK {
			t.Errorf("the link %s can be mapped", name)
		}
		// Creating over a link makes no file where it leads.
		if _, _, err := g.create(rootID, name, 0o644); err != unix.ELOOP {
			t.Errorf("creating over the link %s: %v", name, err)
		}
		h := g.header(link)
		size := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_SIZE}}
		if s := g.SetAttr(nil, &size, new(fuse.AttrOut)); s == fuse.OK {
			t.Errorf("the link %s was truncated", name)
		}
		mode := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_MODE, Mode: 0o777}}
		g.SetAttr(nil, &mode, new(fuse.AttrOut))
		g.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 1}, "user.x", []byte("x"))
	}
	for _, name := range []string{"", ".", "..", "../secret", "inside/file", "/", "/etc", "inside/../..", "a\x00b", "..\x00", strings.Repeat("x", 256)} {
		h := g.header(rootID)
		var out fuse.EntryOut
		for what, s := range map[string]fuse.Status{
			"lookup":  g.Lookup(nil, &h, name, &out),
			"mkdir":   g.Mkdir(nil, &fuse.MkdirIn{InHeader: h}, name, &out),
			"mknod":   g.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFREG}, name, &out),
			"symlink": g.Symlink(nil, &h, "x", name, &out),
			"create":  g.Create(nil, &fuse.CreateIn{InHeader: h}, name, new(fuse.CreateOut)),
			"unlink":  g.Unlink(nil, &h, name),
			"rmdir":   g.Rmdir(nil, &h, name),
			"rename":  g.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: rootID}, "inside", name),
			"from":    g.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: rootID}, name, "new"),
			"link":    g.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: g.must("inside/file")}, name, &out),
		} {
			if s != fuse.EINVAL && s != fuse.Status(unix.ENAMETOOLONG) {
				t.Errorf("%s of %q: %v", what, name, s)
			}
		}
	}
	for _, m := range []uint32{unix.S_IFCHR, unix.S_IFBLK} {
		if s := g.Mknod(nil, &fuse.MknodIn{InHeader: g.header(rootID), Mode: m | 0o666, Rdev: 0x103}, "device", new(fuse.EntryOut)); s != fuse.EPERM {
			t.Errorf("a device was made: %v", s)
		}
	}
	if got, err := os.ReadFile(filepath.Join(top, "secret")); string(got) != "secret" || err != nil {
		t.Errorf("the secret is %q, %v", got, err)
	}
	if st, err := os.Stat(filepath.Join(top, "secret")); err != nil || st.Mode() != 0o644 {
		t.Errorf("the secret's mode is %v, %v", st.Mode(), err)
	}
	all, err := os.ReadDir(top)
	if err != nil || len(all) != 2 {
		t.Errorf("beside the folder there are %v, %v", all, err)
	}
}

// TestSpecialFilesAreNotOpened: a FIFO would wait for ever.
func TestSpecialFilesAreNotOpened(t *testing.T) {
	g := serve(t, Config{})
	path := filepath.Join(g.Path(), "pipe")
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := g.content(g.must("pipe")); err != unix.ENXIO {
		t.Errorf("open: %v", err)
	}
	if _, _, err := g.create(rootID, "pipe", 0o644); err != unix.ENXIO {
		t.Errorf("create: %v", err)
	}
	if _, s := g.OpenMap(g.must("pipe"), 0, 4096, true); s == fuse.OK {
		t.Error("it can be mapped")
	}
}

// TestRacingRenames walks, reads and writes while the host turns directories on the
// way into links to a place outside, and back, and moves them in and out.
func TestRacingRenames(t *testing.T) {
	top := t.TempDir()
	root := filepath.Join(top, "folder")
	for _, dir := range []string{"folder/a/b", "outside/b"} {
		write(t, filepath.Join(top, dir, "file"), filepath.Dir(dir))
	}
	write(t, filepath.Join(top, "outside/file"), "outside")
	g := serve(t, Config{Path: root, Cached: 1})
	const rounds = 200
	var done atomic.Bool
	var attackers, walkers sync.WaitGroup
	link, real, away := filepath.Join(root, "link"), filepath.Join(root, "a"), filepath.Join(top, "away")
	if err := os.Symlink(filepath.Join(top, "outside"), link); err != nil {
		t.Fatal(err)
	}
	// By its descriptor: its name may be the link's.
	a, err := os.Open(real)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	attackers.Go(func() {
		for !done.Load() {
			// The directory and the link change places.
			_ = unix.Renameat2(unix.AT_FDCWD, real, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
		}
	})
	attackers.Go(func() {
		for !done.Load() {
			_ = unix.Renameat(int(a.Fd()), "b", unix.AT_FDCWD, away)
			_ = unix.Renameat(unix.AT_FDCWD, away, int(a.Fd()), "b")
		}
	})
	var found atomic.Int64
	for range 3 {
		walkers.Go(func() {
			for range rounds {
				for _, path := range []string{"a/b/file", "link/b/file", "a/file", "link/file"} {
					n, err := g.walk(rootID, path)
					if err != nil {
						continue
					}
					text, err := g.content(n)
					if err == nil && strings.Contains(text, "outside") {
						t.Errorf("%s holds %q", path, text)
						return
					}
					found.Add(1)
					if fh, err := g.open(n, unix.O_WRONLY|unix.O_TRUNC); err == nil {
						g.WriteV(fh, [][]byte{[]byte("mark")}, 0)
						g.Release(nil, &fuse.ReleaseIn{Fh: fh})
					}
				}
				if n, err := g.walk(rootID, "a"); err == nil {
					if _, fh, err := g.create(n, "made", 0o644); err == nil {
						g.Release(nil, &fuse.ReleaseIn{Fh: fh})
						h := g.header(n)
						g.Unlink(nil, &h, "made")
					}
				}
			}
		})
	}
	walkers.Wait()
	done.Store(true)
	attackers.Wait()
	if found.Load() == 0 {
		t.Error("nothing was ever found: the test tests nothing")
	}
	for path, want := range map[string]string{"outside/file": "outside", "outside/b/file": "outside"} {
		if got, err := os.ReadFile(filepath.Join(top, path)); string(got) != want || err != nil {
			t.Errorf("%s holds %q, %v", path, got, err)
		}
	}
	if all, err := os.ReadDir(filepath.Join(top, "outside")); err != nil || len(all) != 2 {
		t.Errorf("outside there are %v, %v", all, err)
	}
}

func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "text")
	g := serve(t, Config{Path: dir, ReadOnly: true})
	file, h := g.must("file"), g.header(rootID)
	if text, err := g.content(file); text != "text" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	fh, err := g.open(file, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	_, mapped := g.OpenMap(file, 0, 4096, true)
	_, written := g.WriteV(fh, [][]byte{{1}}, 0)
	_, copied := g.CopyFileRange(nil, &fuse.CopyFileRangeIn{FhIn: fh, FhOut: fh})
	var out fuse.EntryOut
	for what, s := range map[string]fuse.Status{
		"open":     g.Open(nil, &fuse.OpenIn{InHeader: g.header(file), Flags: unix.O_RDWR}, new(fuse.OpenOut)),
		"truncate": g.Open(nil, &fuse.OpenIn{InHeader: g.header(file), Flags: unix.O_TRUNC}, new(fuse.OpenOut)),
		"create":   g.Create(nil, &fuse.CreateIn{InHeader: h}, "new", new(fuse.CreateOut)),
		"mkdir":    g.Mkdir(nil, &fuse.MkdirIn{InHeader: h}, "new", &out),
		"mknod":    g.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFREG}, "new", &out),
		"symlink":  g.Symlink(nil, &h, "x", "new", &out),
		"link":     g.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: file}, "new", &out),
		"unlink":   g.Unlink(nil, &h, "file"),
		"rmdir":    g.Rmdir(nil, &h, "file"),
		"rename":   g.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: rootID}, "file", "new"),
		"setattr":  g.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: g.header(file)}}, new(fuse.AttrOut)),
		"setxattr": g.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: g.header(file)}, "user.x", nil),
		"rmxattr":  g.RemoveXAttr(nil, &fuse.InHeader{NodeId: file}, "user.x"),
		"allocate": g.Fallocate(nil, &fuse.FallocateIn{Fh: fh, Length: 1}),
		"map":      mapped, "write": written, "copy": copied,
	} {
		if s != fuse.EROFS {
			t.Errorf("%s: %v", what, s)
		}
	}
}

// TestBounds: a guest that takes and gives nothing back gets errors, and costs no
// more than it was given.
func TestBounds(t *testing.T) {
	dir := t.TempDir()
	for i := range 100 {
		write(t, filepath.Join(dir, fmt.Sprint("d", i%10), fmt.Sprint("f", i)), "text")
	}
	g := serve(t, Config{Path: dir, Nodes: 60, Files: 5, Cached: 7})
	before := descriptors(t)
	var known []uint64
	var failed error
	for i := range 100 {
		n, err := g.walk(rootID, fmt.Sprintf("d%d/f%d", i%10, i))
		if err != nil {
			failed = err
			continue
		}
		known = append(known, n)
	}
	if failed != unix.ENFILE || len(known) < 40 {
		t.Errorf("%d of 60 nodes, then %v", len(known), failed)
	}
	for _, n := range known {
		if text, err := g.content(n); text != "text" || err != nil {
			t.Fatalf("node %d: %q, %v", n, text, err)
		}
	}
	var open []uint64
	for _, n := range known {
		fh, err := g.open(n, unix.O_RDONLY)
		if err == nil {
			open = append(open, fh)
		} else if err != unix.ENFILE {
			t.Fatal(err)
		}
	}
	if len(open) != 5 {
		t.Errorf("%d files are open, of 5", len(open))
	}
	if more := descriptors(t) - before; more > 5+7 {
		t.Errorf("it costs %d descriptors", more)
	}
	for _, fh := range open {
		g.Release(nil, &fuse.ReleaseIn{Fh: fh})
	}
	for _, n := range known {
		g.Forget(n, 1<<40)
	}
	g.Reset()
	if s := g.Stats(); s != (Stats{Nodes: 1}) {
		t.Errorf("after Reset there are %+v", s)
	}
	if more := descriptors(t) - before; more > 0 {
		t.Errorf("%d descriptors are left", more)
	}
}

// TestForgottenParents: what a guest forgets stays as long as what is in it.
func TestForgottenParents(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a/b/c/file"), "text")
	g := serve(t, Config{Path: dir, Cached: 1})
	a, b, c, file := g.must("a"), g.must("a/b"), g.must("a/b/c"), g.must("a/b/c/file")
	for _, n := range []uint64{a, b, c} {
		g.Forget(n, 1<<20)
	}
	if text, err := g.content(file); text != "text" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := g.content(b); err != unix.ESTALE {
		t.Errorf("a forgotten node: %v", err)
	}
	g.Forget(file, 1)
	if s := g.Stats(); s.Nodes != 1 {
		t.Errorf("%d nodes are left", s.Nodes)
	}
	// Renamed by the guest, it is found where it is.
	c, file = g.must("a/b/c"), g.must("a/b/c/file")
	h := g.header(c)
	if s := g.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: rootID}, "file", "elsewhere"); s != fuse.OK {
		t.Fatal(s)
	}
	g.must("a/b") // takes the only descriptor
	if text, err := g.content(file); text != "text" || err != nil {
		t.Errorf("after the rename: %q, %v", text, err)
	}
	// Renamed by the host, it is stale, and found again by its name.
	if err := os.Rename(filepath.Join(dir, "elsewhere"), filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	g.must("a/b")
	if _, err := g.content(file); err != unix.ESTALE {
		t.Errorf("moved by the host: %v", err)
	}
	if n := g.must("again"); n != file {
		t.Errorf("it is node %d now, and was %d", n, file)
	}
	if text, err := g.content(file); text != "text" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// TestReplacedFile: another file of the same name is another node.
func TestReplacedFile(t *testing.T) {
	g := serve(t, Config{Cached: 1})
	path := filepath.Join(g.Path(), "file")
	write(t, path, "old")
	write(t, filepath.Join(g.Path(), "x/y"), "")
	old := g.must("file")
	g.must("x/y")
	write(t, path+"2", "new")
	if err := os.Rename(path+"2", path); err != nil {
		t.Fatal(err)
	}
	if _, err := g.content(old); err != unix.ESTALE {
		t.Errorf("the old file: %v", err)
	}
	if n := g.must("file"); n == old {
		t.Error("the new file has the old one's node")
	}
}

func TestXAttr(t *testing.T) {
	g := serve(t, Config{})
	write(t, filepath.Join(g.Path(), "file"), "")
	n := g.must("file")
	h := g.header(n)
	for _, name := range []string{"security.capability", "trusted.x", "system.posix_acl_access", "user"} {
		s := g.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 1}, name, []byte("x"))
		_, read := g.GetXAttr(nil, &h, name, nil)
		if want := fuse.Status(unix.EOPNOTSUPP); s != want || read != want || g.RemoveXAttr(nil, &h, name) != want {
			t.Errorf("%s: %v, %v", name, s, read)
		}
	}
	s := g.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 5}, "user.name", []byte("value"))
	if s == fuse.Status(unix.EOPNOTSUPP) {
		return // by the file system of the test's folder
	}
	p := make([]byte, 64)
	if n, s := g.GetXAttr(nil, &h, "user.name", p); string(p[:n]) != "value" || s != fuse.OK {
		t.Errorf("%q, %v", p[:n], s)
	}
	if n, s := g.ListXAttr(nil, &h, p); !bytes.Equal(p[:n], []byte("user.name\x00")) || s != fuse.OK {
		t.Errorf("%q, %v", p[:n], s)
	}
	if _, s := g.ListXAttr(nil, &h, p[:3]); s != fuse.ERANGE {
		t.Errorf("a short list: %v", s)
	}
	if s := g.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 6}, "user.name", []byte("value")); s != fuse.EINVAL {
		t.Errorf("a size beyond the data: %v", s)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "")
	for path, want := range map[string]error{filepath.Join(dir, "none"): fs.ErrNotExist, filepath.Join(dir, "file"): unix.ENOTDIR} {
		if _, err := Open(Config{Path: path}); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	before := descriptors(t)
	if f, err := Open(Config{Path: dir}); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors are left", n-before)
	}
}

func TestDataPathDoesNotAllocate(t *testing.T) {
	g := serve(t, Config{})
	_, fh, err := g.create(rootID, "file", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	bufs := make([][]byte, 300)
	for i := range bufs {
		bufs[i] = make([]byte, 4096)
	}
	n := testing.AllocsPerRun(100, func() {
		if _, s := g.WriteV(fh, bufs, 0); s != fuse.OK {
			t.Fatal(s)
		}
		if n, s := g.ReadV(fh, bufs, 0); s != fuse.OK || n != 300*4096 {
			t.Fatal(n, s)
		}
	})
	if n > 0 {
		t.Errorf("a write and a read allocate %.1f times", n)
	}
}

// TestFullDisk: the guest gets the error when it maps, or writes, and not later.
func TestHostFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	g := serve(t, Config{Path: dir})
	node, fh, err := g.create(rootID, "file", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	size := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: g.header(node), Valid: fuse.FATTR_SIZE | fuse.FATTR_FH, Fh: fh, Size: 4 << 20}}
	if s := g.SetAttr(nil, &size, new(fuse.AttrOut)); s != fuse.OK {
		t.Fatal(s)
	}
	if _, s := g.OpenMap(node, 0, 2<<20, true); s != fuse.Status(unix.ENOSPC) {
		t.Errorf("mapping what there is no room for: %v", s)
	}
	if fd, s := g.OpenMap(node, 0, 2<<20, false); s != fuse.OK {
		t.Errorf("mapping a hole to read it: %v", s)
	} else {
		unix.Close(fd)
	}
	n, s := g.WriteV(fh, [][]byte{make([]byte, 2<<20)}, 0)
	if s == fuse.OK && n == 2<<20 {
		t.Error("more was written than there is room for")
	}
	if n, s := g.WriteV(fh, [][]byte{make([]byte, 2<<20)}, int64(n)); s != fuse.Status(unix.ENOSPC) {
		t.Errorf("writing to a full disk: %d, %v", n, s)
	}
}

// TestHostOwners: as root, files belong to whom the guest says.
func TestHostOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
	g := serve(t, Config{})
	if err := os.Chmod(g.Path(), 0o755); err != nil {
		t.Fatal(err)
	}
	old := unix.Umask(0o77)
	defer unix.Umask(old)
	owned := func(name string, uid, gid, mode uint32) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(g.Path(), name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != uid || st.Gid != gid || st.Mode&permissions != mode {
			t.Errorf("%s belongs to %d:%d, mode %o; not %d:%d, %o", name, st.Uid, st.Gid, st.Mode&permissions, uid, gid, mode)
		}
	}
	g.uid, g.gid = 1234, 4321
	if _, fh, err := g.create(rootID, "file", 0o666); err != nil {
		t.Fatal(err)
	} else {
		g.Release(nil, &fuse.ReleaseIn{Fh: fh})
	}
	owned("file", 1234, 4321, 0o666)
	var out fuse.EntryOut
	if s := g.Mkdir(nil, &fuse.MkdirIn{InHeader: g.header(rootID), Mode: 0o2777}, "dir", &out); s != fuse.OK {
		t.Fatal(s)
	}
	owned("dir", 1234, 4321, 0o777) // mkdir(2) takes no set-group-ID bit
	g.uid, g.gid = 0, 0
	if s := g.Mkdir(nil, &fuse.MkdirIn{InHeader: g.header(rootID), Mode: 0o700}, "roots", &out); s != fuse.OK {
		t.Fatal(s)
	}
	owned("roots", 0, 0, 0o700)
	in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: g.header(g.must("file")), Valid: fuse.FATTR_UID | fuse.FATTR_GID, Owner: fuse.Owner{Uid: 7, Gid: 8}}}
	if s := g.SetAttr(nil, &in, new(fuse.AttrOut)); s != fuse.OK {
		t.Fatal(s)
	}
	owned("file", 7, 8, 0o666)
}
