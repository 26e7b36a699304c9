package memory

import (
	"fmt"
	"strings"

	"disco/memory/arena"
	"disco/memory/uffd"
)

// Probe says in one line what this host lacks for tracked Spaces: kernel,
// permission, and how to mend it. It is nil if nothing.
func Probe() error {
	u, err := uffd.Open()
	if err != nil {
		return fmt.Errorf("memory can not be tracked: %w", err)
	}
	if err := u.Close(); err != nil {
		return err
	}
	if err := arena.MayMove(); err != nil {
		return fmt.Errorf("memory can not be moved: %w", err)
	}
	return nil
}

// budget makes room for the mappings of replicas.
func (s *Space) budget() error {
	const most = 1 << 19
	pages := s.Size() / arena.PageSize
	want := int64(min(most, 2*pages*uint64(len(s.opt.Nodes))))
	raised, err := arena.VMAs.Measure(want)
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	switch limit := arena.VMAs.Limit(); {
	case raised:
		s.log.Info("raised sysctl " + strings.ReplaceAll(strings.TrimPrefix(arena.MaxMapCount, "/proc/sys/"), "/", ".") + " for replicas")
	case limit < want:
		s.log.Warn("replicas may run out of memory mappings: raise sysctl vm.max_map_count", "mappings", limit)
	}
	return nil
}
