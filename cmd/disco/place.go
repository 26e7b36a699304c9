package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"disco/host"
	"disco/integration/lab"
	"disco/vmm"
)

// place decides where the guest runs: true for the lab. An error says that it
// runs nowhere.
func (r *run) place() (inLab bool, err error) {
	switch r.where {
	case "here":
		return false, nil
	case "lab":
		return true, nil
	}
	missing := host.FirstMissing(r.guests())
	if missing == nil {
		return false, nil
	}
	if problems := r.labMissing(); problems != nil {
		return false, &vmm.HostError{Err: errors.Join(append([]error{
			fmt.Errorf("guests cannot run here: %s: %s; %s", missing.Name, missing.Found, missing.Mend),
			errors.New("the lab, which could run them, is not complete"),
		}, problems...)...)}
	}
	fmt.Fprintf(r.stderr, "disco: %s: %s; running in the lab, which emulates a host (see disco check; --host here insists)\n", missing.Name, missing.Found)
	return true, nil
}

// labAllowance is how long the lab may take besides the guest.
const labAllowance = 3 * time.Minute

// labReserve is the memory of a lab besides its guest's, in bytes.
const labReserve = 1 << 30

// inLab runs the same guest in the lab.
func (r *run) inLab(ctx context.Context) error {
	exe, err := r.executable()
	if err != nil {
		return err
	}
	cwd, err := os.Getwd()
	if err == nil {
		cwd, err = filepath.EvalSymlinks(cwd)
	}
	if err != nil {
		return fmt.Errorf("current folder: %w", err)
	}
	if problems := r.beyondLab(cwd); problems != nil {
		return &vmm.HostError{Err: errors.Join(problems...)}
	}
	o := lab.Options{
		Command: append([]string{exe, "run"}, r.args("here")...),
		Dir:     cwd,
		Verbose: r.verbose,
		Grace:   r.cfg.Grace + time.Minute,
	}
	if need := r.cfg.Memory + labReserve; need > 3<<30 {
		o.Memory = (need + 1<<30 - 1) &^ (1<<30 - 1)
	}
	for _, n := range r.cfg.Nets {
		for _, f := range n.Forwards {
			o.Forwards = append(o.Forwards, lab.Forward{Host: f.HostPort, Lab: f.HostPort})
		}
	}
	if !r.cfg.KASLR {
		// Ten times quicker here than in an emulated machine.
		vmm.CacheKernel(r.cfg.Kernel)
	}
	if r.cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.cfg.Timeout+labAllowance)
		defer cancel()
	}
	err = r.enterLab(ctx, o)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &exitError{vmm.ExitTimeout, fmt.Errorf("the lab was still running %v after --timeout", labAllowance)}
	}
	return err
}

// beyondLab finds what the guest would not have in the lab, where this
// machine's files are read-only except those under cwd, its devices absent, and
// its sockets out of reach.
func (r *run) beyondLab(cwd string) []error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	readOnly := func(noun, path, mend string) {
		if !under(cwd, path) {
			add("%s %s: it would be read-only in the lab, which shares only the current folder; %s", noun, path, mend)
		}
	}
	for _, d := range r.cfg.Disks {
		st, err := os.Stat(d.Path)
		switch {
		case err == nil && st.Mode().Type() == fs.ModeDevice:
			add("disk %s: the lab does not have this host's devices; use an image file", d.Path)
		case !d.ReadOnly:
			readOnly("disk", d.Path, "start from the disk's folder, or give it with ,ro")
		}
	}
	if r.report != "" {
		readOnly("report", r.report, "name a file under it")
	}
	if r.cfg.Vsock != "" {
		add("vsock %s: a socket made in the lab cannot be reached from here; start the program that uses it in the lab too (disco lab -- …)", r.cfg.Vsock)
	}
	for _, n := range r.cfg.Nets {
		if n.Kind == vmm.NetTap {
			add("net tap %s: the lab does not have this host's interfaces; use --net user", n.Tap)
		}
		for _, f := range n.Forwards {
			addr, err := netip.ParseAddr(f.HostAddr)
			if f.Proto != "tcp" || f.HostAddr != "" && (err != nil || !addr.IsLoopback()) {
				add("net forward %s: only tcp from 127.0.0.1 is carried into the lab", f)
			}
		}
	}
	return problems
}

// under says whether path, or where it would be made, is in the folder dir,
// which has no symbolic links.
func under(dir, path string) bool {
	path, err := filepath.Abs(path)
	if err != nil {
		return false
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if real, err = filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			real = filepath.Join(real, filepath.Base(path))
		}
	}
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(dir, real)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
