package seed

import (
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/filesystem/fat12"
)

const config = "#cloud-config\nhostname: x\n"

// folder makes a folder of files.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for n, text := range files {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRead(t *testing.T) {
	whole := folder(t, map[string]string{"user-data": config, "meta-data": "instance-id: i\n", "network-config": "version: 2\n", "README": "not mine"})
	files, err := Read(whole, "web")
	if err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(maps.Keys(files)); !slices.Equal(names, []string{"meta-data", "network-config", "user-data"}) {
		t.Errorf("files %v", names)
	}
	if string(files["meta-data"]) != "instance-id: i\n" {
		t.Errorf("its own meta-data became %q", files["meta-data"])
	}

	ids := map[string]bool{}
	for _, c := range []struct{ path, name, host string }{
		{filepath.Join(whole, "user-data"), "web", "web"},
		{folder(t, map[string]string{"user-data": ""}), "", "disco"},
	} {
		files, err := Read(c.path, c.name)
		if err != nil {
			t.Fatal(err)
		}
		id, host, _ := strings.Cut(string(files["meta-data"]), "\n")
		if host != "local-hostname: "+c.host+"\n" || !strings.HasPrefix(id, "instance-id: disco-") || ids[id] {
			t.Errorf("%s: meta-data %q", c.path, files["meta-data"])
		}
		ids[id] = true
	}
}

func TestReadRefuses(t *testing.T) {
	long := strings.Repeat("x", maxFiles)
	for _, c := range []struct{ path, want string }{
		{filepath.Join(t.TempDir(), "nothing"), "no such file"},
		{t.TempDir(), "no file user-data"},
		{folder(t, map[string]string{"user-data": "hostname: x\n"}), `begin with "hostname: x", which cloud-init would ignore`},
		{folder(t, map[string]string{"user-data": config + long}), "more than 1024 KiB"},
		{folder(t, map[string]string{"user-data": config, "vendor-data": long}), "more than 1024 KiB"},
		{"/dev/null", "not a regular file"},
	} {
		if _, err := Read(c.path, ""); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %v, which should say %q", c.path, err, c.want)
		}
	}
}

func TestNew(t *testing.T) {
	files := Files{"user-data": []byte(config + strings.Repeat("a line\n", 100000)), "meta-data": []byte("instance-id: i\n"), "vendor-data": {}}
	d, err := New(files)
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(files)
	if err != nil || !bytes.Equal(d.bytes, again.bytes) {
		t.Errorf("the same files make another disk (%v)", err)
	}
	b := make([]byte, d.Size())
	if err := d.ReadV([][]byte{b[:512], b[512:]}, 0); err != nil {
		t.Fatal(err)
	}
	v, err := fat12.Read(&image{SectionReader: io.NewSectionReader(bytes.NewReader(b), 0, size)}, size, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(v.Label()); got != label {
		t.Errorf("label %q", got)
	}
	for n, want := range files {
		if got, err := v.ReadFile("/" + n); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", n, len(got), err)
		}
	}
}

func TestDiskIsReadOnly(t *testing.T) {
	d, err := New(Files{})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 512)
	if d.WriteV([][]byte{p}, 0) == nil || d.Discard(0, 512) == nil || d.WriteZeroes(0, 512, true) == nil || !d.ReadOnly() {
		t.Error("the seed disk can be written")
	}
	for _, off := range []int64{-512, size, size - 256} {
		if d.ReadV([][]byte{p}, off) == nil {
			t.Errorf("read at %d", off)
		}
	}
}
