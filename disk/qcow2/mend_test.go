package qcow2_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"disco/disk"
)

// TestHostQEMULazy: images that QEMU left dirty, its refcounts not written, are given
// new ones when they are opened to be written, and hold what QEMU's own repair finds.
func TestHostQEMULazy(t *testing.T) {
	for _, c := range []struct {
		options  string
		snapshot bool
		args     []string // of the qemu-img convert that it begins with
	}{
		{options: "cluster_size=64k"},
		{options: "cluster_size=512"}, // more clusters than the refcount table is for
		{options: "cluster_size=4k,refcount_bits=1"},
		{options: "cluster_size=4k,refcount_bits=64", snapshot: true},
		{options: "cluster_size=64k", snapshot: true},
		{options: "cluster_size=1k,compression_type=zstd", snapshot: true, args: []string{"-c"}},
		{options: "cluster_size=2M", args: []string{"-c"}},
	} {
		t.Run(fmt.Sprint(c.options, c.snapshot), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "q")
			raw(t, filepath.Join(dir, "raw"), 4<<20, 1)
			args := append([]string{"convert", "-O", "qcow2", "-o", "lazy_refcounts=on," + c.options}, c.args...)
			qemu(t, dir, "qemu-img", append(args, "raw", "q")...)
			if c.snapshot {
				qemu(t, dir, "qemu-img", "snapshot", "-c", "before", "q")
			}
			out, err := tryQEMU(t, dir, "qemu-io", "-c", "write -P 7 1M 1M", "-c", "write -P 9 3000k 64k", "-c", "discard 2M 2M", "-c", "write -P 3 2100k 1M", "-c", "flush", "-c", "sigraise 9", "q")
			if err == nil {
				t.Fatalf("qemu-io lives on: %s", out)
			}
			if !dirty(t, path) {
				t.Fatal("the image is not dirty")
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			theirs := filepath.Join(dir, "theirs")
			if err := os.WriteFile(theirs, b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, _ = tryQEMU(t, dir, "qemu-img", "check", "-r", "all", "theirs") // says by its status that there was something
			qemu(t, dir, "qemu-img", "convert", "-O", "raw", "theirs", "want")
			want, err := os.ReadFile(filepath.Join(dir, "want"))
			if err != nil {
				t.Fatal(err)
			}

			img := open(t, path, disk.Options{ReadOnly: true})
			reads(t, img, want)
			closes(t, img)
			if !dirty(t, path) {
				t.Fatal("reading it has changed it")
			}
			img = open(t, path, disk.Options{})
			reads(t, img, want)
			closes(t, img)
			checks(t, path)
			img = open(t, path, disk.Options{})
			scribble(t, img, want, 3, 60)
			reads(t, img, want)
			closes(t, img)
			checks(t, path)
			if c.snapshot {
				qemu(t, dir, "qemu-img", "convert", "-l", "before", "-O", "raw", "q", "got")
				got, err := os.ReadFile(filepath.Join(dir, "got"))
				before, errBefore := os.ReadFile(filepath.Join(dir, "raw"))
				if err != nil || errBefore != nil || !bytes.Equal(got, before) {
					t.Errorf("the snapshot differs (%v, %v)", err, errBefore)
				}
			}
		})
	}
}

// dirty reads the mark in an image's header.
func dirty(t *testing.T, path string) bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b[79]&1 != 0
}
