package vmm

import (
	"bytes"
	"testing"
)

func TestHistoryKeepsTheEnd(t *testing.T) {
	var out bytes.Buffer
	h := &history{w: &out}
	for range 1000 {
		h.Write([]byte("a line of a guest's console\r\n"))
	}
	h.Write([]byte("\x1b[31mred\x1b[0m\ttab \xff\x00 end\r\n\r\n"))
	lines := h.lines()
	if len(lines) != historyLines || lines[0] != "a line of a guest's console" {
		t.Errorf("%d lines, first %q", len(lines), lines[0])
	}
	if last := lines[len(lines)-1]; last != "[31mred[0m tab ? end" {
		t.Errorf("last line %q", last)
	}
	if !bytes.HasSuffix(out.Bytes(), []byte("\x1b[31mred\x1b[0m\ttab \xff\x00 end\r\n\r\n")) {
		t.Error("what is passed on was changed")
	}
}

func TestHistoryOfOneHugeWrite(t *testing.T) {
	h := &history{}
	h.Write(append(bytes.Repeat([]byte("x"), 10*historyBytes), "\nlast"...))
	if l := h.lines(); l[len(l)-1] != "last" {
		t.Errorf("last line %q", l[len(l)-1])
	}
	if l := (&history{}).lines(); l != nil {
		t.Errorf("lines of nothing: %q", l)
	}
}
