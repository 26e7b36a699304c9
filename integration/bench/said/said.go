// Package said reads what guests of ours print while they are measured: lines with
// a mark (guest.Prefix), whose words are KEY=VALUE. What the words mean is the
// business of each benchmark.
package said

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"disco/integration/guest"
)

// Words are those of one line, by key; those without a value are there, too.
type Words map[string]string

// Number is the value of a key.
func (w Words) Number(key string) (uint64, error) {
	n, err := strconv.ParseUint(w[key], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is %q", key, w[key])
	}
	return n, nil
}

// Numbers fills in the values of several keys, or names one that is none.
func (w Words) Numbers(to map[string]*uint64) error {
	for key, p := range to {
		n, err := w.Number(key)
		if err != nil {
			return err
		}
		*p = n
	}
	return nil
}

const (
	// LongestLine is how much of a line is kept, in bytes: the end of it.
	LongestLine = 4 << 10
	keptLines   = 12
)

// Console is an io.Writer for what a guest prints. It keeps the last lines.
type Console struct {
	heed func(text string, words Words)

	mu   sync.Mutex
	line []byte // that is not yet whole
	tail []string
}

// New makes a Console that hands every line of ours to heed, one at a time and in
// order, on the goroutine that writes. heed must not call the Console.
func New(heed func(text string, words Words)) *Console { return &Console{heed: heed} }

// Write implements io.Writer. It never fails.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for rest := p; len(rest) > 0; {
		part, more, whole := bytes.Cut(rest, []byte("\n"))
		rest = more
		c.line = append(c.line, part...)
		c.line = c.line[max(0, len(c.line)-LongestLine):]
		if whole {
			c.read(strings.TrimSpace(string(c.line)))
			c.line = c.line[:0]
		}
	}
	return len(p), nil
}

// read reads one line. The kernel's may be on the same, before the guest's.
func (c *Console) read(line string) {
	c.tail = append(c.tail, line)
	c.tail = c.tail[max(0, len(c.tail)-keptLines):]
	_, text, ours := strings.Cut(line, guest.Prefix)
	if !ours {
		return
	}
	words := Words{}
	for _, w := range strings.Fields(text) {
		key, value, _ := strings.Cut(w, "=")
		words[key] = value
	}
	c.heed(text, words)
}

// Last are the last lines, the one that is not yet whole included.
func (c *Console) Last() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(append([]string(nil), c.tail...), string(c.line))
}
