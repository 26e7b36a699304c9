package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"disco/integration/tiny"
	"disco/memory"
	"disco/numa/balance"
	"disco/vcpu/kvm"
	"disco/vmm"
)

func TestParsePlacement(t *testing.T) {
	for _, s := range []string{"auto", "interleave", "nodes=3", "nodes=0,1,5"} {
		p, err := parsePlacement(s)
		if err != nil || formatPlacement(p) != s {
			t.Errorf("%s is read as %+v (%v) and written %s", s, p, err, formatPlacement(p))
		}
	}
	if p, err := parsePlacement("node=2"); err != nil || formatPlacement(p) != "nodes=2" {
		t.Errorf("node=2 is read as %+v, %v", p, err)
	}
	for _, s := range []string{"", "here", "node", "node=", "node=x", "node=-1", "node=1,2", "nodes=0,,1", "nodes=0 1", "node=0x1"} {
		if p, err := parsePlacement(s); err == nil {
			t.Errorf("%q is read as %+v", s, p)
		}
	}
}

func TestParseBalance(t *testing.T) {
	for _, s := range []string{"off", "full", "migrate,max-moves=2", "replicate,tick=50ms,window=1s,move-rate=1000,sample-share=0.5"} {
		c, err := parseBalance(s)
		if err != nil || formatBalance(c) != s {
			t.Errorf("%s is read as %+v (%v) and written %s", s, c, err, formatBalance(c))
		}
	}
	for _, s := range []string{"", "on", "full,", "full,moves=2", "full,max-moves", "full,max-moves=many", "full,tick=1", "full,tick=1ns", "full,min-free=2", "full;tick=1s"} {
		if c, err := parseBalance(s); err == nil {
			t.Errorf("%q is read as %+v", s, c)
		}
	}
	// Each threshold is a field of its own, and no field is without one.
	fields := reflect.TypeFor[balance.Config]().NumField() - 1 // less the policy
	if len(thresholds) != fields {
		t.Errorf("%d thresholds for %d fields", len(thresholds), fields)
	}
}

func TestStatsLine(t *testing.T) {
	before := vmm.NUMAStats{Relayed: 10, Acts: memory.Stats{Migrated: 100, AroundFaults: 5}}
	now := vmm.NUMAStats{
		Placed: vmm.Placed{Real: true}, LocalShare: 0.975, Relayed: 30,
		Memory: []vmm.NodeMemory{{Node: 0, Pages: 256}, {Node: 2, Pages: 512, Replicas: 256}},
		Acts:   memory.Stats{Migrated: 300, AroundFaults: 25},
	}
	const want = "local 97.5 %, node 0 1MiB, node 2 2MiB + 1MiB copies; per second: 100 pages moved, 0 copied, 0 collapsed, 10 faults, 10 relayed interrupts"
	if got := statsLine(before, now, 2*time.Second); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// A restart between the two.
	before.Relayed, now.Real = 1000, false
	if got := statsLine(before, now, time.Second); !strings.Contains(got, "30 relayed") || !strings.HasSuffix(got, "(the nodes are not real)") {
		t.Error(got)
	}
}

// TestKVMPlacement chooses nodes for tiny guests, here where they are fake.
func TestKVMPlacement(t *testing.T) {
	image, err := tiny.Image("hello")
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(kernel, image, 0o600); err != nil {
		t.Fatal(err)
	}
	span := struct {
		code int
		says string
	}{0, ""}
	if ok, _ := kvm.TwoDimensional(os.DirFS("/")); !ok {
		span.code, span.says = 3, "two-dimensional paging"
	}
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"--placement node=0", 0, ""},
		{"--placement node=0 --numa full --huge off", 0, ""},
		{"--fake-nodes 3 --placement node=2 --stats-interval 1h", 0, ""},
		{"--fake-nodes 2 --placement nodes=0,1", span.code, span.says},
		{"--fake-nodes 2 --placement interleave --numa off", span.code, span.says},
		{"--placement nodes=0,999", 2, "there is no node 999"},
		{"--placement nodes=0,0", 2, "given twice"},
		{"--fake-nodes 4 --placement nodes=1,7", 2, "there is no node 7; this host has 0,1,2,3"},
		{"--fake-nodes 0", 2, "--fake-nodes 0: choose 1 to 64"},
		{"--fake-nodes 65", 2, "choose 1 to 64"},
		{"--numa wild", 2, `--numa wild: "wild" is no policy`},
		{"--numa full,window=0.2", 2, "not a duration"},
		{"--placement everywhere", 2, "there are auto, interleave, node=N and nodes=N,M"},
		{"--huge 1G", 2, "there are off, thp and 2M"},
		{"--stats-interval -1s", 2, "must not be negative"},
	} {
		w := here()
		var out, errs bytes.Buffer
		w.stdin, w.stdout, w.stderr = strings.NewReader(""), &out, &errs
		code := execute(w, append([]string{"run", "--host", "here", "--kernel", kernel, "--memory", "16M", "--cpus", "2", "--net", "none"}, strings.Fields(tt.args)...))
		if code != tt.code || !strings.Contains(errs.String(), tt.says) || tt.says == "" && errs.Len() > 0 || strings.Count(errs.String(), "\n") > 1 {
			t.Errorf("%s: exit code %d, want %d; it says %q", tt.args, code, tt.code, &errs)
		}
	}

	// Who chose nothing gets a guest, and is told what it lacks.
	w := here()
	var errs bytes.Buffer
	w.stdin, w.stdout, w.stderr = strings.NewReader(""), &bytes.Buffer{}, &errs
	code := execute(w, []string{"run", "--host", "here", "--kernel", kernel, "--memory", "16M", "--cpus", "64", "--net", "none", "--fake-nodes", "2"})
	if code != 0 || span.code != 0 && !strings.Contains(errs.String(), span.says) {
		t.Errorf("exit code %d; it says %q", code, &errs)
	}
}
