package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"disco/integration/lab"
)

// defaultGuest finds the kernel and the initrd that `make guest` makes:
// $DISCO_KERNEL and $DISCO_INITRD, else the first folder that has them of
// lab.Places.
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
func (w *world) find(name string) string { return w.beside("guest", name) }

// beside looks for a file where a build, a user and a package put those of a kind.
func (w *world) beside(kind, name string) string {
	for _, dir := range lab.Places(kind, w.executable, w.getenv) {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// artefacts are files that a command needs, those that are missing as errors.
type artefacts struct {
	*world
	missing []error
}

// need completes *p, which a flag may have set: by the environment's variable, if
// that has a name, or by the file of that kind. What and mend are for the error.
func (a *artefacts) need(p *string, variable, kind, file, what, mend string) {
	if *p == "" && variable != "" {
		*p = a.getenv(variable)
	}
	if *p == "" {
		*p = a.beside(kind, file)
	}
	if *p == "" {
		a.missing = append(a.missing, fmt.Errorf("%s is not there: %s", what, mend))
	}
}
