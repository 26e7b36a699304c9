package rootfs

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

// filesystem is one that testdata/make made.
func filesystem(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// memory is an image that can be written.
type memory struct {
	*io.SectionReader
	b []byte
}

func newMemory(b []byte) *memory {
	return &memory{io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), b}
}
func (m *memory) WriteAt(p []byte, off int64) (int, error) { return copy(m.b[off:], p), nil }
func (m *memory) Stat() (os.FileInfo, error)               { return nil, errors.ErrUnsupported }
func (m *memory) Close() error                             { return nil }

const mib = 1 << 20

// withGPT is a disk of filesystems, the first as partition 14.
func withGPT(t testing.TB, block int, filesystems ...[]byte) []byte {
	t.Helper()
	b := make([]byte, mib)
	table := &gpt.Table{LogicalSectorSize: block, PhysicalSectorSize: block, ProtectiveMBR: true, GUID: "5E6B1E8A-3C43-4C4E-9D0E-6A1F5B0D15C0"}
	for i, fs := range filesystems {
		number := 14
		if i > 0 {
			number = i
		}
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: number, Type: gpt.LinuxFilesystem, GUID: fmt.Sprintf("0D15C05E-0000-4000-8000-0000000000%02X", number),
			Start: uint64(len(b) / block), End: uint64((len(b)+len(fs))/block) - 1,
		})
		b = append(b, fs...)
	}
	b = append(b, make([]byte, mib)...)
	if err := table.Write(newMemory(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	return b
}

// withMBR is the same with a table of the old kind, the first as partition 1.
func withMBR(filesystems ...[]byte) []byte {
	b := make([]byte, mib)
	le := binary.LittleEndian
	le.PutUint32(b[440:], 0x1badcafe)
	for i, fs := range filesystems {
		e := b[446+16*i:]
		e[4] = 0x83
		le.PutUint32(e[8:], uint32(len(b)/sector))
		le.PutUint32(e[12:], uint32(len(fs)/sector))
		b = append(b, fs...)
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

// checkFile reads f in pieces of odd sizes and compares it with what testdata/make
// put in, with a hole of 1 KiB blocks from lo to hi.
func checkFile(t *testing.T, f *File, size, lo, hi int) {
	t.Helper()
	if f.Size() != int64(size) {
		t.Fatalf("%s has %d bytes, not %d", f.Path(), f.Size(), size)
	}
	got := make([]byte, 0, size)
	for n := 1; len(got) < size; n = n*3 + 1 {
		p := bytes.Repeat([]byte{0xee}, min(n, size-len(got)))
		if k, err := f.ReadAt(p, int64(len(got))); k != len(p) || err != nil && err != io.EOF {
			t.Fatalf("%s: %d bytes at %d: %d, %v", f.Path(), len(p), len(got), k, err)
		}
		got = append(got, p...)
	}
	for i, c := range got {
		block := i / 1024
		want := byte(1 + block%251)
		if lo <= block && block <= hi {
			want = 0
		}
		if c != want {
			t.Fatalf("%s: byte %d (block %d) is %d, not %d", f.Path(), i, block, c, want)
		}
	}
	if n, err := f.ReadAt(make([]byte, 10), int64(size)-4); n != 4 || err != io.EOF {
		t.Errorf("%s: reading past the end: %d, %v", f.Path(), n, err)
	}
	if n, err := f.ReadAt(make([]byte, 10), int64(size)); n != 0 || err != io.EOF {
		t.Errorf("%s: reading after the end: %d, %v", f.Path(), n, err)
	}
	if _, err := f.ReadAt(make([]byte, 1), -1); err == nil {
		t.Errorf("%s: a negative offset is read", f.Path())
	}
}

func find(b []byte) (*System, error) { return Find(bytes.NewReader(b), int64(len(b))) }

func TestFind(t *testing.T) {
	root, boot, old, none := filesystem(t, "root"), filesystem(t, "boot"), filesystem(t, "old"), filesystem(t, "none")
	// A GPT whose first copy is lost is still one.
	torn := withGPT(t, 512, root)
	clear(torn[512+56 : 512+72])
	for _, c := range []struct {
		name                 string
		image                []byte
		kernel, words, place string
	}{
		{"GPT", withGPT(t, 512, root), "/vmlinuz", "root=PARTUUID=0d15c05e-0000-4000-8000-00000000000e ro", "partition 14, /vmlinuz"},
		{"GPT in blocks of 4 KiB", withGPT(t, 4096, root), "/vmlinuz", "root=PARTUUID=0d15c05e-0000-4000-8000-00000000000e ro", "partition 14, /vmlinuz"},
		{"GPT, first copy torn", torn, "/vmlinuz", "root=PARTUUID=0d15c05e-0000-4000-8000-00000000000e ro", "partition 14, /vmlinuz"},
		{"GPT, a boot partition", withGPT(t, 512, boot, none), "/vmlinuz-6.10.2", "root=PARTUUID=0d15c05e-0000-4000-8000-000000000001 ro", "partition 14, /vmlinuz-6.10.2"},
		{"GPT, an empty root first", withGPT(t, 512, none, root), "/vmlinuz", "root=PARTUUID=0d15c05e-0000-4000-8000-000000000001 ro", "partition 1, /vmlinuz"},
		{"MBR", withMBR(root), "/vmlinuz", "root=PARTUUID=1badcafe-01 ro", "partition 1, /vmlinuz"},
		{"MBR, ext2", withMBR(make([]byte, mib), old), "/boot/vmlinuz-5.4.0-10", "root=PARTUUID=1badcafe-02 ro", "partition 2, /boot/vmlinuz-5.4.0-10"},
		{"no table", old, "/boot/vmlinuz-5.4.0-10", "root=/dev/vda ro", "the whole image, /boot/vmlinuz-5.4.0-10"},
		{"a boot partition, and a root elsewhere", withMBR(boot), "/vmlinuz-6.10.2", "root=UUID=5b2c ro rootflags=subvol=root", "partition 1, /vmlinuz-6.10.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := find(c.image)
			if err != nil {
				t.Fatal(err)
			}
			if s.Kernel.Path() != c.kernel || s.Words != c.words || s.Place != c.place {
				t.Errorf("%s, %q, %q\nwant %s, %q, %q", s.Kernel.Path(), s.Words, s.Place, c.kernel, c.words, c.place)
			}
			switch s.Kernel.Path() {
			case "/vmlinuz":
				checkFile(t, s.Kernel, 300001, 8, 19)
				checkFile(t, s.Initrd, 5000, 0, -1)
			case "/vmlinuz-6.10.2":
				checkFile(t, s.Kernel, 3000, 0, -1)
				checkFile(t, s.Initrd, 4000, 0, -1)
			default:
				checkFile(t, s.Kernel, 400000, 300, 310)
				checkFile(t, s.Initrd, 1000, 0, -1)
			}
		})
	}
}

func TestFindsNothing(t *testing.T) {
	none := filesystem(t, "none")
	xfs := make([]byte, mib)
	copy(xfs, "XFSB")
	huge := withGPT(t, 512, none)
	for _, at := range []int{512, len(huge) - 512} {
		binary.LittleEndian.PutUint32(huge[at+80:], 1<<31)
	}
	for _, c := range []struct {
		name  string
		image []byte
		none  bool // ErrNoSystem
		want  string
	}{
		{"empty", make([]byte, 4096), true, "no partition table"},
		{"nothing at all", nil, true, "no partition table"},
		{"XFS", withMBR(xfs, none), true, "partition 1 is XFS, which is not read here; partition 2 is ext4 without a kernel in /boot or /"},
		{"whole XFS", xfs, true, "no partition table, and is XFS"},
		{"no partitions", withMBR(), true, "table is empty"},
		{"a table of gigabytes", huge, false, "partition table is damaged: 2147483648 entries"},
	} {
		_, err := find(c.image)
		if err == nil || errors.Is(err, ErrNoSystem) != c.none || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, which should say %q", c.name, err, c.want)
		}
	}
}

func TestWalk(t *testing.T) {
	b := filesystem(t, "none")
	v, err := openVolume(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{"/etc", ""},
		{"/up/../usr/./", ""},
		{"/../../etc", ""},
		{"/a", "more than 40 symbolic links"},
		{"/a/b", "more than 40 symbolic links"},
		{"/nothing", "file does not exist"},
		{"/up/nothing", "file does not exist"},
	} {
		n, err := v.walk(c.path)
		switch {
		case c.want == "" && (err != nil || !n.is(modeDir)):
			t.Errorf("%s: %v", c.path, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, which should say %q", c.path, err, c.want)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	ordered := []string{"", "5.4.0-9", "5.4.0-10", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.9", "6.10", "6.10-rc1", "6.010.1", "lts"}
	for i, a := range ordered {
		for j, b := range ordered {
			c := compareVersions(a, b)
			if (c < 0) != (i < j) || (c > 0) != (i > j) {
				t.Errorf("compareVersions(%q, %q) = %d", a, b, c)
			}
		}
	}
}

// TestDamage overwrites parts of images in many ways: whatever is found, nothing
// panics, hangs or is read from elsewhere than the image.
func TestDamage(t *testing.T) {
	for _, name := range []string{"root", "boot", "old"} {
		image := withGPT(t, 512, filesystem(t, name))
		for i := range 3000 {
			// A walk over the places, with steps of about the size of the fields.
			at := (i * 2654435761) % len(image)
			if i%2 == 0 {
				at = mib + i*2%(64<<10) // superblock, groups, first inodes
			}
			was := bytes.Clone(image[at:min(at+4, len(image))])
			for j := range was {
				image[at+j] = byte(0xff >> (i % 5 * 2))
			}
			exhaust(image)
			copy(image[at:], was)
		}
	}
}

// exhaust reads all that an image boots.
func exhaust(image []byte) {
	s, err := find(image)
	if err != nil {
		return
	}
	for _, f := range []*File{s.Kernel, s.Initrd} {
		if f != nil {
			io.Copy(io.Discard, io.LimitReader(io.NewSectionReader(f, 0, f.Size()), 16*mib))
		}
	}
}

func FuzzFind(f *testing.F) {
	for _, name := range []string{"root", "boot", "old", "none"} {
		for at := range uint32(4) {
			f.Add(name, at*1024, []byte{0xff, 0xff})
		}
	}
	images := map[string][]byte{}
	for _, name := range []string{"root", "boot", "old", "none"} {
		images[name] = filesystem(f, name)
	}
	// The images are large and mostly empty, so what is fuzzed is a change of one.
	f.Fuzz(func(t *testing.T, name string, at uint32, change []byte) {
		image := bytes.Clone(images[name])
		if len(image) == 0 {
			return
		}
		copy(image[int(at)%len(image):], change)
		exhaust(image)
		exhaust(withMBR(image))
	})
}
