package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"disco/integration/tiny"
)

// TestKVMRun runs tiny guests from command line to exit code.
func TestKVMRun(t *testing.T) {
	t.Chdir(t.TempDir())
	tests := []struct {
		guest, args string
		code        int
		shows, says string // in the console and on standard error
	}{
		{"hello", "", 0, "hello from a tiny guest", ""},
		{"exitcode", "--cmdline code=21", 43, "", ""},
		{"panic", "", 1, "panic: all is lost", "disco: the guest crashed: "},
		{"triple", "", 1, "", "triple fault"},
		{"spin", "--timeout 300ms", 124, "", "still running after 300ms"},
		{"halt", "--cpus 3 --timeout 300ms", 124, "halt: halted", "still running after 300ms"},
	}
	for _, tt := range tests {
		t.Run(tt.guest, func(t *testing.T) {
			image, err := tiny.Image(tt.guest)
			if err != nil {
				t.Fatal(err)
			}
			kernel := filepath.Join(t.TempDir(), tt.guest)
			if err := os.WriteFile(kernel, image, 0o600); err != nil {
				t.Fatal(err)
			}
			w := here()
			var out, errs bytes.Buffer
			w.stdin, w.stdout, w.stderr = strings.NewReader(""), &out, &errs
			code := execute(w, append([]string{"run", "--host", "here", "--kernel", kernel, "--memory", "16M", "--net", "none"}, strings.Fields(tt.args)...))
			if code != tt.code || !strings.Contains(out.String(), tt.shows) || !strings.Contains(errs.String(), tt.says) || tt.says == "" && errs.Len() > 0 {
				t.Errorf("exit code %d, want %d; console:\n%s\nstandard error:\n%s", code, tt.code, &out, &errs)
			}
		})
	}
}

func TestKVMBadKernel(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"text":           "#!/bin/sh\n",
		"short ELF":      "\x7fELF\x02\x01\x01",
		"short bzImage":  strings.Repeat("\x00", 0x1f1) + "\x04",
		"zeroes":         strings.Repeat("\x00", 1<<20),
		"wrong ELF type": "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x01\x00\xb7\x00" + strings.Repeat("\x00", 100),
	} {
		kernel := filepath.Join(dir, "kernel")
		if err := os.WriteFile(kernel, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		w := here()
		var errs bytes.Buffer
		w.stdin, w.stdout, w.stderr = strings.NewReader(""), &bytes.Buffer{}, &errs
		code := execute(w, []string{"run", "--host", "here", "--kernel", kernel, "--memory", "16M", "--net", "none"})
		if code != 2 || !strings.Contains(errs.String(), kernel) || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%s: exit code %d, it says %s", name, code, &errs)
		}
	}
}

func TestKVMCheck(t *testing.T) {
	w := here()
	var out bytes.Buffer
	w.stdout = &out
	execute(w, []string{"check"}) // its exit code depends on the lab's files
	if !strings.Contains(out.String(), "booted and powered off in ") {
		t.Errorf("got\n%s", &out)
	}
	fmt.Fprint(t.Output(), out.String())
}
