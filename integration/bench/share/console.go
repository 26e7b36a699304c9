package share

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"disco/integration/guest"
)

// Guest is what a guest said, with sizes in bytes.
type Guest struct {
	Files     uint64 `json:"files"`      // read, folders and links included
	Bytes     uint64 `json:"bytes"`      // read
	Sum       string `json:"sum"`        // of all that was read
	JobSum    string `json:"job_sum"`    // of what the job made
	Before    uint64 `json:"before"`     // of Cached and Buffers, before anything was read
	Total     uint64 `json:"mem_total"`  // by its kernel, as all that follow
	Free      uint64 `json:"mem_free"`   //
	Cached    uint64 `json:"cached"`     //
	Buffers   uint64 `json:"buffers"`    //
	Anonymous uint64 `json:"anon_pages"` //
	Slab      uint64 `json:"slab"`       //
}

// console reads what a guest prints.
type console struct {
	done   chan struct{} // closed when the guest is done
	failed chan string   // what it said of its failure

	began time.Time
	mu    sync.Mutex
	guest Guest
	way   []string // what it came to, and when
	line  []byte   // that is not yet whole
	tail  []string
	over  bool
}

func newConsole() *console {
	return &console{done: make(chan struct{}), failed: make(chan string, 1), began: time.Now()}
}

const (
	longestLine = 4 << 10
	keptLines   = 8
)

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
	if !ours || c.over {
		return
	}
	v := map[string]string{}
	for _, w := range strings.Fields(text) {
		key, value, _ := strings.Cut(w, "=")
		v[key] = value
	}
	if at := v["share"]; at != "" && at != "memory" {
		c.way = append(c.way, fmt.Sprintf("%s %.0f s", at, time.Since(c.began).Seconds()))
	}
	g := &c.guest
	var err error
	switch {
	case v["result"] == "failed":
		err = fmt.Errorf("%s", text)
	case v["share"] == "up":
		var buffers uint64
		err = numbers(v, map[string]*uint64{"cached": &g.Before, "buffers": &buffers})
		g.Before += buffers
	case v["share"] == "read":
		g.Sum, err = v["sum"], numbers(v, map[string]*uint64{"files": &g.Files, "bytes": &g.Bytes})
	case v["share"] == "job":
		g.JobSum = v["sum"]
	case v["share"] == "memory":
		err = numbers(v, map[string]*uint64{"total": &g.Total, "free": &g.Free, "cached": &g.Cached,
			"buffers": &g.Buffers, "anonymous": &g.Anonymous, "slab": &g.Slab})
		if err == nil && (g.Free > g.Total || g.Before > g.Cached+g.Buffers) {
			err = fmt.Errorf("the guest's memory makes no sense: %s", text)
		}
	case v["share"] == "done":
		c.over = true
		close(c.done)
	}
	if err != nil {
		c.over = true
		c.failed <- err.Error()
	}
}

func numbers(v map[string]string, to map[string]*uint64) error {
	for key, p := range to {
		n, err := strconv.ParseUint(v[key], 10, 64)
		if err != nil {
			return fmt.Errorf("%s is %q", key, v[key])
		}
		*p = n
	}
	return nil
}

// said is what the guest has said.
func (c *console) said() Guest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guest
}

// stages say what the guest came to when.
func (c *console) stages() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.way, ", ")
}

// last are the last lines.
func (c *console) last() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(append([]string(nil), c.tail...), string(c.line))
}
