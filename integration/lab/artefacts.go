package lab

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// artefacts are the files that a lab is made of.
type artefacts struct {
	qemu    string
	kernel  string
	modules string
	init    string
}

// locate finds the artefacts; init may be empty for the running program. All that is
// missing is said at once.
func locate(init string) (artefacts, []error) {
	var a artefacts
	var problems []error
	note := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	var err error
	a.qemu, err = findQEMU()
	note(err)
	a.kernel, err = find("vmlinuz", "DISCO_LAB_KERNEL", "kernel", fs.FileMode.IsRegular)
	note(err)
	a.modules, err = find("modules", "DISCO_LAB_MODULES", "kernel modules", fs.FileMode.IsDir)
	note(err)
	a.init, err = findInit(init)
	note(err)
	return a, problems
}

// Prerequisites returns what this host lacks for a lab, each in one line that says
// how to mend it; nil if it lacks nothing.
func Prerequisites() []error {
	_, problems := locate("")
	return problems
}

// findQEMU returns the QEMU that DISCO_QEMU names, that was fetched for the lab, or
// that is installed.
func findQEMU() (string, error) {
	if q := os.Getenv("DISCO_QEMU"); q != "" {
		path, err := exec.LookPath(q)
		if err != nil {
			return "", fmt.Errorf("lab: QEMU: DISCO_QEMU=%s: %w", q, err)
		}
		return path, nil
	}
	const name = "qemu-system-x86_64"
	for _, dir := range Places("lab", os.Executable, os.Getenv) {
		if path, err := exec.LookPath(filepath.Join(dir, "qemu", name)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", errors.New("lab: QEMU: " + name + " was not found: run \"make lab\", or set DISCO_QEMU to it")
	}
	return path, nil
}

// find looks for an artefact where the variable says, and otherwise in its Places.
func find(name, variable, what string, right func(fs.FileMode) bool) (string, error) {
	try := func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && right(info.Mode())
	}
	if path := os.Getenv(variable); path != "" {
		if !try(path) {
			return "", fmt.Errorf("lab: %s: %s=%s: no such thing: run \"make lab\", or set %s to one", what, variable, path, variable)
		}
		return path, nil
	}
	for _, dir := range Places("lab", os.Executable, os.Getenv) {
		if path := filepath.Join(dir, name); try(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("lab: %s: %s was not found: run \"make lab\", or set %s to one of a Linux with 9p (Debian's linux-image-amd64)", what, name, variable)
}

// Places are the folders in which a build, a user and a package put disco's files of
// a kind ("lab" or "guest"), in the order in which they are to be looked at: beside
// the folder of the executable, in the user's data, in the system's.
func Places(kind string, executable func() (string, error), getenv func(string) string) []string {
	var dirs []string
	if exe, err := executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		dirs = append(dirs, filepath.Join(filepath.Dir(exe), "..", "build", kind))
	}
	if data := getenv("XDG_DATA_HOME"); data != "" {
		dirs = append(dirs, filepath.Join(data, "disco", kind))
	} else if home := getenv("HOME"); home != "" {
		dirs = append(dirs, filepath.Join(home, ".local", "share", "disco", kind))
	}
	return append(dirs, filepath.Join("/usr/share/disco", kind))
}

// findInit returns the program that is to be the lab's first process, having made sure
// that it can run where there are no libraries.
func findInit(path string) (string, error) {
	if path == "" {
		exe, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("lab: init: %w", err)
		}
		path = exe
	}
	f, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("lab: init: %s: %w", path, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return "", fmt.Errorf("lab: init: %s is for %s: build it with GOARCH=amd64", path, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", fmt.Errorf("lab: init: %s is linked dynamically: build it with CGO_ENABLED=0 (\"make build\")", path)
		}
	}
	return path, nil
}
