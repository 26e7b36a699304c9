package vmm

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"disco/memory"
	"disco/memory/arena"
	"disco/vmm/boot"
)

// shareKernel gives a guest the constants of its kernel out of the buffer cache, where
// the other guests of this kernel have them: a third of what a Linux has loaded, that
// it writes next to nothing of.
//
// The rest of a kernel is not worth it: of Linux's code, most pages are patched while
// it boots, each of which a guest would be given a copy of at the price of a fault. Nor
// are there shared constants for a guest on several nodes, which has copies of its own
// made on each; shared pages stay where they are.
//
// The second result ends it, when the kernel is loaded.
func (s *bases) shareKernel(space *memory.Space, i *image, p *place, cfg *Config, log *slog.Logger) (boot.Share, func() error) {
	if i.file == nil || !space.CanShare() || len(p.nodes) > 1 {
		return nil, func() error { return nil }
	}
	b, err := s.kernel(i.file)
	if err != nil {
		log.Info("the guest has its kernel for itself", "reason", err)
		return nil, func() error { return nil }
	}
	from := b.From(s.near(p, cfg))
	share := func(at memory.GPA, off, n int64) (done int64) {
		for done < n {
			run, _ := from.Lend(off+done, n-done)
			mapped := run.N
			if run.N == 0 || space.Share(memory.PPN((int64(at)+done)/arena.PageSize), run) != nil {
				mapped = 0
			}
			from.Return(run, mapped)
			if mapped == 0 {
				break // reading has the reason, or does it
			}
			done += int64(mapped) * arena.PageSize
		}
		return done
	}
	return share, func() error { return s.put(b) }
}

// kernel is the base of a kernel's file, which is opened once more: pages are read as
// long as any guest comes to need them.
func (s *bases) kernel(f *os.File) (*base, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return s.find(baseKey{kernel: version(&st)}, func() (*base, error) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		b := &base{file: os.NewFile(uintptr(fd), f.Name())}
		if b.File, err = s.cache.Open(&forgotten{io.NewSectionReader(b.file, 0, st.Size), b.file, true}, "disco-cache-kernel"); err != nil {
			b.file.Close()
			return nil, err
		}
		return b, nil
	})
}
