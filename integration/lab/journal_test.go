package lab

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestJournalKeepsTheLastLines(t *testing.T) {
	j := &journal{}
	for i := range journalLines + 10 {
		fmt.Fprintf(j, "line %d\r\n", i)
	}
	fmt.Fprint(j, "unfin")
	fmt.Fprint(j, "ished")
	want := []string{fmt.Sprintf("line %d", journalLines+8), fmt.Sprintf("line %d", journalLines+9), "unfinished"}
	if got := j.last(3); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := j.last(1 << 20); len(got) != journalLines+1 || got[0] != "line 10" {
		t.Errorf("%d lines from %q", len(got), got[0])
	}
}

func TestJournalIsBounded(t *testing.T) {
	j := &journal{}
	long := bytes.Repeat([]byte("x"), 10*journalLine)
	_, _ = j.Write(long)
	_, _ = j.Write(long)
	_, _ = j.Write([]byte("\nnext\n"))
	if got := j.last(2); len(got) != 2 || len(got[0]) != journalLine || got[1] != "next" {
		t.Errorf("got %d lines, the first of %d bytes", len(got), len(got[0]))
	}
}

func TestJournalShowsAndDoesNotInterpret(t *testing.T) {
	var live strings.Builder
	j := &journal{live: &live}
	fmt.Fprint(j, "\x1b[2Jred\x07\x00\xff\ttab\n")
	if got := live.String(); got != "[2Jred tab\n" {
		t.Errorf("shown: %q", got)
	}
}
