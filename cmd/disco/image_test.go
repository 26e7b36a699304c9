package main

import (
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"disco/vmm"
)

func TestRoot(t *testing.T) {
	dir := t.TempDir()
	image, other, kept := touch(t, filepath.Join(dir, "debian.raw")), touch(t, filepath.Join(dir, "d.img")), filepath.Join(dir, "kept.qcow2")
	inMemory := vmm.Disk{Path: image, Overlay: vmm.OverlayMemory}
	for _, c := range []struct {
		args     string
		disks    []vmm.Disk
		fromDisk bool
		says     string
	}{
		{"--root " + image, []vmm.Disk{inMemory}, true, ""},
		{"--disk " + other + " --root " + image, []vmm.Disk{inMemory, {Path: other}}, true, ""},
		{"--root " + image + ",ro", []vmm.Disk{{Path: image, ReadOnly: true}}, true, ""},
		{"--root " + image + " --kernel " + other, []vmm.Disk{inMemory}, false, ""},
		{"--root " + image + " --persist " + kept, []vmm.Disk{{Path: image, Overlay: vmm.OverlayPersist, Persist: kept}}, true, ""},
		{"--persist " + kept, nil, false, "persist " + kept + ": it keeps what the guest writes to --root; give that too"},
		{"--root " + image + ",ro --persist " + kept, nil, false, "a read-only disk needs no overlay"},
		{"--root " + image + " --initrd " + other, nil, false, "give one or the other"},
		{"--root " + image + " --cloud-init " + kept, nil, false, "cloud-init " + kept + ": no such file"},
	} {
		w := newWorld(t)
		code := w.disco(append([]string{"run", "--host", "here"}, strings.Fields(c.args)...)...)
		if c.says != "" {
			if code != 2 || !strings.Contains(w.err.String(), c.says) {
				t.Errorf("%s: exit code %d, says %s", c.args, code, &w.err)
			}
			continue
		}
		if code != 0 || !reflect.DeepEqual(w.built.Disks, c.disks) || w.built.FromDisk != c.fromDisk {
			t.Errorf("%s: exit code %d, %+v %s", c.args, code, w.built, &w.err)
		}
	}
}

// TestRootInLab looks at what a lab is told to run, and what cannot be there.
func TestRootInLab(t *testing.T) {
	dir := t.TempDir()
	image := touch(t, filepath.Join(dir, "debian.raw"))
	w := newWorld(t)
	if code := w.disco("run", "--host", "lab", "--root", image, "--cloud-init", dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	want := fmt.Sprintf("--root %s --cloud-init %s", image, dir)
	if got := strings.Join(w.lab.Command, " "); !strings.Contains(got, want) || strings.Contains(got, "--kernel") || strings.Contains(got, "--disk") {
		t.Errorf("it runs %s", got)
	}
	w = newWorld(t)
	if code := w.disco("run", "--host", "lab", "--root", image, "--persist", filepath.Join(dir, "kept.qcow2")); code != 3 || !strings.Contains(w.err.String(), "read-only in the lab") {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
}
