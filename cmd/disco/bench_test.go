package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"disco/integration/bench/locality"
	"disco/numa"
)

// benchWorld has two nodes, and a benchmark that says what it was asked.
func benchWorld(t *testing.T) (*fakeWorld, *locality.Options) {
	t.Helper()
	w := newWorld(t)
	dir := t.TempDir()
	for file, text := range map[string]string{
		"cpu/online": "0-3", "node/online": "0-1", "node/has_memory": "0-1",
		"node/node0/cpulist": "0-1", "node/node1/cpulist": "2-3", "node/node0/distance": "10 21", "node/node1/distance": "21 10",
		"node/node0/meminfo": "Node 0 MemTotal: 1048576 kB\nNode 0 MemFree: 1000000 kB",
		"node/node1/meminfo": "Node 1 MemTotal: 1048576 kB\nNode 1 MemFree: 1000000 kB",
	} {
		path := filepath.Join(dir, "sys/devices/system", file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.topology = func() (*numa.Topology, error) { return numa.Read(os.DirFS(dir)) }
	got := &locality.Options{}
	w.benchNUMA = func(_ context.Context, o locality.Options) (*locality.Results, error) {
		*got = o
		return &locality.Results{}, nil
	}
	return w, got
}

func TestBenchNUMAFlags(t *testing.T) {
	w, got := benchWorld(t)
	initrd := w.env["DISCO_INITRD"]
	out := filepath.Join(t.TempDir(), "r")
	code := w.disco("bench", "numa", "--nodes", "1,0", "--policies", "full,off", "--workloads", "mixed,private", "--cpus", "6",
		"--memory", "768M", "--size", "1M", "--rounds", "10", "--visits", "1000", "--round-time", "1s", "--guest-pages", "4k", "--thresholds", "tick=50ms",
		"--boot-timeout", "30s", "--initrd", initrd, "--out", out)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, &w.err)
	}
	if !slices.Equal(got.Nodes, []numa.Node{1, 0}) || !slices.Equal(got.Policies, []locality.Policy{locality.Off, locality.Full}) ||
		!slices.Equal(got.Workloads, []string{"private", "mixed"}) || got.CPUs != 6 || got.Memory != 768<<20 || got.Size != 1<<20 ||
		got.Rounds != 10 || got.Visits != 1000 || got.Huge || got.Initrd != initrd || got.Kernel != w.env["DISCO_KERNEL"] || got.Emulated {
		t.Errorf("options %+v", got)
	}
	w, got = benchWorld(t)
	w.env["DISCO_IN_LAB"] = "1"
	if code := w.disco("bench", "numa", "--initrd", initrd, "--out", out); code != 0 || !got.Emulated || !got.Huge || !strings.Contains(got.Cmdline, "nohz=off") {
		t.Errorf("exit code %d: %s; options %+v", code, &w.err, got)
	}
}

func TestBenchNUMABadInput(t *testing.T) {
	out := filepath.Join(t.TempDir(), "r")
	for _, tt := range []struct {
		args string
		set  func(w *fakeWorld)
		code int
		says []string // a part of each line
	}{
		{"--nodes x", nil, 2, []string{"--nodes x: \"x\" is no node's number; write a list like 0,1"}},
		{"--nodes 0,2", nil, 2, []string{"node 2: there is none; this machine has nodes 0,1"}},
		{"--nodes 0,0", nil, 2, []string{"node 0: it is named twice"}},
		{"--nodes 1", nil, 2, []string{"one node: nothing is remote; use two or more of 0,1"}},
		{"--fake-nodes 0", nil, 2, []string{"--fake-nodes 0: use a positive number"}},
		{"--fake-nodes 1", nil, 2, []string{"one node: nothing is remote on this machine"}},
		{"--fake-nodes 65", nil, 2, []string{"65 fake nodes: choose 1 to 64"}},
		{"--policies best", nil, 2, []string{`--policies best: "best" is no policy; there are [off interleave autonuma migrate replicate full]`}},
		{"--workloads none --rounds 9", nil, 2, []string{`--workloads none: "none" is no workload`, "9 rounds: use an even number from 8"}},
		{"--cpus 3", nil, 2, []string{"3 CPUs: use a multiple of the 2 nodes"}},
		{"--cpus 0", nil, 2, []string{"--cpus 0: use a positive number"}},
		{"--memory 64M", nil, 2, []string{"memory 64M: the workloads need"}},
		{"--memory 1T", nil, 2, []string{"memory 1T: the smallest node has 1G"}},
		{"--size 1000000", nil, 2, []string{"size of"}},
		{"--size 1G", nil, 2, []string{"the smallest node has 1G"}},
		{"--visits -1 --thresholds tick=1ms", nil, 2, []string{"--visits -1: use a positive number", "tick of 1ms"}},
		{"--round-time soon", nil, 2, []string{"--round-time soon: not a duration"}},
		{"--round-time 0s --boot-timeout 1ms", nil, 2, []string{"--round-time 0s: use a positive one", "boot timeout of 1ms"}},
		{"--guest-pages 1G", nil, 2, []string{"--guest-pages 1G: there are 2M and 4K"}},
		{"more", nil, 2, []string{`"more" is not a flag`, "Try: disco bench numa --help"}},
		{"--out /nowhere/at/all", nil, 2, []string{"report /nowhere/at/all.json"}},
		{"", func(w *fakeWorld) { clear(w.env) }, 3, []string{"the benchmark's guest is not there: run `make guest`"}},
		{"", func(w *fakeWorld) {
			w.topology = func() (*numa.Topology, error) { return nil, errors.New("node/online: gone") }
		}, 3, []string{"node/online: gone"}},
		{"", func(w *fakeWorld) {
			w.benchNUMA = func(context.Context, locality.Options) (*locality.Results, error) { return nil, locality.ErrWrong }
		}, 4, []string{"the guest's memory is wrong"}},
	} {
		w, _ := benchWorld(t)
		w.env["DISCO_INITRD"] = ""
		args := append([]string{"bench", "numa"}, strings.Fields(tt.args)...)
		if !strings.Contains(tt.args, "--out") {
			args = append(args, "--out", out)
		}
		if tt.code != 3 || tt.set == nil {
			args = append(args, "--initrd", w.env["DISCO_KERNEL"])
		}
		if tt.set != nil {
			tt.set(w)
		}
		code := w.disco(args...)
		lines := strings.Split(strings.TrimSuffix(w.err.String(), "\n"), "\n")
		if code != tt.code || len(lines) != len(tt.says) {
			t.Errorf("%s: exit code %d, want %d; it says\n%s", tt.args, code, tt.code, &w.err)
			continue
		}
		for i, part := range tt.says {
			if !strings.Contains(lines[i], part) {
				t.Errorf("%s: line %q lacks %q", tt.args, lines[i], part)
			}
		}
	}
}

func TestBenchNUMAInterrupted(t *testing.T) {
	w, _ := benchWorld(t)
	w.benchNUMA = func(ctx context.Context, _ locality.Options) (*locality.Results, error) {
		p, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = p.Signal(os.Interrupt)
		}
		if err != nil {
			return nil, err
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	code := w.disco("bench", "numa", "--initrd", w.env["DISCO_INITRD"], "--out", filepath.Join(t.TempDir(), "r"))
	if code != 130 || w.err.String() != "disco: interrupted\n" {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
}
