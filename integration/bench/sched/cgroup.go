package sched

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// weights is a cgroup for each guest, made below one that this process may write.
type weights struct {
	root    string
	v2      bool
	folders []string
	tids    []int
}

var errNoCgroup = errors.New("no cgroup with a cpu controller can be made here")

const (
	cgroup1 = "/sys/fs/cgroup/cpu"
	cgroup2 = "/sys/fs/cgroup"
)

func newWeights() (*weights, error) {
	w := &weights{}
	name := fmt.Sprintf("disco-bench-%d", os.Getpid())
	if _, err := os.Stat(filepath.Join(cgroup1, "cpu.shares")); err == nil {
		w.root = filepath.Join(cgroup1, name)
		if err := os.Mkdir(w.root, 0o755); err != nil {
			return nil, fmt.Errorf("%w (%w)", errNoCgroup, err)
		}
		return w, nil
	}
	// Threads of one process are in several cgroups only below a threaded one
	// (Linux Documentation/admin-guide/cgroup-v2.rst, "Threads"), into which the
	// whole process goes.
	w.v2, w.root = true, filepath.Join(cgroup2, name)
	if err := os.Mkdir(w.root, 0o755); err != nil {
		return nil, fmt.Errorf("%w (%w)", errNoCgroup, err)
	}
	err := errors.Join(
		write(filepath.Join(cgroup2, "cgroup.subtree_control"), "+cpu"),
		write(filepath.Join(w.root, "cgroup.procs"), strconv.Itoa(os.Getpid())),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w (%w)", errNoCgroup, err), w.close())
	}
	return w, nil
}

func write(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }

// set puts a thread into a cgroup of its own, in a group's or directly below the root.
func (w *weights) set(name, group string, tid int, tickets int64) error {
	if err := w.make(filepath.Join(group, name), tickets); err != nil {
		return err
	}
	w.tids = append(w.tids, tid)
	file := "tasks"
	if w.v2 {
		file = "cgroup.threads"
	}
	return write(filepath.Join(w.root, group, name, file), strconv.Itoa(tid))
}

// make makes a cgroup below the root.
func (w *weights) make(name string, tickets int64) error {
	dir := filepath.Join(w.root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	w.folders = append(w.folders, dir)
	if w.v2 {
		// All below the first threaded one have to be so before they get controllers.
		err := errors.Join(
			write(filepath.Join(dir, "cgroup.type"), "threaded"),
			write(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"), "+cpu"))
		if err != nil {
			return err
		}
	}
	return w.weigh(name, tickets)
}

// weigh changes what a cgroup gets.
func (w *weights) weigh(name string, tickets int64) error {
	dir := filepath.Join(w.root, name)
	if w.v2 {
		return write(filepath.Join(dir, "cpu.weight"), strconv.FormatInt(min(tickets, 10_000), 10))
	}
	const unit = 128 // the kernel takes 2 to 262144
	return write(filepath.Join(dir, "cpu.shares"), strconv.FormatInt(tickets*unit, 10))
}

// leave puts the threads back, so that they can end whatever their weights.
func (w *weights) leave() {
	for _, tid := range w.tids {
		to := filepath.Join(cgroup1, "tasks")
		if w.v2 {
			to = filepath.Join(w.root, "cgroup.threads")
		}
		// One that has ended is out already.
		_ = write(to, strconv.Itoa(tid))
	}
}

func (w *weights) close() error {
	var errs []error
	for _, dir := range slices.Backward(w.folders) {
		errs = append(errs, os.Remove(dir))
	}
	if w.v2 {
		errs = append(errs, write(filepath.Join(cgroup2, "cgroup.procs"), strconv.Itoa(os.Getpid())))
	}
	return errors.Join(append(errs, os.Remove(w.root))...)
}
