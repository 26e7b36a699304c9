package vmm

import (
	"io"
	"strings"
	"sync"
)

// A Linux panic with its registers and call trace, on each of two consoles.
const (
	historyBytes = 16 << 10
	historyLines = 120
)

// history passes a guest's console output on, untouched, and keeps the end of
// it for a report.
type history struct {
	w io.Writer // nil to keep only

	mu   sync.Mutex
	ring [historyBytes]byte
	n    int // bytes ever written
}

func (h *history) Write(p []byte) (int, error) {
	h.mu.Lock()
	tail := p
	if len(tail) > historyBytes {
		h.n += len(tail) - historyBytes
		tail = tail[len(tail)-historyBytes:]
	}
	for len(tail) > 0 {
		m := copy(h.ring[h.n%historyBytes:], tail)
		h.n += m
		tail = tail[m:]
	}
	h.mu.Unlock()
	if h.w == nil {
		return len(p), nil
	}
	return h.w.Write(p)
}

// lines are the last lines, oldest first, without control characters: they are
// meant for a terminal or a log, where a guest has no say.
func (h *history) lines() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for i := max(0, h.n-historyBytes); i < h.n; i++ {
		switch c := h.ring[i%historyBytes]; {
		case c == '\n' || c >= ' ' && c < 0x7f:
			b.WriteByte(c)
		case c == '\t':
			b.WriteByte(' ')
		case c >= 0x80:
			b.WriteByte('?')
		}
	}
	text := strings.Trim(b.String(), "\n")
	if text == "" {
		return nil
	}
	all := strings.Split(text, "\n")
	return all[max(0, len(all)-historyLines):]
}
