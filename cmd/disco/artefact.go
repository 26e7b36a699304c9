package main

import (
	"errors"
	"os"
	"path/filepath"
)

// defaultGuest finds the kernel and the initrd that `make guest` makes:
// $DISCO_KERNEL and $DISCO_INITRD, else the first folder that has them of
// ../build/guest next to the executable's folder, $XDG_DATA_HOME/disco/guest and
// /usr/share/disco/guest.
func (w *world) defaultGuest() (kernel, initrd string, err error) {
	kernel, initrd = w.getenv("DISCO_KERNEL"), w.getenv("DISCO_INITRD")
	if kernel == "" {
		kernel = w.find("vmlinuz")
	}
	if initrd == "" {
		initrd = w.find("initrd.img")
	}
	if kernel == "" || initrd == "" {
		return "", "", errors.New("the default guest is not there: run `make guest` in disco's source tree, or set DISCO_KERNEL and DISCO_INITRD to a kernel and an initrd of your own")
	}
	return kernel, initrd, nil
}

// find looks for a file of the default guest; "" if it is nowhere.
func (w *world) find(name string) string {
	for _, dir := range w.guestDirs() {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

func (w *world) guestDirs() []string {
	var dirs []string
	if exe, err := w.executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		dirs = append(dirs, filepath.Join(filepath.Dir(exe), "..", "build", "guest"))
	}
	if data := w.getenv("XDG_DATA_HOME"); data != "" {
		dirs = append(dirs, filepath.Join(data, "disco", "guest"))
	} else if home := w.getenv("HOME"); home != "" {
		dirs = append(dirs, filepath.Join(home, ".local", "share", "disco", "guest"))
	}
	return append(dirs, "/usr/share/disco/guest")
}
