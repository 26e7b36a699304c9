package lab

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode"
)

const (
	journalLines = 400
	journalLine  = 512 // bytes of a line that are kept
)

// journal keeps the last lines of the lab's console. Its methods may be called
// from any goroutine.
type journal struct {
	live io.Writer // gets each line as it comes, if not nil

	mu      sync.Mutex
	lines   []string
	partial []byte
}

// Write implements io.Writer. It never fails.
func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		j.partial = append(j.partial, line[:min(len(line), journalLine-len(j.partial))]...)
		if whole {
			j.end()
		}
		p = rest
	}
	return n, nil
}

func (j *journal) end() {
	line := printable(string(j.partial))
	j.partial = j.partial[:0]
	if len(j.lines) == journalLines {
		j.lines = append(j.lines[:0], j.lines[1:]...)
	}
	j.lines = append(j.lines, line)
	if j.live != nil {
		_, _ = io.WriteString(j.live, line+"\n")
	}
}

// last returns up to n lines, the newest last.
func (j *journal) last(n int) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := j.lines
	if len(j.partial) > 0 {
		all = append(all[:len(all):len(all)], printable(string(j.partial)))
	}
	return append([]string(nil), all[max(0, len(all)-n):]...)
}

// cause returns the kernel's own word for why it died, or nothing.
func (j *journal) cause() string {
	for _, line := range slices.Backward(j.last(journalLines)) {
		if _, why, found := strings.Cut(line, "Kernel panic - not syncing: "); found {
			return why
		}
	}
	return ""
}

// printable drops what a terminal would obey: the console's bytes come from a
// machine, and are shown, not interpreted.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case !unicode.IsPrint(r) || r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, s)
}
