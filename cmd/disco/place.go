package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"disco/host"
	"disco/integration/lab"
	"disco/vmm"
)

// place decides where guests run: true for the lab. An error says that they run
// nowhere.
func (w *world) place(where string) (inLab bool, err error) {
	switch where {
	case "here":
		return false, nil
	case "lab":
		return true, nil
	}
	missing := host.FirstMissing(w.guests())
	if missing == nil {
		return false, nil
	}
	if problems := w.labMissing(); problems != nil {
		return false, &vmm.HostError{Err: errors.Join(append([]error{
			fmt.Errorf("guests cannot run here: %s: %s; %s", missing.Name, missing.Found, missing.Mend),
			errors.New("the lab, which could run them, is not complete"),
		}, problems...)...)}
	}
	fmt.Fprintf(w.stderr, "disco: %s: %s; running in the lab, which emulates a host (see disco check; --host here insists)\n", missing.Name, missing.Found)
	return true, nil
}

// labAllowance is how long the lab may take besides the guest.
const labAllowance = 3 * time.Minute

// labReserve is the memory of a lab besides its guest's, in bytes.
const labReserve = 1 << 30

// inLab runs the same guest, or guests, in the lab.
func (r *run) inLab(ctx context.Context) error {
	args := append([]string{"run"}, r.args("here")...)
	runs := slices.Repeat([]*run{r}, r.count)
	return r.runInLab(ctx, args, runs, map[string]string{"report": r.report}, r.outside.beyondLab(), r.verbose)
}

// runInLab runs guests in the lab, by args. Files that it is to write there, by
// their nouns, may be empty; problems are known already.
func (w *world) runInLab(ctx context.Context, args []string, runs []*run, written map[string]string, problems []error, verbose bool) error {
	exe, err := w.executable()
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
	o := lab.Options{Command: append([]string{exe}, args...), Dir: cwd, Verbose: verbose}
	need, limited, timeout := uint64(labReserve), true, time.Duration(0)
	told := map[string]bool{}
	for _, r := range runs {
		for _, p := range r.beyondLab(cwd) {
			if !told[p.Error()] { // by another guest
				told[p.Error()] = true
				problems = append(problems, p)
			}
		}
		need += r.cfg.Memory
		limited = limited && r.cfg.Timeout > 0
		timeout = max(timeout, r.cfg.Timeout)
		o.Grace = max(o.Grace, r.cfg.Grace+time.Minute)
		for _, n := range r.cfg.Nets {
			for _, f := range n.Forwards {
				o.Forwards = append(o.Forwards, lab.Forward{Host: f.HostPort, Lab: f.HostPort})
			}
		}
	}
	for _, noun := range slices.Sorted(maps.Keys(written)) {
		if path := written[noun]; path != "" && !under(cwd, path) {
			problems = append(problems, readOnlyInLab(noun, path, "name one under it"))
		}
	}
	if problems != nil {
		return &vmm.HostError{Err: errors.Join(problems...)}
	}
	if need > 3<<30 {
		o.Memory = (need + 1<<30 - 1) &^ (1<<30 - 1)
	}
	unpacked := map[string]bool{}
	for _, r := range runs {
		path, unpack := r.cfg.Kernel, func() { vmm.CacheKernel(r.cfg.Kernel) }
		if r.cfg.FromDisk {
			path, unpack = r.cfg.Disks[0].Path, func() { vmm.CacheRoot(r.cfg.Disks[0]) }
		}
		if !r.cfg.KASLR && !unpacked[path] {
			unpack() // ten times quicker here than in an emulated machine
			unpacked[path] = true
		}
	}
	if limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout+labAllowance)
		defer cancel()
	}
	err = w.enterLab(ctx, o)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &exitError{vmm.ExitTimeout, fmt.Errorf("the lab was still running %v after --timeout", labAllowance)}
	}
	return err
}

func readOnlyInLab(noun, path, mend string) error {
	return fmt.Errorf("%s %s: it would be read-only in the lab, which shares only the current folder; %s", noun, path, mend)
}

// beyondLab finds what the guest would not have in the lab, where this
// machine's files are read-only except those under cwd, its devices absent, and
// its sockets out of reach.
func (r *run) beyondLab(cwd string) []error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	for _, d := range r.cfg.Disks {
		st, err := os.Stat(d.Path)
		switch {
		case err == nil && st.Mode().Type() == fs.ModeDevice:
			add("disk %s: the lab does not have this host's devices; use an image file", d.Path)
		case !d.ReadOnly && d.Overlay == vmm.OverlayNone && !under(cwd, d.Path):
			problems = append(problems, readOnlyInLab("disk", d.Path, "start from the disk's folder, or give it with ,ro"))
		case d.Persist != "" && !under(cwd, d.Persist):
			problems = append(problems, readOnlyInLab("persist", d.Persist, "name a file under it"))
		}
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
