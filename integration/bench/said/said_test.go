package said

import (
	"bytes"
	"slices"
	"testing"
)

func TestConsole(t *testing.T) {
	const printed = "[    1.2] Linux\r\ndisco-guest: net=up\r\n[ 2.0] x disco-guest: net=end bytes=4096 fast way=\r\nlogin:"
	for _, piece := range []int{1, 7, len(printed)} {
		var texts []string
		var last Words
		c := New(func(text string, w Words) { texts, last = append(texts, text), w })
		for rest := printed; rest != ""; {
			n := min(piece, len(rest))
			_, _ = c.Write([]byte(rest[:n]))
			rest = rest[n:]
		}
		if !slices.Equal(texts, []string{"net=up", "net=end bytes=4096 fast way="}) {
			t.Fatalf("in pieces of %d: %q", piece, texts)
		}
		if _, there := last["fast"]; !there || last["net"] != "end" {
			t.Errorf("the words are %q", last)
		}
		var n uint64
		if err := last.Numbers(map[string]*uint64{"bytes": &n}); err != nil || n != 4096 {
			t.Errorf("bytes is %d, %v", n, err)
		}
		for _, key := range []string{"net", "way", "absent"} {
			if _, err := last.Number(key); err == nil {
				t.Errorf("%s is a number", key)
			}
		}
		if tail := c.Last(); len(tail) != 4 || tail[3] != "login:" {
			t.Errorf("the last lines are %q", tail)
		}
	}
}

func TestConsoleIsBounded(t *testing.T) {
	c := New(nil)
	_, _ = c.Write(bytes.Repeat([]byte("x"), 1<<20))
	_, _ = c.Write(bytes.Repeat([]byte("\n"), 1000))
	_, _ = c.Write(bytes.Repeat([]byte("y"), 1<<20))
	last := c.Last()
	if len(last) != keptLines+1 || len(last[keptLines]) != LongestLine {
		t.Errorf("%d lines are kept, %d bytes of the last", len(last), len(last[len(last)-1]))
	}
}
