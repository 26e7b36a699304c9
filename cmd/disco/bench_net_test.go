package main

import (
	"strings"
	"testing"
)

// TestBenchNetBadInput: all that is wrong is said at once, and what is missing by
// what mends it.
func TestBenchNetBadInput(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		says []string
	}{
		{"--programs auto,carrier-pigeon --readings tape --rounds 0", 2, []string{`no program "carrier-pigeon"`, `no way to read "tape"`, "positive number"}},
		{"--readers 99 --bytes 1K", 2, []string{"readers 99: use 1 to 16", "bytes 1024: use 1 to 64 MiB"}},
		{"--programs auto", 3, []string{"the server's disk is not there: run `make guest`"}},
	} {
		w, _ := benchWorld(t)
		args := append([]string{"bench", "net", "--initrd", w.env["DISCO_INITRD"], "--out", t.TempDir() + "/r"}, strings.Fields(tt.args)...)
		if code := w.disco(args...); code != tt.code {
			t.Errorf("%s: exit code %d: %s", tt.args, code, &w.err)
		}
		for _, part := range tt.says {
			if !strings.Contains(w.err.String(), part) {
				t.Errorf("%s: no %q in\n%s", tt.args, part, &w.err)
			}
		}
	}
}
