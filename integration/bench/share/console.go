package share

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"disco/integration/bench/said"
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
	*said.Console
	done   chan struct{} // closed when the guest is done
	failed chan string   // what it said of its failure

	began time.Time
	mu    sync.Mutex
	guest Guest
	way   []string // what it came to, and when
	over  bool
}

func newConsole() *console {
	c := &console{done: make(chan struct{}), failed: make(chan string, 1), began: time.Now()}
	c.Console = said.New(c.heed)
	return c
}

// heed reads one line.
func (c *console) heed(text string, v said.Words) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if at := v["share"]; at != "" && at != "memory" {
		c.way = append(c.way, fmt.Sprintf("%s %.0f s", at, time.Since(c.began).Seconds()))
	}
	g := &c.guest
	var err error
	switch {
	case v["result"] == "failed":
		err = errors.New(text)
	case v["share"] == "up":
		var buffers uint64
		err = v.Numbers(map[string]*uint64{"cached": &g.Before, "buffers": &buffers})
		g.Before += buffers
	case v["share"] == "read":
		g.Sum, err = v["sum"], v.Numbers(map[string]*uint64{"files": &g.Files, "bytes": &g.Bytes})
	case v["share"] == "job":
		g.JobSum = v["sum"]
	case v["share"] == "memory":
		err = v.Numbers(map[string]*uint64{"total": &g.Total, "free": &g.Free, "cached": &g.Cached,
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
