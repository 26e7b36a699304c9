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

// ProbeSharing says in one line what this host lacks for sharing Spaces.
func ProbeSharing() error {
	u, err := uffd.Open()
	if err != nil {
		return fmt.Errorf("memory can not be shared: %w", err)
	}
	return u.Close()
}

// budget makes room for the mappings of pages away from Home, in so many Views.
func (s *Space) budget(views int) error {
	const most = 1 << 19
	pages := s.Size() / arena.PageSize
	want := int64(min(most, 2*pages*uint64(views)))
	raised, err := arena.VMAs.Measure(want)
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	switch limit := arena.VMAs.Limit(); {
	case raised:
		s.log.Info("raised sysctl " + strings.ReplaceAll(strings.TrimPrefix(arena.MaxMapCount, "/proc/sys/"), "/", ".") + " for pages that are mapped one by one")
	case limit < want:
		s.log.Warn("pages that are replicated or shared may run out of memory mappings: raise sysctl vm.max_map_count", "mappings", limit)
	}
	return nil
}
