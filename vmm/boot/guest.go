package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"disco/memory"
)

const (
	// copyBuffer is how many bytes of a file each copier has in the monitor's own
	// memory at a time.
	copyBuffer = 64 << 10
	// copyUnit is what a copier takes on at once: a huge page, so that no two
	// copiers wait for the same one to be cleared.
	copyUnit = 2 << 20
	// maxCopiers is the largest number of copiers. What they wait for is mostly
	// memory, of which a few have all there is.
	maxCopiers = 4
)

// span is a claimed part of guest memory.
type span struct {
	what       string
	start, end uint64
}

// guest is guest memory while it is filled. Every byte that Load writes lies in
// a span claimed here, and spans lie in RAM and never overlap, whatever the
// files say.
type guest struct {
	w    io.WriterAt
	ram  []memory.Range
	used []span
	todo []piece  // what fill copies
	bufs [][]byte // one for each copier
}

// piece is a part of a file and where it goes, in claimed memory.
type piece struct {
	start uint64
	r     io.ReaderAt
	off   int64
	size  int64
}

// fits says whether [start, start+size) is wholly in one range of RAM.
func (g *guest) fits(start, size uint64) bool {
	for _, r := range g.ram {
		if start >= uint64(r.Start) && start < uint64(r.End()) && size <= uint64(r.End())-start {
			return true
		}
	}
	return false
}

// clash is the claimed span that [start, end) runs into, if any.
func (g *guest) clash(start, end uint64) *span {
	for i, u := range g.used {
		if start < u.end && u.start < end {
			return &g.used[i]
		}
	}
	return nil
}

// claim takes size bytes at start for the named thing. A size of 0 takes nothing.
func (g *guest) claim(what string, start, size uint64) error {
	if size == 0 {
		return nil
	}
	if start+size < start {
		return fmt.Errorf("%s at %#x+%#x wraps around the address space", what, start, size)
	}
	if !g.fits(start, size) {
		return &outsideError{what: what, start: start, end: start + size, ram: g.ram}
	}
	if u := g.clash(start, start+size); u != nil {
		return fmt.Errorf("%s at %#x–%#x runs into %s at %#x–%#x", what, start, start+size, u.what, u.start, u.end)
	}
	g.used = append(g.used, span{what, start, start + size})
	return nil
}

// place claims size bytes at the highest page boundary in [lo, hi) that is free.
func (g *guest) place(what string, size, lo, hi uint64) (uint64, bool) {
	for i := len(g.ram) - 1; i >= 0; i-- {
		bottom := max(lo, uint64(g.ram[i].Start))
		top := min(hi, uint64(g.ram[i].End()))
		for top > bottom && size <= top-bottom {
			start := (top - size) &^ (pageSize - 1)
			if start < bottom {
				break
			}
			u := g.clash(start, start+size)
			if u == nil {
				g.used = append(g.used, span{what, start, start + size})
				return start, true
			}
			top = u.start
		}
	}
	return 0, false
}

// put claims room for p at start and writes it.
func (g *guest) put(what string, start uint64, p []byte) error {
	if err := g.claim(what, start, uint64(len(p))); err != nil {
		return err
	}
	return g.write(what, start, p)
}

func (g *guest) write(what string, at uint64, p []byte) error {
	if _, err := g.w.WriteAt(p, int64(at)); err != nil {
		return fmt.Errorf("writing %s to guest memory at %#x: %w", what, at, err)
	}
	return nil
}

var zeroPage [pageSize]byte

// add has fill copy n bytes of r from off to claimed memory at start.
func (g *guest) add(start uint64, r io.ReaderAt, off, n int64) {
	for n > 0 {
		m := min(n, copyUnit-int64(start%copyUnit))
		g.todo = append(g.todo, piece{start, r, off, m})
		start += uint64(m)
		off += m
		n -= m
	}
}

// fill copies what was added, all of it parts of the named thing, by several
// copiers at once: fresh guest memory is cleared by the kernel as it is touched,
// which takes longer than the copying.
func (g *guest) fill(what string) error {
	copiers := min(maxCopiers, runtime.GOMAXPROCS(0), len(g.todo))
	for len(g.bufs) < copiers {
		g.bufs = append(g.bufs, make([]byte, copyBuffer))
	}
	var next atomic.Int64
	errs := make([]error, copiers)
	var done sync.WaitGroup
	for c := range copiers {
		done.Go(func() {
			for errs[c] == nil {
				i := int(next.Add(1)) - 1
				if i >= len(g.todo) {
					return
				}
				errs[c] = g.copyIn(what, g.todo[i], g.bufs[c])
			}
		})
	}
	done.Wait()
	g.todo = g.todo[:0]
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// copyIn copies one piece. Pages of zeros are not written: guest memory begins as
// zeros, and a kernel is almost half zeros.
func (g *guest) copyIn(what string, c piece, buf []byte) error {
	for c.size > 0 {
		p := buf[:min(c.size, copyBuffer)]
		if m, err := c.r.ReadAt(p, c.off); m < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("reading %s: %w", what, err)
		}
		for from, to := 0, 0; to < len(p); from = to {
			for to < len(p) && !isZero(p[to:min(to+pageSize, len(p))]) {
				to = min(to+pageSize, len(p))
			}
			if to > from {
				if err := g.write(what, c.start+uint64(from), p[from:to]); err != nil {
					return err
				}
			}
			for to < len(p) && isZero(p[to:min(to+pageSize, len(p))]) {
				to = min(to+pageSize, len(p))
			}
		}
		c.start += uint64(len(p))
		c.off += int64(len(p))
		c.size -= int64(len(p))
	}
	return nil
}

func isZero(p []byte) bool { return bytes.Equal(p, zeroPage[:len(p)]) }

// outsideError is a thing that does not lie in RAM.
type outsideError struct {
	what       string
	start, end uint64
	ram        []memory.Range
}

func (e *outsideError) Error() string {
	total := size(e.ram)
	if e.end <= LowRAMTop && e.end > total {
		return fmt.Sprintf("%s needs memory up to %s, and the guest has %s: give it --memory %s or more",
			e.what, mib(e.end), mib(total), mibFlag(e.end))
	}
	return fmt.Sprintf("%s at %#x–%#x lies outside the guest's memory", e.what, e.start, e.end)
}

func size(ram []memory.Range) uint64 {
	var n uint64
	for _, r := range ram {
		n += r.Size
	}
	return n
}

func mibUp(n uint64) uint64 { return n>>20 + min(n&(1<<20-1), 1) }

// mib is n bytes in MiB, rounded up, for people.
func mib(n uint64) string { return fmt.Sprintf("%d MiB", mibUp(n)) }

// mibFlag is at least n bytes, as the --memory flag takes it.
func mibFlag(n uint64) string { return fmt.Sprintf("%dM", mibUp(n)) }
