package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestScreen(t *testing.T) {
	s := newScreen("here: it is")
	write := func(text string) {
		t.Helper()
		if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	write(strings.Repeat("noise\n", 5000) + "here: ")
	if len(s.seen) != 0 {
		t.Error("half a line was taken for the whole")
	}
	write("it is\n")
	write("here: it is\n")
	if len(s.seen) != 1 {
		t.Errorf("seen %d times, want once", len(s.seen))
	}
	if got := s.last(bytes.NewBufferString("a complaint")); !strings.Contains(got, "here: it is") || !strings.Contains(got, "a complaint") {
		t.Errorf("last lines %s", got)
	}
}
