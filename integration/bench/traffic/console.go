package traffic

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"disco/integration/guest"
)

// event is a line that a guest said, its words by key.
type event map[string]string

// number is the value of a key.
func (e event) number(key string) (uint64, error) {
	n, err := strconv.ParseUint(e[key], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is %q", key, e[key])
	}
	return n, nil
}

// numbers are the values of several keys.
func (e event) numbers(to map[string]*uint64) error {
	for key, p := range to {
		n, err := e.number(key)
		if err != nil {
			return err
		}
		*p = n
	}
	return nil
}

// console reads what a guest prints.
type console struct {
	events chan event // what it says that is for us

	mu   sync.Mutex
	line []byte // that is not yet whole
	tail []string
}

const (
	longestLine = 4 << 10
	keptLines   = 12
	// manyEvents is more than a guest of ours says.
	manyEvents = 4096
)

func newConsole() *console { return &console{events: make(chan event, manyEvents)} }

// Write implements io.Writer.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for rest := p; len(rest) > 0; {
		part, more, whole := bytes.Cut(rest, []byte("\n"))
		rest = more
		c.line = append(c.line, part...)
		c.line = c.line[max(0, len(c.line)-longestLine):]
		if whole {
			c.heed(strings.TrimSpace(string(c.line)))
			c.line = c.line[:0]
		}
	}
	return len(p), nil
}

// heed reads one line. The kernel's may be on the same, before the guest's.
func (c *console) heed(line string) {
	c.tail = append(c.tail, line)
	c.tail = c.tail[max(0, len(c.tail)-keptLines):]
	_, text, ours := strings.Cut(line, guest.Prefix)
	if !ours {
		return
	}
	e := event{"text": text}
	for _, w := range strings.Fields(text) {
		key, value, _ := strings.Cut(w, "=")
		e[key] = value
	}
	select {
	case c.events <- e:
	default: // a guest that says so much is not ours
	}
}

// last are the last lines.
func (c *console) last() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(append([]string(nil), c.tail...), string(c.line))
}
