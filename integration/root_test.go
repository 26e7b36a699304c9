package integration

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

// rootDisk makes an image as distributions make them: a GPT with an ext4 root, in
// its /boot a kernel and an initrd, which are the default guest's, and the links to
// them. An older kernel that is none lies beside.
func rootDisk(t testing.TB) string {
	t.Helper()
	const mib = 1 << 20
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		t.Fatalf("this test makes a filesystem: %v; install e2fsprogs", err)
	}
	root, path := t.TempDir(), filepath.Join(t.TempDir(), "root.img")
	for _, dir := range []string{"boot", "etc", "usr"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, from := range map[string]string{"boot/vmlinuz-6.10": guestKernel(t), "boot/initrd.img-6.10": guestInitrd(t), "boot/vmlinuz-6.9": "/dev/null"} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"vmlinuz": "boot/vmlinuz-6.10", "initrd.img": "boot/initrd.img-6.10"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 64 * mib
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(mke2fs, "-q", "-F", "-t", "ext4", "-E", fmt.Sprintf("offset=%d,lazy_itable_init=0", mib), "-d", root, path, fmt.Sprintf("%dk", size/1024-2048)).CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	table := gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, Partitions: []*gpt.Partition{
		{Index: 1, Type: gpt.LinuxRootX86_64, Name: "root", GUID: "0D15C05E-0000-4000-8000-000000000001", Start: mib / 512, End: (size-mib)/512 - 1},
	}}
	if err := table.Write(f, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// digest is that of a file's contents.
func digest(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestLabRoot boots what an image holds, twice: the guest restarts. The image
// stays as it was, whatever the guest writes, and the disk for cloud-init comes last.
func TestLabRoot(t *testing.T) {
	image, mark := rootDisk(t), testDisk(t, "mark", 64<<10)
	was := digest(t, image)
	user := filepath.Join(t.TempDir(), "user-data")
	if err := os.WriteFile(user, []byte("#cloud-config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := disco(t, "run", "--host", "here", "--net", "none", "--memory", "256M", "--root", image, "--disk", mark, "--cloud-init", user,
		"--cmdline", "disco.task=hello,reboot-once=vdb,disk-zero=vda").start()
	l.says("root=PARTUUID=0d15c05e-0000-4000-8000-000000000001 ro")
	l.says("disk=vda bytes=67108864 readonly=0")
	l.says("disk=vdc bytes=2097152 readonly=1")
	l.ends(0)
	l.says("rebooted=1")
	l.did("hello", "reboot-once", "disk-zero")
	if digest(t, image) != was {
		t.Error("the image has changed")
	}
}
