package main

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestEscapes(t *testing.T) {
	tests := []struct {
		name, typed, want string
		left              bool
	}{
		{"plain", "ls\r", "ls\r", false},
		{"control keys", "\x03\x04\x1a", "\x03\x04\x1a", false},
		{"leave", "ls\x01xrest", "ls", true},
		{"leave at once", "\x01x", "", true},
		{"ctrl-a a", "\x01a", "\x01", false},
		{"ctrl-a ctrl-a", "\x01\x01x", "\x01x", false},
		{"another key", "\x01zq", "q", false},
		{"x alone", "x", "x", false},
		{"ctrl-a at the end", "q\x01", "q", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, r := range map[string]io.Reader{
				"whole": strings.NewReader(tt.typed), "bytewise": iotest.OneByteReader(strings.NewReader(tt.typed)),
			} {
				left := 0
				got, err := io.ReadAll(&escapes{r: r, leave: func() { left++ }})
				if err != nil || string(got) != tt.want || (left == 1) != tt.left || left > 1 {
					t.Errorf("%s: got %q, %v, left %d times, want %q", name, got, err, left, tt.want)
				}
			}
		})
	}
}

func TestEscapesAfterLeaving(t *testing.T) {
	e := &escapes{r: strings.NewReader("\x01xmore"), leave: func() {}}
	p := make([]byte, 8)
	for range 3 {
		if n, err := e.Read(p); n != 0 || err != io.EOF {
			t.Errorf("got %d, %v, want EOF", n, err)
		}
	}
}
