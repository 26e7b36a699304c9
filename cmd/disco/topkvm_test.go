package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"disco/vmm"
)

// caught is a monitor that remembers its guests.
type caught struct {
	monitor
	mu     sync.Mutex
	guests []guest
}

func (c *caught) New(cfg vmm.Config) (guest, error) {
	g, err := c.monitor.New(cfg)
	if err == nil {
		c.mu.Lock()
		c.guests = append(c.guests, g)
		c.mu.Unlock()
	}
	return g, err
}

func (c *caught) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.guests {
		g.Kill("enough")
	}
}

// TestKVMTop: two guests that never rest share a CPU by their tickets, and one
// sleeps; top shows it, and tickets turns it about.
func TestKVMTop(t *testing.T) {
	dir := tinyKernels(t, "spin", "halt")
	file, socket := filepath.Join(dir, "up.yaml"), filepath.Join(dir, "s")
	if err := os.WriteFile(file, []byte(`scheduler: stride
cpus-host: "0"
guests:
  rich: {kernel: spin, memory: 16M, cpus: 1, nets: [none], timeout: 2m, tickets: 900}
  poor: {kernel: spin, memory: 16M, cpus: 1, nets: [none], timeout: 2m}
  idle: {kernel: halt, memory: 16M, cpus: 2, nets: [none], timeout: 2m, tickets: 1000}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	w := here()
	var errs bytes.Buffer
	w.stdin, w.stdout, w.stderr = strings.NewReader(""), &bytes.Buffer{}, &errs
	var m caught
	w.newMonitor = func(c vmm.MonitorConfig) (_ monitor, err error) {
		m.monitor, err = newMonitor(c)
		return &m, err
	}
	ended := make(chan int)
	go func() { ended <- execute(w, []string{"up", "--host", "here", "--control", socket, file}) }()
	defer func() {
		m.kill()
		if code := <-ended; code != 0 {
			t.Errorf("exit code %d: %s", code, &errs)
		}
		if _, err := os.Stat(socket); err == nil {
			t.Error("the socket is left")
		}
	}()

	ask := func(args ...string) (string, error) {
		var out, errs bytes.Buffer
		w := here()
		w.stdin, w.stdout, w.stderr = strings.NewReader(""), &out, &errs
		if code := execute(w, append([]string{args[0], "--control", socket}, args[1:]...)); code != 0 {
			return "", fmt.Errorf("%v: exit code %d: %s", args, code, &errs)
		}
		return out.String(), nil
	}
	byName := map[string]topGuest{}
	// until looks until what it sees is as it should be.
	until := func(what string, ok func() bool) {
		t.Helper()
		var text string
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			var err error
			if text, err = ask("top", "--json", "--once", "--interval", "500ms"); err != nil {
				text = err.Error()
				time.Sleep(10 * time.Millisecond)
				continue
			}
			var look topLook
			if err := json.Unmarshal([]byte(text), &look); err != nil || len(look.Monitors) != 1 || len(look.Monitors[0].Guests) != 3 {
				t.Fatalf("%v in %s", err, text)
			}
			for _, g := range look.Monitors[0].Guests {
				byName[g.Name] = g
			}
			if ok() {
				return
			}
		}
		t.Fatalf("%s: not seen in\n%s", what, text)
	}
	rich, poor := func() *topGuest { g := byName["rich"]; return &g }, func() *topGuest { g := byName["poor"]; return &g }
	until("rich has more", func() bool { return rich().State == "running" && rich().Got > 3*poor().Got && poor().Got > 0 })
	// On a busy machine it may take a while until it does.
	until("idle rests", func() bool {
		g := byName["idle"]
		return len(g.VCPUs) == 2 && g.VCPUs[0].State == "halted" && g.Got < 0.1 && g.Waiting < 0.5
	})
	idle := byName["idle"]
	for what, wrong := range map[string]bool{
		"asked of rich":   rich().Asked < 0.449 || rich().Asked > 0.451 || rich().Tickets != 900,
		"asked of poor":   poor().Asked < 0.049 || poor().Asked > 0.051 || poor().Tickets != 100,
		"more than a CPU": rich().Got+poor().Got+idle.Got > 1.2,
		"memory":          idle.Memory != 16<<20 || idle.Resident == 0 || idle.Resident > 16<<20,
		"TLP of one vCPU": rich().TLP < 0.99 || rich().TLP > 1.01 || len(rich().Parallel) != 2,
	} {
		if wrong {
			t.Errorf("%s: %+v", what, byName)
		}
	}
	for name, n := range map[string]string{"rich": "100", "poor": "900"} {
		if text, err := ask("tickets", name, n); err != nil || !strings.Contains(text, name+" has "+n+" tickets") {
			t.Errorf("%s, %v", text, err)
		}
	}
	until("poor has more", func() bool { return poor().Got > 3*rich().Got && rich().Got > 0 })
	if _, err := ask("tickets", "nobody", "1"); err == nil || !strings.Contains(err.Error(), "there are rich, poor, idle") {
		t.Errorf("got %v", err)
	}
}
