package folder

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/posixtest"
)

// mountable has what this kernel asks of a file system by way of /dev/fuse, and
// virtio/fs answers itself.
type mountable struct{ *Folder }

func (m mountable) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, s := m.ReadV(in.Fh, [][]byte{buf}, int64(in.Offset))
	return fuse.ReadResultData(buf[:n]), s
}

func (m mountable) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	n, s := m.WriteV(in.Fh, data, int64(in.Offset))
	return uint32(n), s
}

// mount mounts a folder here, as a guest does there.
func mount(t testing.TB) string {
	t.Helper()
	g := serve(t, Config{})
	at := t.TempDir()
	server, err := fuse.NewServer(mountable{g.Folder}, at, &fuse.MountOptions{
		DirectMountStrict: true, Options: []string{"default_permissions"}, AllowOther: true,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_ALLOW_IDMAP | fuse.CAP_NO_OPEN_SUPPORT,
		MaxWrite:             1 << 20,
	})
	if err != nil {
		t.Fatalf("this test needs root and /dev/fuse: %v", err)
	}
	go server.Serve()
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
		server.Wait()
	})
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	return at
}

// notPosix are tests of what a shared folder does not do.
var notPosix = map[string]string{
	"FcntlFlockLocksFile": "locks stay within a guest",
	"Tmpfile":             "there are no files without a name (O_TMPFILE)",
	"XAttrLarge":          "the file systems that tests run on have no large attributes",
}

// TestHostPosix mounts a folder on this machine and tries on it what POSIX says of
// files. The same tests run in a guest: make test-folder.
func TestHostPosix(t *testing.T) {
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if why := notPosix[name]; why != "" {
				t.Logf("not tried: %s", why)
				return
			}
			test(t, mount(t))
		})
	}
}
