package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"disco/integration/tiny"
)

// tinyKernels is a folder with hand-made kernels by their names.
func tinyKernels(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		image, err := tiny.Image(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), image, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestKVMUp runs tiny guests of a file: some end well, one panics, one hangs.
func TestKVMUp(t *testing.T) {
	dir := tinyKernels(t, "hello", "panic", "spin", "exitcode")
	file, report := filepath.Join(dir, "up.yaml"), filepath.Join(dir, "r.json")
	if err := os.WriteFile(file, []byte(`guests:
  good: {replicas: 6, kernel: hello, memory: 16M, console: serial}
  bad: {kernel: panic, memory: 16M, nets: none, console: serial}
  stuck: {kernel: spin, memory: 16M, nets: none, console: serial, timeout: 500ms}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	w := here()
	var out, errs bytes.Buffer
	w.stdin, w.stdout, w.stderr = strings.NewReader(""), &out, &errs
	if code := execute(w, []string{"up", "--host", "here", "--report", report, file}); code != 1 {
		t.Errorf("exit code %d: %s", code, &errs)
	}
	for i := range 6 {
		if want := fmt.Sprintf("good-%d | hello from a tiny guest\n", i+1); !strings.Contains(out.String(), want) {
			t.Errorf("the consoles say\n%s\nwant %q", &out, want)
		}
	}
	for _, want := range []string{"bad    | panic: all is lost\n", "stuck  | spin: spinning\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the consoles say\n%s\nwant %q", &out, want)
		}
	}
	if n := strings.Count(errs.String(), "powered off"); n != 6 || !strings.Contains(errs.String(), "crashed: the guest's kernel panicked") || !strings.Contains(errs.String(), "timed out: ") {
		t.Errorf("it says\n%s", &errs)
	}
	var ends []struct {
		Name    string
		Outcome struct{ Kind string }
	}
	b, err := os.ReadFile(report)
	if err == nil {
		err = json.Unmarshal(b, &ends)
	}
	if err != nil || len(ends) != 8 || ends[6].Name != "bad" || ends[6].Outcome.Kind != "crashed" || ends[5].Outcome.Kind != "powered off" {
		t.Errorf("report %+v, %v", ends, err)
	}
}

// TestKVMUpRefuses: one guest's kernel is none, so that no guest runs.
func TestKVMUpRefuses(t *testing.T) {
	dir := t.TempDir()
	image, err := tiny.Image("hello")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"hello": image, "text": []byte("#!/bin/sh\n"),
		"up.yaml": []byte("guests:\n  a: {kernel: hello, memory: 16M}\n  b:\n    replicas: 3\n    kernel: text\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := here()
	var out, errs bytes.Buffer
	w.stdin, w.stdout, w.stderr = strings.NewReader(""), &out, &errs
	file := filepath.Join(dir, "up.yaml")
	code := execute(w, []string{"up", "--host", "here", file})
	if code != 2 || out.Len() > 0 || strings.Count(errs.String(), "\n") != 1 || !strings.HasPrefix(errs.String(), "disco: "+file+":5:13: guest b-1: kernel ") {
		t.Errorf("exit code %d; the consoles say %q; it says\n%s", code, &out, &errs)
	}
}
