package initramfs

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// module compiles a file that has nothing of a kernel module but its .modinfo.
func module(t *testing.T, dir, name string, info ...string) {
	t.Helper()
	var src strings.Builder
	src.WriteString(".section .modinfo,\"a\"\n")
	for _, i := range info {
		src.WriteString(".asciz \"" + i + "\"\n")
	}
	out := filepath.Join(dir, name+".ko")
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("as", "-o", out, "-")
	cmd.Stdin = strings.NewReader(src.String())
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("as: %v\n%s", err, msg)
	}
}

func TestResolveModules(t *testing.T) {
	root := t.TempDir()
	module(t, root, "kernel/virtio", "license=GPL")
	module(t, root, "kernel/virtio_ring", "depends=virtio")
	module(t, root, "kernel/drivers/virtio-blk", "depends=virtio,virtio_ring")
	module(t, root, "kernel/net_failover", "depends=")
	module(t, root, "kernel/virtio_net", "depends=virtio_ring", "softdep=pre: net-failover absent post: virtio_blk")
	module(t, root, "kernel/round", "softdep=pre: trip")
	module(t, root, "kernel/trip", "softdep=pre: round")
	module(t, root, "kernel/broken", "depends=nowhere")
	if err := os.WriteFile(filepath.Join(root, "modules.builtin"), []byte("kernel/net/packet/af-packet.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "kernel/text.ko"), []byte("not a module"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		names []string
		want  string
		err   string
	}{
		{names: []string{"virtio_blk"}, want: "virtio.ko virtio_ring.ko virtio-blk.ko"},
		{names: []string{"virtio-net", "virtio_blk"}, want: "net_failover.ko virtio.ko virtio_ring.ko virtio_net.ko virtio-blk.ko"},
		{names: []string{"af_packet", "virtio"}, want: "virtio.ko"},
		{names: []string{"round"}, want: "trip.ko round.ko"},
		{names: []string{"missing"}, err: "missing is not under"},
		{names: []string{"broken"}, err: "nowhere, which broken needs"},
		{names: []string{"text"}, err: "text.ko"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.names, ","), func(t *testing.T) {
			tree, err := ReadTree(root)
			if err != nil {
				t.Fatal(err)
			}
			modules, err := tree.Resolve(tt.names...)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range modules {
				got = append(got, filepath.Base(m.File))
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
	if _, err := ReadTree(filepath.Join(root, "none")); err == nil {
		t.Error("no error for a tree that is not there")
	}
}

func TestModulesAreUnpacked(t *testing.T) {
	root := t.TempDir()
	module(t, root, "plain", "license=GPL", "depends=packed-xz,packed_zst")
	for _, ext := range []string{"gz", "xz", "zst"} {
		module(t, root, "packed_"+ext, "depends=packed-gz")
		pack(t, filepath.Join(root, "packed_"+ext+".ko"), ext)
	}
	tree, err := ReadTree(root)
	if err != nil {
		t.Fatal(err)
	}
	modules, err := tree.Resolve("plain")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := NewWriter(&b)
	if err := errors.Join(w.Modules("lib/modules", modules), w.Close()); err != nil {
		t.Fatal(err)
	}
	r := cpio.NewReader(&b)
	for _, want := range []string{"lib", "lib/modules", "packed_gz", "packed_xz", "packed_zst", "plain"} {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Mode.IsDir() {
			continue
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != "lib/modules/"+want+".ko" || !bytes.HasPrefix(body, []byte(elf.ELFMAG)) {
			t.Errorf("got %s beginning %q, want an ELF image of %s", h.Name, body[:4], want)
		}
	}
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	list, err := io.ReadAll(r)
	if err != nil || string(list) != "packed_gz.ko\npacked_xz.ko\npacked_zst.ko\nplain.ko\n" {
		t.Errorf("order %q, %v", list, err)
	}
}

// pack replaces a file by its compressed form.
func pack(t *testing.T, file, ext string) {
	t.Helper()
	plain, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(file + "." + ext)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var w io.WriteCloser
	switch ext {
	case "gz":
		w = gzip.NewWriter(out)
	case "xz":
		w, err = xz.NewWriter(out)
	case "zst":
		w, err = zstd.NewWriter(out)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), os.Remove(file)); err != nil {
		t.Fatal(err)
	}
}
